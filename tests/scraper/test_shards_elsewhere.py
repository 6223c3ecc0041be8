"""Shards that Crest packed, read by the tools that people already have: nothing is silently empty."""

import importlib.util
import io
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from crest.records import Manifest, Record, content_id, write_manifest, write_records
from scraper.pack import main

COUNT = 12


@pytest.fixture
def packed(shelf, draw, tmp_path):
    """Call with a format: the tars of a folder whose logos all train."""

    def make(packed_as="png"):
        records = []
        for number in range(COUNT):
            stream = io.BytesIO()
            draw(number, 64, has_alpha=number % 2 == 0).save(stream, "PNG")
            name = content_id(stream.getvalue())
            (shelf.dir / "images").mkdir(parents=True, exist_ok=True)
            (shelf.dir / "images" / f"{name}.png").write_bytes(stream.getvalue())
            records.append(Record(name, f"images/{name}.png", "test", f"logo {number}", f"g{number}"))
        write_records(shelf.dir / "records.jsonl", records)
        write_manifest(shelf.dir, Manifest("records", "r"))
        pack = {"format": packed_as, "side_px": 48, "samples_per_shard": 5, "val_share": 0, "test_share": 0}
        main(shelf.config(source={"site": "folder", "path": str(tmp_path)}, pack=pack))
        tars = sorted((shelf.dir / "shards").glob("*.tar"))
        assert len(tars) == 3
        return tars

    return make


WORDS = {f"logo {number}" for number in range(COUNT)}


def dalle2_loader():
    """dalle2-pytorch's decoder_loader.py itself: its package does not import for want of pkg_resources."""
    root = Path(importlib.util.find_spec("dalle2_pytorch").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(
        "decoder_loader", root / "dataloaders" / "decoder_loader.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("packed_as", ["png", "webp", "jpg"])
def test_open_clips_reader_takes_every_format(packed, packed_as):
    from open_clip_train.data import get_wds_dataset

    args = types.SimpleNamespace(
        val_data="::".join(map(str, packed(packed_as))), val_num_samples=COUNT, batch_size=5, workers=0
    )
    found = get_wds_dataset(
        args,
        lambda picture: np.asarray(picture).shape,
        is_train=False,
        tokenizer=lambda text: [text],
    )
    batches = list(found.dataloader)
    assert {text for _, texts in batches for text in texts} == WORDS
    assert {tuple(shape) for shapes, _ in batches for shape in np.asarray(shapes).tolist()} == {(48, 48, 3)}


def test_dalle2_pytorchs_loader_reads_jpg_on_request(packed):
    loader = dalle2_loader()
    tars = [str(path) for path in packed("jpg")]
    dataset = loader.ImageEmbeddingDataset(tars, extra_keys=["txt"], shuffle_shards=False)
    read = list(dataset)
    assert {words for _, _, words in read} == WORDS
    assert {(picture.mode, picture.size) for picture, _, _ in read} == {("RGB", (48, 48))}
    # what was transparent is white, not the black that dropping the alpha would leave
    assert min(min(picture.getpixel((0, 0))) for picture, _, _ in read) > 230


def test_the_trap_that_the_jpg_key_is_for_is_still_there(packed):
    """A png tar is no error to dalle2-pytorch with the handler of its script: it is an empty data set."""
    loader = dalle2_loader()
    tars = [str(path) for path in packed("png")]
    dataset = loader.ImageEmbeddingDataset(tars, shuffle_shards=False, handler=lambda error: True)
    assert list(dataset) == []


@pytest.mark.parametrize(("packed_as", "mode"), [("png", "RGBA"), ("webp", "RGBA"), ("jpg", "RGB")])
def test_a_plain_webdataset_pipeline_as_for_img2datasets_tars(packed, packed_as, mode):
    tars = [str(path) for path in packed(packed_as)]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil" if mode == "RGB" else "pilrgba")
    read = list(dataset.to_tuple("png;jpg;webp", "txt", "json"))
    assert {words for _, words, _ in read} == WORDS
    for picture, words, known in read:
        assert (picture.mode, max(picture.size)) == (mode, 48)
        assert (known["caption"], known["source"]) == (words, "test")
        assert {"id", "group", "licence", "page_url", "sha256", "captions"} <= known.keys()


@pytest.mark.parametrize("packed_as", ["png", "webp"])
def test_tarfile_finds_lossless_pictures_with_their_alpha(packed, packed_as):
    modes = set()
    for path in packed(packed_as):
        with tarfile.open(path) as archive:
            for info in archive:
                assert (info.mtime, info.uname, info.uid) == (0, "crest", 0)
                if info.name.endswith(packed_as):
                    with Image.open(archive.extractfile(info)) as picture:
                        modes.add(picture.mode)
    assert modes == {"RGB", "RGBA"}


def test_a_gzip_tar_as_seed_002_packed_is_refused_with_a_reason(packed, tmp_path):
    """It cannot be read from the middle, and packing pictures once more saves nothing."""
    import gzip

    from crest.errors import DataError
    from crest.tars import read_tar

    (tmp_path / "a.tar").write_bytes(gzip.compress(packed()[0].read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar: is not a whole tar"):
        list(read_tar(tmp_path / "a.tar"))
