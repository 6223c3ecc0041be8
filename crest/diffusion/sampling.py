"""Samplers as interchangeable functions over one denoiser: x_T in, x_0 out.

A denoiser maps (x_t, t) to x_0, guidance and clipping included, so samplers know no network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crest.config import SamplerName
from crest.diffusion.noise_schedule import NoiseSchedule, spaced_timesteps
from crest.diffusion.prediction import to_epsilon

Denoiser = Callable[[Tensor, Tensor], Tensor]


def ddim(denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """Deterministic DDIM from pure noise (B, …) to a clean sample.

    Source: Song et al. 2020 (arXiv 2010.02502), equation 12 with eta = 0; the last step lands on x_0 itself.
    """
    x = noise
    times = spaced_timesteps(schedule.timesteps, steps)
    for index, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device, dtype=torch.long)
        x_start = denoise(x, t)
        if index == len(times) - 1:
            return x_start
        epsilon = to_epsilon(x_start, x, schedule.alpha(t, x.ndim), schedule.sigma(t, x.ndim))
        following = torch.full_like(t, times[index + 1])
        x = schedule.alpha(following, x.ndim) * x_start + schedule.sigma(following, x.ndim) * epsilon
    return x


def dpmpp_2m(denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """DPM-Solver++ (2M): second order, one evaluation a step.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2; lambda = log(alpha/sigma), h = lambda_t -
    lambda_s. The first and the last two steps are of first order: lambda leaps on the way to t = 0, where a
    line through two points foretells nothing, and is infinite at x_0.
    """
    x = noise
    times = spaced_timesteps(schedule.timesteps, steps)
    before: Tensor | None = None
    h_before: Tensor | None = None
    for index, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device, dtype=torch.long)
        x_start = denoise(x, t)
        if index == len(times) - 1:
            return x_start
        following = torch.full_like(t, times[index + 1])
        h = ((schedule.log_snr(following) - schedule.log_snr(t)) / 2).view(-1, *([1] * (x.ndim - 1)))
        direction = x_start
        if before is not None and h_before is not None and index < len(times) - 2:
            r = h_before / h
            direction = (1 + 1 / (2 * r)) * x_start - 1 / (2 * r) * before
        ratio = schedule.sigma(following, x.ndim) / schedule.sigma(t, x.ndim)
        x = ratio * x - schedule.alpha(following, x.ndim) * torch.expm1(-h) * direction
        before, h_before = x_start, h
    return x


SAMPLERS: dict[SamplerName, Callable[[Denoiser, Tensor, NoiseSchedule, int], Tensor]] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
}
