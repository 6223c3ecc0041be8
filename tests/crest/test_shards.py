"""Shards as any WebDataset reader finds them, and the pictures that training reads from them."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from crest.errors import DataError
from crest.pixels import batch_numbers, open_pictures
from crest.records import Manifest, Split, write_manifest
from crest.shards import Sample, png_bytes, read_samples, write_shards

Picture = Image.Image


@pytest.fixture
def pack(tmp_path: Path, logos: list[Picture]) -> Callable[..., Manifest]:
    """Call with a count of training logos: shards at tmp_path/data/shards."""

    def write(count: int = 5, folder: Path = tmp_path / "data" / "shards", **settings: Any) -> Manifest:
        samples = [
            Sample(f"{index:016x}", png_bytes(logo), f'A "crest" n° {index}', {"group": f"club {index // 2}"})
            for index, logo in enumerate(logos)
        ]
        splits: dict[Split, Any] = {"train": samples[:count], "val": samples[count : count + 2]}
        return write_shards(
            folder, splits, **{"samples_per_shard": 2, "parents": {"records": "abc"}, **settings}
        )

    return write


def test_samples_come_back_in_order_with_their_words(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = pack(5, dropped={"blank": 2}, details={"seed": 3})
    assert sorted(manifest.files) == [
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    assert (dict(manifest.counts), dict(manifest.dropped)) == (
        {"train": 5, "val": 2, "test": 0},
        {"blank": 2},
    )
    samples = list(read_samples(tmp_path / "data" / "shards", "train"))
    assert [sample.id for sample in samples] == [f"{index:016x}" for index in range(5)]
    assert samples[4].caption == 'A "crest" n° 4'
    assert samples[4].meta == {"group": "club 2"}
    assert list(read_samples(tmp_path / "data" / "shards", "test")) == []


def test_members_are_what_a_stock_webdataset_pipeline_decodes(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(2)
    path = tmp_path / "data" / "shards" / "train-000000.tar"
    with tarfile.open(path) as archive:
        assert archive.getnames() == [
            f"{index:016x}.{kind}" for index in range(2) for kind in ("json", "png", "txt")
        ]
    decoded = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["txt"] for sample in decoded] == ['A "crest" n° 0', 'A "crest" n° 1']
    assert decoded[0]["png"].size == (64, 64)
    assert decoded[0]["json"] == {"group": "club 0"}


def test_alpha_is_kept_in_the_shard_and_flattened_on_white_for_training(
    tmp_path: Path, black_logo: Picture
) -> None:
    folder = tmp_path / "data" / "shards"
    sample = Sample("a" * 16, png_bytes(black_logo), "a black disc", {})
    write_shards(folder, {"train": [sample]}, samples_per_shard=9, parents={})
    (packed,) = read_samples(folder, "train")
    assert Image.open(io.BytesIO(packed.image)).mode == "RGBA"
    pictures = open_pictures(folder, "train", 16)
    assert (pictures.pixels[0, :, 8, 8] == 0).all()
    assert (pictures.pixels[0, :, 0, 0] == 255).all()


def test_a_wordmark_keeps_both_ends(tmp_path: Path, wordmark: Picture) -> None:
    folder = tmp_path / "data" / "shards"
    write_shards(
        folder, {"train": [Sample("a", png_bytes(wordmark), "x", {})]}, samples_per_shard=1, parents={}
    )
    pixels = open_pictures(folder, "train", 32).pixels[0].astype(int)
    for (row, column), colour in {
        (16, 1): [255, 0, 0],
        (16, 30): [0, 0, 255],
        (2, 16): [255, 255, 255],
    }.items():
        assert np.abs(pixels[:, row, column] - colour).max() < 8


def test_the_same_samples_give_the_same_bytes(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    first = pack(5, tmp_path / "one")
    second = pack(5, tmp_path / "two")
    assert first.hash == second.hash
    for name in first.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert pack(4, tmp_path / "three").hash != first.hash


def test_one_sample_in_one_shard_is_enough(tmp_path: Path, logo: Picture) -> None:
    folder = tmp_path / "data" / "shards"
    write_shards(
        folder, {"train": [Sample("a", png_bytes(logo), "x", {})]}, samples_per_shard=100, parents={}
    )
    assert [path.name for path in folder.glob("*.tar")] == ["train-000000.tar"]
    assert len(open_pictures(folder, "train", 8)) == 1
    assert len(open_pictures(folder, "val", 8)) == 0


def test_nothing_to_pack_is_refused_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample was left to pack"):
        write_shards(tmp_path / "shards", {"train": []}, samples_per_shard=2, parents={})
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_packing_fewer_shards_removes_those_of_before(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    pack(5)
    pack(2)
    assert len(list((tmp_path / "data" / "shards").glob("*.tar"))) == 2


def test_a_shard_that_fails_half_way_is_not_left(tmp_path: Path, logo: Picture) -> None:
    def samples() -> Any:
        yield Sample("a", png_bytes(logo), "x", {})
        yield Sample("b", b"", None, {})  # type: ignore[arg-type]

    with pytest.raises(AttributeError):
        write_shards(tmp_path, {"train": samples()}, samples_per_shard=2, parents={})
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_in_half_is_refused(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    pack(5)
    path = tmp_path / "data" / "shards" / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (
        lambda: list(read_samples(path.parent, "train")),
        lambda: open_pictures(path.parent, "train", 16),
    ):
        with pytest.raises(
            DataError, match=r"train-000001\.tar: is \d+ bytes, expected \d+ .*run python -m scraper"
        ):
            read()
    assert not (tmp_path / "data" / "pixels").exists()


@pytest.mark.parametrize("keep", [0.3, 0.5])
def test_a_cut_shard_whose_size_nobody_recorded_is_refused_too(
    pack: Callable[..., Manifest], tmp_path: Path, keep: float
) -> None:
    manifest = pack(5)
    folder = tmp_path / "data" / "shards"
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    write_manifest(folder, Manifest("shards", "0", manifest.counts, files={path.name: path.stat().st_size}))
    with pytest.raises(DataError, match=r"train-000001\.tar: (is not a whole tar|sample \w+ has no)"):
        list(read_samples(folder, "train"))
    with pytest.raises(DataError):
        open_pictures(folder, "train", 16)
    assert list((tmp_path / "data" / "pixels").iterdir()) == []


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "shards"
    write_shards(folder, {"train": [Sample("ab12", b"\x89PNG...", "x", {})]}, samples_per_shard=1, parents={})
    with pytest.raises(DataError, match="ab12: is not a whole picture"):
        open_pictures(folder, "train", 16)


def test_unfinished_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist \(no manifest\.json\); run python -m scraper\.pack"):
        open_pictures(tmp_path / "shards", "train", 16)


def test_pictures_are_decoded_once_and_again_when_the_shards_change(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(5)
    folder = tmp_path / "data" / "shards"
    first = open_pictures(folder, "train", 16)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "pixels").iterdir()}
    again = open_pictures(folder, "train", 16)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert np.array_equal(first.pixels, again.pixels)
    pack(4)
    assert len(open_pictures(folder, "train", 16)) == 4


def test_pictures_are_floats_from_0_to_1_with_their_words_and_groups(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(5)
    pictures = open_pictures(tmp_path / "data" / "shards", "train", 16)
    floats = pictures.floats(np.array([4, 0]))
    assert (floats.shape, floats.dtype) == ((2, 3, 16, 16), np.float32)
    assert (float(floats.min()) >= 0, float(floats.max())) == (True, 1.0)
    assert pictures.groups == ["club 0", "club 0", "club 1", "club 1", "club 2"]
    assert pictures.captions[3] == 'A "crest" n° 3'


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (10, 10), (7, 3), (5, 1)])
def test_every_epoch_sees_every_sample_once(size: int, batch_size: int) -> None:
    stream = np.concatenate([batch_numbers(3, size, batch_size, step) for step in range(4 * size)])
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert not np.array_equal(stream[:size], stream[size : 2 * size]) or size == 1


def test_batches_depend_on_seed_and_step_alone() -> None:
    assert np.array_equal(batch_numbers(1, 50, 8, 123), batch_numbers(1, 50, 8, 123))
    assert not np.array_equal(batch_numbers(1, 50, 8, 123), batch_numbers(2, 50, 8, 123))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"optim\.batch_size: found 9, but the training split holds 8 samples"
    ):
        batch_numbers(0, 8, 9, 0)


def test_what_a_killed_process_had_half_decoded_is_removed(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(4)
    abandoned, living = (tmp_path / "data" / "pixels" / f"train-8-abc.u8.{pid}.part" for pid in (11, 12))
    for part in (abandoned, living):
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    open_pictures(tmp_path / "data" / "shards", "train", 16)
    assert (abandoned.exists(), living.exists()) == (False, True)


def test_the_index_beside_the_pixels_is_json(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = pack(3)
    open_pictures(tmp_path / "data" / "shards", "val", 8)
    index = tmp_path / "data" / "pixels" / f"val-8-{manifest.hash}.json"
    assert [row["id"] for row in json.loads(index.read_text(encoding="utf-8"))] == [f"{3:016x}", f"{4:016x}"]
