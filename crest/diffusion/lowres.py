"""What an upsampler is shown instead of a clean small picture, so that it forgives the U-Net before it.

Blur is Ramesh et al. 2022 (arXiv 2204.06125), section 2.1; noise at a level that the network is told is Ho et
al. 2021 (arXiv 2106.15282), section 3, and Saharia et al. 2022 (arXiv 2205.11487), section 2.4. Everything
follows from numbers that are given: this file draws none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.errors import ConfigError

NOISE_LEVELS = NoiseSchedule("linear", 1000)
"""Levels of noise that a small picture can have, 0 (hardly any) to 999; dalle2-pytorch's."""
SAMPLING_NOISE_LEVEL = 200
"""dalle2-pytorch's at sampling, whatever the network."""


@dataclass(frozen=True)
class Augmentation:
    """How each small picture is spoilt."""

    blur_sigma: Tensor
    """(B,) pixels of the small picture, 0 where it stays sharp"""
    noise_level: Tensor | None
    """(B,) int64 in 0 … 999, which the network is told; None adds no noise"""


def random_augmentation(
    blur_draw: Tensor,
    sigma_draw: Tensor,
    level_draw: Tensor | None,
    *,
    blur_prob: float = 0.5,
    blur_sigma: tuple[float, float] = (0.6, 0.6),
) -> Augmentation:
    """For training: each picture its own.

    Args:
        blur_draw, sigma_draw, level_draw: (B,) uniform in [0, 1): whether it is blurred, how much, and its
            noise level; None adds no noise.
        blur_prob: share of pictures that are blurred.
        blur_sigma: least and largest blur, in pixels of the small picture.
    """
    low, high = blur_sigma
    sigma = (low + (high - low) * sigma_draw) * (blur_draw < blur_prob)
    level = None if level_draw is None else (level_draw * NOISE_LEVELS.timesteps).long()
    return Augmentation(sigma, level)


def sampling_augmentation(count: int, noise_level: int | None, device: torch.device | str) -> Augmentation:
    """For sampling and validation: sharp, all at one noise level; None for a network that is told none.

    Raises:
        ConfigError: noise_level is not in 0 … 999.
    """
    sigma = torch.zeros(count, device=device)
    if noise_level is None:
        return Augmentation(sigma, None)
    if not 0 <= noise_level < NOISE_LEVELS.timesteps:
        raise ConfigError(
            f"lowres_noise_level: found {noise_level}, expected 0 to {NOISE_LEVELS.timesteps - 1}; change it."
        )
    return Augmentation(sigma, torch.full((count,), noise_level, device=device, dtype=torch.long))


def augment(
    lowres: Tensor,
    augmentation: Augmentation,
    noise: Tensor | None,
    *,
    kernel_px: int = 3,
    enlarge: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Small pictures (B, C, h, w) in [-1, 1], blurred, enlarged, and then noised, as told.

    Args:
        noise: of the enlarged shape, standard normal; None where the augmentation adds none.
        kernel_px: width of the blur's window, odd.
        enlarge: to the size that the upsampler draws; None leaves that to the network, and the noise small.
    """
    spoilt = blur(lowres, augmentation.blur_sigma, kernel_px)
    if enlarge is not None:
        spoilt = enlarge(spoilt)
    if augmentation.noise_level is None:
        return spoilt
    assert noise is not None
    return add_noise(NOISE_LEVELS, spoilt, noise, augmentation.noise_level)


def blur(pictures: Tensor, sigma: Tensor, kernel_px: int = 3) -> Tensor:
    """Each picture (B, C, H, W) under a Gaussian of its own sigma (B,), in pixels; 0 leaves it as it is.

    The window is sampled, not integrated, sums to 1, and the picture is mirrored at its border, as kornia's
    gaussian_blur2d does in dalle2-pytorch.

    Raises:
        ConfigError: an even window, or one that reaches beyond the mirrored border.
    """
    radius = kernel_px // 2
    if kernel_px % 2 == 0 or radius >= min(pictures.shape[-2:]):
        raise ConfigError(
            f"lowres_blur_kernel_px: found {kernel_px}, expected an odd number below twice the picture's "
            "side; change it."
        )
    h, w = pictures.shape[-2:]
    offset = torch.arange(-radius, radius + 1, device=pictures.device, dtype=torch.float32)
    # no sigma at all is a window of one pixel, not 0 / 0
    window = (-0.5 * (offset / sigma.float()[:, None].clamp(min=1e-3)).square()).exp()
    window = (window / window.sum(dim=1, keepdim=True)).to(pictures.dtype)
    taps = [tap[:, None, None, None] for tap in window.unbind(dim=1)]
    padded = F.pad(pictures, (radius, radius, radius, radius), mode="reflect")
    across = sum((tap * padded[..., k : k + w] for k, tap in enumerate(taps)), torch.zeros(()))
    return sum((tap * across[..., k : k + h, :] for k, tap in enumerate(taps)), torch.zeros(()))
