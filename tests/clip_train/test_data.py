"""Shards to contrastive batches: augmentation that keeps letters and colours, captions that are equal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_train.config import ClipDataConfig
from clip_train.data import ClipData, add_noise
from crest.errors import DataError
from crest.models.clip import ClipModel, load_clip_model
from crest.shards import read_samples, write_shards
from crest.world import Draw, open_world


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    noisy = add_noise(torch.full((32, 3, 16, 16), 0.5), Draw(0, 0, 0, 32), 0.05)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert float(add_noise(torch.ones(8, 3, 8, 8), Draw(0, 0, 0, 8), 0.5).max()) == 1.0


def test_without_noise_a_picture_stays_as_it_is() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(add_noise(images, Draw(0, 0, 0, 4), 0.0), images)


@pytest.mark.parametrize("how", ["shift", "crop", "resized_crop"])
def test_a_picture_is_augmented_alike_whichever_process_has_it(tiny_world: Any, how: str) -> None:
    model = load_clip_model(tiny_world.folder / "runs" / "clip_train")[0]
    config = ClipDataConfig.model_validate({"shards": tiny_world.shards, "augment": how, "noise": 0.0})
    data = ClipData(config, model)
    one = open_world("cpu", "fp32")
    whole = next(data.batches(1, 8, 8, one, 2))
    shares = [
        next(data.batches(1, 8, 8, type(one)(rank, 2, one.device, "fp32", one.accelerator), 2))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert whole.images.shape == (8, 3, model.side_px, model.side_px)
    plain = ClipDataConfig.model_validate({"shards": tiny_world.shards, "shift_px": 0, "noise": 0.0})
    unchanged = next(ClipData(plain, model).batches(1, 8, 8, one, 2)).images
    assert not torch.equal(whole.images, unchanged)
    assert float((whole.images.mean((2, 3)) - unchanged.mean((2, 3))).abs().max()) < 0.25


@pytest.mark.parametrize("size", [1, 2])
def test_processes_share_out_one_global_batch(tiny_world: Any, size: int) -> None:
    model = load_clip_model(tiny_world.folder / "runs" / "clip_train")[0]
    data = ClipData(ClipDataConfig(shards=tiny_world.shards), model)
    one = open_world("cpu", "fp32")
    whole = next(data.batches(1, 8, 8, one, 2))
    shares = [
        next(data.batches(1, 8, 8, type(one)(rank, size, one.device, "fp32", one.accelerator), 2))
        for rank in range(size)
    ]
    for name in ("images", "tokens", "numbers"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))


def packed(folder: Path, train: list[Any], val: list[Any]) -> ClipDataConfig:
    write_shards(folder / "shards", {"train": train, "val": val}, samples_per_shard=99, parents={})
    return ClipDataConfig(shards=folder / "shards")


@pytest.fixture
def tiny_clip(tiny_world: Any) -> ClipModel:
    return load_clip_model(tiny_world.folder / "runs" / "clip_train")[0]


def test_validating_on_what_was_trained_on_is_refused(
    tiny_world: Any, tiny_clip: ClipModel, tmp_path: Path
) -> None:
    """open_clip's script takes --val-data equal to --train-data without a word."""
    samples = list(read_samples(tiny_world.shards, "train"))
    with pytest.raises(DataError, match="8 pictures lie both in train and in val"):
        ClipData(packed(tmp_path / "a", samples, samples[:8]), tiny_clip)
    other = list(read_samples(tiny_world.shards, "val"))
    renamed = [replace(one, meta={"group": "club 3"}) for one in other]
    with pytest.raises(DataError, match="1 groups, such as 'club 3', lie both in train and in val"):
        ClipData(packed(tmp_path / "b", samples, renamed), tiny_clip)


def test_one_pair_is_refused(tiny_world: Any, tiny_clip: ClipModel, tmp_path: Path) -> None:
    val = list(read_samples(tiny_world.shards, "val"))
    train = list(read_samples(tiny_world.shards, "train"))[:1]
    with pytest.raises(DataError, match="the train split holds 1 logos, expected at least 2"):
        ClipData(packed(tmp_path, train, val), tiny_clip)


def test_a_corrupt_picture_is_left_out_and_named_where_that_is_allowed(
    tiny_world: Any, tiny_clip: ClipModel, tmp_path: Path
) -> None:
    train, val = (list(read_samples(tiny_world.shards, split)) for split in ("train", "val"))
    train[3] = replace(train[3], image=train[3].image[:-30])
    config = packed(tmp_path, train, val)
    with pytest.raises(DataError, match=train[3].id):
        ClipData(config, tiny_clip)
    data = ClipData(config.model_copy(update={"max_damaged_share": 0.1}), tiny_clip)
    assert len(data.train) == 23
    assert train[3].id not in data.train.ids


def test_captions_longer_than_the_context_are_cut_at_a_word_and_counted(tiny_clip: ClipModel) -> None:
    room = tiny_clip.context_length
    long = " ".join(f"word{number}" for number in range(room))
    (short, cut), count = tiny_clip.fit_texts(["a", long])
    assert (short, count) == ("a", 1)
    assert long.startswith(f"{cut} ")
    assert cut.split() == long.split()[: len(cut.split())]
