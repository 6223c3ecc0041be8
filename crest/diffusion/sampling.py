"""Samplers as interchangeable functions over one denoiser: x_T in, x_0 out.

A denoiser maps (x_t, t) to x_0, guidance and clipping included, so samplers know no network. Those that add
noise on the way take it from the noise that they start with, unless told otherwise: each is a function of its
arguments.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from crest.config import SamplerName
from crest.diffusion.learned_variance import log_variance
from crest.diffusion.noise_schedule import NoiseSchedule, spaced_timesteps

Denoiser = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""(x_t (B, …), t (B,) int64) -> x_0 of x_t's shape, or (x_0, variance fraction; see learned_variance.py).
With `self_cond` a third argument comes in: the x_0 of the step before, None at the first."""
FreshNoise = Callable[[], Tensor]
"""Standard normal numbers of x_t's shape, others at each call."""
Move = Callable[[Tensor, Tensor, Tensor | None, int, int], Tensor]
"""(x_t, x_0, variance fraction, t, s) -> x_s"""


class Sampler(Protocol):
    """From pure noise (B, …) to a clean sample in `steps` questions to the denoiser."""

    def __call__(
        self,
        denoise: Denoiser,
        noise: Tensor,
        schedule: NoiseSchedule,
        steps: int,
        *,
        self_cond: bool = False,
    ) -> Tensor:
        """Draw."""
        ...


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    self_cond: bool = False,
    eta: float = 0.0,
    fresh: FreshNoise | None = None,
) -> Tensor:
    """DDIM from pure noise (B, …) to a clean sample.

    Args:
        eta: 0 adds no noise on the way, 1 as much as "ddpm" with its small variance does.
        fresh: where that noise comes from; None derives it from `noise`.
    Source: Song et al. 2020 (arXiv 2010.02502), equations 12 and 16; the last step lands on x_0 itself.
    """
    fresh = fresh or noise_after(noise)

    def move(x: Tensor, x_start: Tensor, _: Tensor | None, time: int, following: int) -> Tensor:
        alpha, sigma = _levels(schedule, time)
        alpha_after, sigma_after = _levels(schedule, following)
        epsilon = (x - alpha * x_start) / sigma
        if eta == 0:
            return alpha_after * x_start + sigma_after * epsilon
        added = eta * math.exp(0.5 * float(schedule.posterior_at(time, following).log_variance))
        kept = math.sqrt(max(sigma_after**2 - added**2, 0.0))
        return alpha_after * x_start + kept * epsilon + added * fresh()

    return _descend(denoise, noise, schedule, steps, self_cond, move)


def ddpm(
    denoise: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    self_cond: bool = False,
    variance: Literal["small", "large"] = "small",
    fresh: FreshNoise | None = None,
) -> Tensor:
    """Ancestral sampling from pure noise (B, …) to a clean sample, over all timesteps or some.

    Args:
        variance: of a step, where the denoiser says none: "small" is beta-tilde, exact for data of one point,
            "large" is beta, exact for data that are standard normal. One that the denoiser says is taken.
        fresh: where the added noise comes from; None derives it from `noise`.
    Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and section 3.2; Nichol and Dhariwal 2021 (arXiv
        2102.09672), equations 15 and 19. The last step lands on x_0 itself, the mean of its posterior.
    """
    fresh = fresh or noise_after(noise)

    def move(x: Tensor, x_start: Tensor, fraction: Tensor | None, time: int, following: int) -> Tensor:
        posterior = schedule.posterior_at(time, following)
        if fraction is not None:
            log_var = log_variance(fraction, posterior)
        else:
            log_var = posterior.log_variance if variance == "small" else posterior.log_beta
        return posterior.mean(x_start, x) + (0.5 * log_var).exp() * fresh()

    return _descend(denoise, noise, schedule, steps, self_cond, move)


def ddpm_large(
    denoise: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    self_cond: bool = False,
    fresh: FreshNoise | None = None,
) -> Tensor:
    """`ddpm` with beta for the variance of a step."""
    return ddpm(denoise, noise, schedule, steps, self_cond=self_cond, variance="large", fresh=fresh)


def dpmpp_2m(
    denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, steps: int, *, self_cond: bool = False
) -> Tensor:
    """DPM-Solver++ (2M): second order, one evaluation a step.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2; lambda = log(alpha/sigma), h = lambda_t -
    lambda_s. The first and the last two steps are of first order: lambda leaps on the way to t = 0, where a
    line through two points foretells nothing, and is infinite at x_0.
    """
    before: Tensor | None = None
    h_before = 0.0

    def move(x: Tensor, x_start: Tensor, _: Tensor | None, time: int, following: int) -> Tensor:
        nonlocal before, h_before
        (alpha, sigma), (alpha_after, sigma_after) = _levels(schedule, time), _levels(schedule, following)
        # alpha may be 0 at the start: then h is infinite and the step first-order, as it is anyway
        h = math.log(alpha_after / sigma_after) - (math.log(alpha / sigma) if alpha else -math.inf)
        direction = x_start
        if before is not None and following > 0:
            r = h_before / h
            direction = (1 + 1 / (2 * r)) * x_start - 1 / (2 * r) * before
        before, h_before = x_start, h
        return sigma_after / sigma * x - alpha_after * math.expm1(-h) * direction

    return _descend(denoise, noise, schedule, steps, self_cond, move)


def noise_after(noise: Tensor) -> FreshNoise:
    """Further noise for each row of `noise` (B, …), which follows from that row alone, on every device."""
    generators: list[torch.Generator] = []

    def fresh() -> Tensor:
        if not generators:
            for row in noise.detach().float().cpu().contiguous():
                digest = hashlib.sha256(row.numpy().tobytes()).digest()
                generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
        rows = [torch.randn(noise.shape[1:], generator=generator) for generator in generators]
        return torch.stack(rows).to(noise)

    return fresh


def _descend(
    denoise: Denoiser, noise: Tensor, schedule: NoiseSchedule, steps: int, self_cond: bool, move: Move
) -> Tensor:
    """From x_T to x_0: ask at each of the timesteps, move between them, and end on the last answer."""
    x, x_start = noise, None
    times = spaced_timesteps(schedule.timesteps, steps)
    for time, following in zip(times, (*times[1:], None), strict=True):
        t = torch.full((len(x),), time, device=x.device, dtype=torch.long)
        # Chen et al. 2022 (arXiv 2208.04202), algorithm 2: the estimate of the step before is shown
        answer = denoise(x, t, x_start) if self_cond else denoise(x, t)
        x_start, fraction = answer if isinstance(answer, tuple) else (answer, None)
        if following is None:
            break
        x = move(x, x_start, fraction, time, following)
    assert x_start is not None
    return x_start


def _levels(schedule: NoiseSchedule, time: int) -> tuple[float, float]:
    """alpha and sigma of a timestep."""
    alpha_bar = float(schedule.alpha_bar[time])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "ddpm": ddpm,
    "ddpm_large": ddpm_large,
}
