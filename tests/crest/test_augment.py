"""Crops and moves that leave words true, alike whoever draws them; torchvision is the reference."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from crest.augment import RATIO, SCALE, Normal, cached_px, crop_boxes, random_crop, random_resized_crop, shift
from crest.world import Draw


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """(9, 3, 40, 40) of noise."""
    return np.random.default_rng(0).integers(0, 256, (9, 3, 40, 40), dtype=np.uint8)


NUMBERS = np.array([4, 0, 8, 8, 1, 2, 3, 7])


def test_without_shift_a_picture_stays_as_it_is() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(shift(images, Draw(0, 0, 0, 4), 0), images)


def test_pictures_move_by_whole_pixels_and_white_moves_in() -> None:
    images = torch.zeros(64, 3, 9, 9)
    images[:, :, 4, 4] = 0.5
    moved = shift(images, Draw(3, 0, 0, 64), 2)
    places = {tuple((picture[0] == 0.5).nonzero()[0].tolist()) for picture in moved}
    assert places <= {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert {0, 1, 2, 3, 4} == {y - 2 for y, _ in places} == {x - 2 for _, x in places}
    for picture in moved:
        ((y, x),) = (picture[0] == 0.5).nonzero().tolist()
        white = (picture[0] == 1.0).sum().item()
        assert white == 81 - (9 - abs(y - 4)) * (9 - abs(x - 4))


def test_the_cache_is_as_open_clip_users_know_it() -> None:
    assert (cached_px(224), cached_px(64)) == (256, 73)


def test_a_crop_is_a_piece_of_its_picture(pixels: NDArray[np.uint8]) -> None:
    cut = random_crop(pixels, NUMBERS, Draw(0, 0, 0, 8), 33)
    assert (cut.shape, cut.dtype) == ((8, 3, 33, 33), torch.float32)
    levels = (cut * 255).round().byte().numpy()
    for number, piece in zip(NUMBERS, levels, strict=True):
        assert any(
            np.array_equal(piece, pixels[number, :, top : top + 33, left : left + 33])
            for top in range(8)
            for left in range(8)
        )


def test_crops_reach_every_place_equally() -> None:
    """A picture whose levels tell where they are."""
    picture = np.zeros((1, 3, 12, 12), np.uint8)
    picture[0, 0] = np.arange(12)[:, None]
    picture[0, 1] = np.arange(12)[None]
    cut = random_crop(picture, np.zeros(5000, np.int64), Draw(1, 0, 0, 5000), 10)
    corners = (cut[:, :2, 0, 0] * 255).round().long()
    counts = torch.bincount(corners[:, 0] * 3 + corners[:, 1], minlength=9)
    assert len(counts) == 9
    assert float((counts / 5000 - 1 / 9).abs().max()) < 0.02


def test_a_crop_of_the_whole_is_the_picture(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(random_crop(pixels, NUMBERS, Draw(0, 0, 0, 8), 40) * 255, pixels[NUMBERS])


def test_a_resized_crop_equals_torchvisions_of_the_same_box(pixels: NDArray[np.uint8]) -> None:
    draw = Draw(0, 3, 0, 8)
    for side_px, scale in ((24, SCALE), (31, (0.1, 0.5)), (64, (0.2, 1.0))):
        cut = random_resized_crop(pixels, NUMBERS, draw, side_px, scale=scale)
        boxes = crop_boxes(draw, 40, 40, scale, RATIO).tolist()
        for number, box, got in zip(NUMBERS, boxes, cut, strict=True):
            wanted = resized_crop(
                torch.from_numpy(pixels[number]),
                *box,
                [side_px, side_px],
                InterpolationMode.BILINEAR,
                antialias=True,
            )
            assert float((got * 255 - wanted).abs().max()) < 1.01  # levels: torchvision goes by floats


@pytest.mark.parametrize("cut", [random_crop, random_resized_crop])
def test_pictures_are_centred_and_scaled_in_the_same_pass(
    pixels: NDArray[np.uint8], cut: Callable[..., Tensor]
) -> None:
    mean, std = (0.48, 0.25, 0.6), (0.27, 0.5, 0.1)
    plain, draw = cut(pixels, NUMBERS, Draw(0, 0, 0, 8), 24), Draw(0, 0, 0, 8)
    wanted = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(cut(pixels, NUMBERS, draw, 24, Normal.of(mean, std)), wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [SCALE, (0.08, 1.0)])
def test_boxes_are_drawn_as_torchvision_draws_them(scale: tuple[float, float]) -> None:
    count = 1200
    ours = crop_boxes(Draw(0, 0, 0, count), 256, 256, scale, RATIO).double()
    torch.manual_seed(0)
    image = torch.empty(3, 256, 256)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)]
    ).double()
    measures: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda boxes: boxes,
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: (boxes[:, 3] / boxes[:, 2]).log(),
    )
    for value in measures:
        mean, wanted, spread = value(ours).mean(0), value(theirs).mean(0), value(theirs).std(0)
        assert bool(((mean - wanted).abs() < 5 * spread / count**0.5).all())
        assert torch.allclose(value(ours).std(0), spread, rtol=0.15)
    assert bool((ours[:, :2] >= 0).all())
    assert bool((ours[:, :2] + ours[:, 2:] <= 256).all())


def test_where_no_box_fits_the_largest_central_one_is_taken() -> None:
    assert crop_boxes(Draw(0, 0, 0, 1), 10, 101, (1.0, 1.0), RATIO).tolist() == [[0, 44, 10, 13]]
    assert crop_boxes(Draw(0, 0, 0, 1), 101, 10, (1.0, 1.0), RATIO).tolist() == [[44, 0, 13, 10]]


@pytest.mark.parametrize("cut", [random_crop, random_resized_crop])
def test_crops_depend_on_seed_step_and_position_alone(
    pixels: NDArray[np.uint8], cut: Callable[..., Tensor]
) -> None:
    whole = cut(pixels, NUMBERS, Draw(1, 5, 0, 8), 24)
    halves = [cut(pixels, NUMBERS[first : first + 4], Draw(1, 5, first, 4), 24) for first in (0, 4)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(cut(pixels, NUMBERS, Draw(1, 6, 0, 8), 24), whole)
    assert 0.0 <= float(whole.min()) <= float(whole.max()) <= 1.0
