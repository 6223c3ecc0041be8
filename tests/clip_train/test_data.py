"""Shards to contrastive batches: augmentation that keeps letters and colours, captions that are equal."""

from typing import Any

import pytest
import torch

from clip_train.config import ClipDataConfig
from clip_train.data import ClipData, add_noise, number_captions
from crest.models.clip import load_clip_model
from crest.pixels import open_pictures
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


def test_equal_captions_share_a_number_whatever_their_case_and_spaces(tiny_world: Any) -> None:
    pictures = open_pictures(tiny_world.shards, "train", 16)
    texts = ["A red crest", "a  red crest ", "a navy crest"]
    numbers = number_captions(type(pictures)(["a", "b", "c"], texts, texts, pictures.pixels, "0"))
    assert numbers.tolist() == [0, 0, 1]


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
