"""Shards to contrastive batches: augmentation that keeps letters and colours, captions that are equal."""

from typing import Any

import pytest
import torch

from clip_train.config import ClipDataConfig
from clip_train.data import ClipData, augment, number_captions
from crest.models.clip import load_clip_model
from crest.pixels import open_pictures
from crest.world import Draw, open_world


def test_without_shift_and_noise_a_picture_stays_as_it_is() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(augment(images, Draw(0, 0, 0, 4), 0, 0.0), images)


def test_pictures_move_by_whole_pixels_and_white_moves_in() -> None:
    images = torch.zeros(64, 3, 9, 9)
    images[:, :, 4, 4] = 0.5
    moved = augment(images, Draw(3, 0, 0, 64), 2, 0.0)
    places = {tuple((picture[0] == 0.5).nonzero()[0].tolist()) for picture in moved}
    assert places <= {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert {0, 1, 2, 3, 4} == {y - 2 for y, _ in places} == {x - 2 for _, x in places}
    for picture in moved:
        ((y, x),) = (picture[0] == 0.5).nonzero().tolist()
        white = (picture[0] == 1.0).sum().item()
        assert white == 81 - (9 - abs(y - 4)) * (9 - abs(x - 4))


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    noisy = augment(torch.full((32, 3, 16, 16), 0.5), Draw(0, 0, 0, 32), 0, 0.05)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert float(augment(torch.ones(8, 3, 8, 8), Draw(0, 0, 0, 8), 0, 0.5).max()) == 1.0


def test_a_picture_is_augmented_alike_whichever_process_has_it() -> None:
    images = torch.rand(16, 3, 8, 8)
    whole = augment(images, Draw(1, 5, 0, 16), 2, 0.1)
    halves = [augment(images[first : first + 8], Draw(1, 5, first, 8), 2, 0.1) for first in (0, 8)]
    assert torch.equal(torch.cat(halves), whole)


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
    for name in ("images", "tokens", "same"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
