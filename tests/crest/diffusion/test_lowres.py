"""Blur and noise on what an upsampler is shown, against kornia's and dalle2-pytorch's."""

import pytest
import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import LowresConditioner
from kornia.filters import gaussian_blur2d

from crest.diffusion.lowres import (
    NOISE_LEVELS,
    Augmentation,
    augment,
    blur,
    random_augmentation,
    sampling_augmentation,
)
from crest.errors import ConfigError


@pytest.mark.parametrize("kernel_px", [1, 3, 9])
def test_blur_is_kornias_for_each_picture_with_its_own_sigma(kernel_px: int) -> None:
    pictures, sigma = torch.randn(3, 2, 12, 10), torch.tensor([0.6, 0.2, 3.0])
    blurred = blur(pictures, sigma, kernel_px)
    for row, one in enumerate(sigma.tolist()):
        theirs = gaussian_blur2d(pictures[row : row + 1], (kernel_px, kernel_px), (one, one))
        assert torch.allclose(blurred[row : row + 1], theirs, atol=1e-6)


def test_blur_of_a_point_is_the_window_itself() -> None:
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    side, middle = torch.tensor(-0.5 / 0.6**2).exp(), torch.tensor(1.0)
    window = torch.stack((side, middle, side)) / (middle + 2 * side)
    expected = F.pad(torch.outer(window, window), (1, 1, 1, 1))
    assert torch.allclose(blur(point, torch.tensor([0.6]))[0, 0], expected, atol=1e-6)


def test_no_sigma_leaves_a_picture_exactly_as_it_is() -> None:
    pictures = torch.randn(2, 3, 8, 8)
    blurred = blur(pictures, torch.tensor([0.0, 0.6]))
    assert torch.equal(blurred[0], pictures[0])
    assert not torch.allclose(blurred[1], pictures[1], atol=0.05)


@pytest.mark.parametrize("kernel_px", [2, 9])
def test_a_window_that_does_not_fit_is_refused(kernel_px: int) -> None:
    with pytest.raises(ConfigError, match=f"found {kernel_px}, expected an odd number below twice"):
        blur(torch.zeros(1, 3, 4, 4), torch.ones(1), kernel_px)


@pytest.mark.parametrize("use_noise", [False, True])
def test_augmentation_is_the_librarys(use_noise: bool) -> None:
    """Same pictures, same level, same noise: dalle2-pytorch's conditioner in [0, 1], ours in [-1, 1]."""
    theirs = LowresConditioner(
        downsample_first=False,
        blur_prob=1.0,
        use_noise=use_noise,
        normalize_img_fn=lambda picture: picture * 2 - 1,
        unnormalize_img_fn=lambda picture: (picture + 1) / 2,
    )
    small = torch.rand(4, 3, 8, 8)
    torch.manual_seed(5)
    shown, level = theirs(small, target_image_size=16)
    torch.manual_seed(5)
    told = torch.randint(0, 1000, (4,)) if use_noise else None
    noise = torch.randn(4, 3, 16, 16) if use_noise else None
    if use_noise:
        assert torch.equal(level, told)
    ours = augment(
        small * 2 - 1,
        Augmentation(torch.full((4,), 0.6), told),
        noise,
        enlarge=lambda picture: F.interpolate(picture, 16, mode="nearest"),
    )
    assert torch.allclose((ours + 1) / 2, shown, atol=1e-6)


def test_noise_has_the_variance_of_its_level() -> None:
    pictures = torch.zeros(2, 1, 64, 64)
    level = torch.tensor([100, 900])
    spoilt = augment(pictures, Augmentation(torch.zeros(2), level), torch.randn(2, 1, 64, 64))
    for row, one in enumerate(level.tolist()):
        expected = float((1 - NOISE_LEVELS.alpha_bar[one]).sqrt())
        assert float(spoilt[row].std()) == pytest.approx(expected, rel=0.05)


def test_random_augmentation_follows_from_its_draws() -> None:
    drawn = random_augmentation(
        torch.tensor([0.1, 0.49, 0.5, 0.9]),
        torch.tensor([0.0, 0.5, 0.5, 0.5]),
        torch.tensor([0.0, 0.2, 0.9999999, 0.5]),
        blur_prob=0.5,
        blur_sigma=(0.4, 0.8),
    )
    assert drawn.blur_sigma.tolist() == pytest.approx([0.4, 0.6, 0.0, 0.0])
    assert drawn.noise_level is not None
    assert drawn.noise_level.tolist() == [0, 200, 999, 500]
    assert random_augmentation(torch.rand(2), torch.rand(2), None).noise_level is None


def test_sampling_leaves_pictures_sharp_at_one_level() -> None:
    pictures, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    plain = sampling_augmentation(2, None, "cpu")
    assert torch.equal(augment(pictures, plain, None), pictures)
    noised = sampling_augmentation(2, 200, "cpu")
    assert noised.noise_level is not None
    assert noised.noise_level.tolist() == [200, 200]
    alpha_bar = float(NOISE_LEVELS.alpha_bar[200])
    expected = pictures * alpha_bar**0.5 + noise * (1 - alpha_bar) ** 0.5
    assert torch.allclose(augment(pictures, noised, noise), expected, atol=1e-6)


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_level_that_is_none_is_refused(level: int) -> None:
    with pytest.raises(ConfigError, match=f"lowres_noise_level: found {level}, expected 0 to 999"):
        sampling_augmentation(2, level, "cpu")
