"""The pictures that training reads from shards."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crest.errors import DataError
from crest.pixels import batch_numbers, open_pictures
from crest.records import Manifest, write_manifest
from crest.shards import Sample, Tolerance, png_bytes, read_samples, write_shards

Picture = Image.Image


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


def test_one_sample_in_one_shard_is_enough(tmp_path: Path, logo: Picture) -> None:
    folder = tmp_path / "data" / "shards"
    write_shards(
        folder, {"train": [Sample("a", png_bytes(logo), "x", {})]}, samples_per_shard=100, parents={}
    )
    assert [path.name for path in folder.glob("*.tar")] == ["train-000000.tar"]
    assert len(open_pictures(folder, "train", 8)) == 1
    assert len(open_pictures(folder, "val", 8)) == 0


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


def test_a_card_on_its_own_ground_is_padded_with_that(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "shards"
    card = Image.new("RGB", (64, 16), (10, 20, 90))
    card.paste((255, 200, 0), (20, 4, 40, 12))
    write_shards(folder, {"train": [Sample("a", png_bytes(card), "x", {})]}, samples_per_shard=1, parents={})
    pixels = open_pictures(folder, "train", 64).pixels[0]
    assert pixels[:, 2, 2].tolist() == pixels[:, 61, 61].tolist() == [10, 20, 90]


def test_several_captions_come_with_their_weights_the_heaviest_first(tmp_path: Path, logo: Picture) -> None:
    folder = tmp_path / "data" / "shards"
    captions = [{"text": "A red shield.", "weight": 1.0}, {"text": "Colours: red.", "weight": 0.25}]
    samples = [
        Sample("a", png_bytes(logo), "A red shield.", {"captions": captions}),
        Sample("b", png_bytes(logo), "A disc.", {"captions": [{"text": "A disc.", "weight": 1.0}]}),
        Sample("c", png_bytes(logo), "A bar.", {}),
    ]
    write_shards(folder, {"train": samples}, samples_per_shard=9, parents={})
    for _ in range(2):  # the second time from the cache
        pictures = open_pictures(folder, "train", 8)
        assert pictures.captions == ["A red shield.", "A disc.", "A bar."]
        assert pictures.captions_of(0) == (("A red shield.", 1.0), ("Colours: red.", 0.25))
        assert pictures.captions_of(2) == (("A bar.", 1.0),)


@pytest.fixture
def one_broken(tmp_path: Path, logos: list[Picture]) -> Path:
    """A folder of ten samples, of which the fifth is no picture."""
    folder = tmp_path / "data" / "shards"
    samples = [Sample(f"id{n}", png_bytes(logos[n]) if n != 4 else b"\x89PNG", "x", {}) for n in range(10)]
    write_shards(folder, {"train": samples}, samples_per_shard=3, parents={})
    return folder


def test_damage_is_left_out_and_named_up_to_a_share_and_no_stricter_reader_takes_it(
    one_broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="id4: is not a whole picture"):
        open_pictures(one_broken, "train", 8)
    with pytest.raises(DataError, match=r"1 of 10 samples are damaged, expected at most a share of 0\.05"):
        open_pictures(one_broken, "train", 8, 0.05)
    pictures = open_pictures(one_broken, "train", 8, 0.1)
    assert pictures.ids == [f"id{n}" for n in range(10) if n != 4]
    assert len(pictures.pixels) == 9
    assert "1 of 10 train samples are damaged and left out" in capsys.readouterr().out
    (noted,) = (one_broken.parent / "pixels").glob("*.damaged.json")
    assert [row["sample"] for row in json.loads(noted.read_text())] == ["id4"]
    assert len(open_pictures(one_broken, "train", 8, 0.1)) == 9
    with pytest.raises(DataError, match="1 of 10 samples are damaged"):
        open_pictures(one_broken, "train", 8)


@pytest.mark.parametrize("byte", [256, 700])
def test_a_damaged_tar_costs_its_samples_and_reading_goes_on_with_the_next(
    one_broken: Path, byte: int
) -> None:
    """A header that is damaged: tarfile and webdataset take it for the end of the tar and say nothing."""
    path = one_broken / "train-000002.tar"
    content = bytearray(path.read_bytes())
    second = content.index(b"id7.json")
    content[second + byte % 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000002\.tar: is not a whole tar \("):
        list(read_samples(one_broken, "train"))
    tolerance = Tolerance(0.5)
    ids = [sample.id for sample in read_samples(one_broken, "train", tolerance)]
    assert ids[:6] == [f"id{n}" for n in range(6)]
    assert ids[-1] == "id9"
    ((problem),) = tolerance.problems
    assert (problem.reason, problem.tar) == ("broken_tar", "train-000002.tar")
    assert problem.samples + len(ids) == 10


def test_memory_stays_flat_whatever_the_split_holds(tmp_path: Path, logos: list[Picture]) -> None:
    """A split whose pixels are 31 MB passes through a few pictures at a time."""
    import tracemalloc

    folder = tmp_path / "data" / "shards"
    content = png_bytes(logos[0])
    samples = (Sample(f"id{n}", content, "x", {}) for n in range(160))
    write_shards(folder, {"train": samples}, samples_per_shard=50, parents={})
    tracemalloc.start()
    open_pictures(folder, "train", 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
