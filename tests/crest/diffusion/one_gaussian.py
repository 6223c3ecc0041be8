"""Data that are one Gaussian, whose denoiser, probability flow and reverse steps are known exactly."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.sampling import Denoiser

MEAN, DEVIATION = 0.7, 0.5


def exact_denoiser(schedule: NoiseSchedule, mean: float = MEAN, deviation: float = DEVIATION) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(mean, deviation^2)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar.to(x_t)[t].view(-1, *([1] * (x_t.ndim - 1)))
        alpha = alpha_bar.sqrt()
        gain = deviation**2 * alpha / (alpha_bar * deviation**2 + 1 - alpha_bar)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def spread(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """alpha_t, and the deviation of x_t."""
    alpha_bar = float(schedule.alpha_bar[t])
    return math.sqrt(alpha_bar), math.sqrt(alpha_bar * DEVIATION**2 + 1 - alpha_bar)


def flow(schedule: NoiseSchedule, x: Tensor) -> Tensor:
    """Where the probability flow takes x_T: standard scores stay, and the last step lands on E[x_0 | it]."""
    (alpha_last, wide), (alpha_first, narrow) = spread(schedule, schedule.timesteps - 1), spread(schedule, 0)
    at_first = alpha_first * MEAN + narrow * (x - alpha_last * MEAN) / wide
    landed = exact_denoiser(schedule)(at_first, torch.zeros(len(x), dtype=torch.long))
    assert isinstance(landed, Tensor)
    return landed


def moments(draw: Callable[[Tensor, Callable[[], Tensor]], Tensor], steps: int) -> tuple[float, float]:
    """Mean and deviation of what a sampler draws, without drawing at random.

    With an affine denoiser the result is affine in every noise that comes in: row 0 is given none of them,
    row i one unit of the i-th.

    Args:
        draw: (x_T (B, 1), source of fresh noise) -> x_0 (B, 1).
        steps: noises that come in, x_T among them, at most.
    """
    units = list(torch.eye(steps + 1, dtype=torch.float64)[1:, :, None])
    fresh = iter(units)
    drawn = draw(next(fresh), lambda: next(fresh))
    return float(drawn[0]), float((drawn[1:] - drawn[0]).square().sum().sqrt())
