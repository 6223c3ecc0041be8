"""Pictures are moved a little on their own ground: not mirrored or tinted unless asked, not in place."""

import pytest
import torch
from torch import Tensor

from crest.augment import move

STILL = {"shift": 0.0, "rotate_degrees": 0.0, "scale": (1.0, 1.0)}


def dot(y: int, x: int, ground: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    image = torch.tensor(ground).view(1, 3, 1, 1).expand(1, 3, 33, 33).clone()
    image[:, :, y - 2 : y + 3, x - 2 : x + 3] = 0
    return image


def centre(image: Tensor, ground: float = 1.0) -> tuple[float, float]:
    weight = (ground - image[0, 0]).clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    return float((weight * rows).sum() / weight.sum()), float((weight * columns).sum() / weight.sum())


def numbers(**given: float) -> Tensor:
    names = ("across", "down", "turn", "scale", "flip", "red", "green", "blue")
    return torch.tensor([[given.get(name, 0.5) for name in names]])


def test_a_still_picture_stays_and_comes_back_unchanged() -> None:
    image = torch.rand(2, 3, 16, 16)
    before = image.clone()
    moved = move(image, torch.rand(2, 8), **STILL)  # type: ignore[arg-type]
    torch.testing.assert_close(moved, image)
    assert torch.equal(image, before)


def test_shift_turn_and_scale_are_what_they_say() -> None:
    settings = {**STILL, "shift": 4 / 33}
    moved = move(dot(16, 16), numbers(across=1.0, down=0.0), **settings)  # type: ignore[arg-type]
    assert centre(moved) == pytest.approx((12, 20), abs=0.02)
    turned = move(dot(16, 24), numbers(turn=1.0), **{**STILL, "rotate_degrees": 90.0})  # type: ignore[arg-type]
    assert centre(turned)[1] == pytest.approx(16, abs=0.05)
    assert abs(centre(turned)[0] - 16) == pytest.approx(8, abs=0.05)
    smaller = move(dot(16, 26), numbers(scale=0.0), **{**STILL, "scale": (0.5, 1.0)})  # type: ignore[arg-type]
    assert centre(smaller) == pytest.approx((16, 21), abs=0.1)


def test_what_comes_in_has_the_colour_of_the_ground() -> None:
    ground = (0.2, 0.4, 0.9)
    image = dot(16, 31, ground)  # it touches the border, whose ground is what most of it shows
    moved = move(image, numbers(across=0.0), **{**STILL, "shift": 8 / 33})  # type: ignore[arg-type]
    for channel, value in enumerate(ground):
        assert float(moved[0, channel, :, -6:].std()) < 1e-5
        assert float(moved[0, channel, 0, -1]) == pytest.approx(value, abs=1e-5)


def test_a_photograph_repeats_its_border() -> None:
    image = torch.linspace(0, 1, 33).view(1, 1, 33, 1).expand(1, 3, 33, 33)
    moved = move(image, numbers(across=0.0), **{**STILL, "shift": 8 / 33})  # type: ignore[arg-type]
    torch.testing.assert_close(moved, image, atol=1e-5, rtol=0)


def test_nothing_is_mirrored_or_tinted_unless_asked() -> None:
    image = dot(16, 24)
    low = numbers(flip=0.0, red=0.9, green=0.9, blue=0.9)
    torch.testing.assert_close(move(image, low, **STILL), image)  # type: ignore[arg-type]
    mirrored = move(image, low, **STILL, flip=True)  # type: ignore[arg-type]
    torch.testing.assert_close(mirrored, image.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(move(image, numbers(flip=0.9), **STILL, flip=True), image)  # type: ignore[arg-type]
    tinted = move(image, low, **STILL, tint=0.5)  # type: ignore[arg-type]
    assert float(tinted[0, 0, 0, 0]) == pytest.approx(1 - 0.5 * 0.9)
