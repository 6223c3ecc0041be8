"""How much noise is in a sample at each timestep: alpha^2 + sigma^2 = 1, from timestep 0 (clean) upward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crest.config import ScheduleName

TINY = 1e-20
"""Where dalle2-pytorch cuts the posterior's variance, which is 0 on the way to x_0."""


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0), s < t: a Gaussian around a weighted sum. Ho et al. 2020, equations 6 and 7."""

    x_start_weight: Tensor
    """of x_0 in the mean"""
    x_t_weight: Tensor
    """of x_t in the mean"""
    log_variance: Tensor
    """log of beta-tilde, the smallest variance that a reverse step can have; cut at log 1e-20"""
    log_beta: Tensor
    """log of beta, the largest variance that a reverse step can have"""

    def mean(self, x_start: Tensor, x_t: Tensor) -> Tensor:
        """Of q(x_s | x_t, x_0), shaped like its arguments."""
        return self.x_start_weight * x_start + self.x_t_weight * x_t


class NoiseSchedule:
    """A variance-preserving discrete schedule.

    Args:
        name: "cosine" (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17), "linear" (Ho et al. 2020,
            arXiv 2006.11239, section 4), "quadratic", "sigmoid" and "jsd" (Sohl-Dickstein et al. 2015, arXiv
            1503.03585, section 2.4.1: beta_t = 1/(T - t + 1), no signal left at the last timestep). Names
            and formulas are dalle2-pytorch's; all but "cosine" and "jsd" are scaled to any T.
        timesteps: T, how many; the network sees t in 0 … T-1.
        log_snr_shift: added to the log signal-to-noise ratio at every timestep. A negative shift spends more
            timesteps where a picture's layout is decided, which large flat areas need (Hoogeboom et al. 2023,
            arXiv 2301.11093, section 3.1).
    """

    def __init__(self, name: ScheduleName, timesteps: int, log_snr_shift: float = 0.0) -> None:
        self.name, self.timesteps = name, timesteps
        self.alpha_bar = torch.cumprod(1 - _betas(name, timesteps), dim=0)
        if log_snr_shift:
            self.alpha_bar = torch.sigmoid(torch.logit(self.alpha_bar) + log_snr_shift)
        before = torch.cat((self.alpha_bar.new_ones(1), self.alpha_bar[:-1]))
        one_back = _posterior(self.alpha_bar, before)
        tables = {
            "alpha": self.alpha_bar.sqrt(),
            "sigma": (1 - self.alpha_bar).sqrt(),
            "log_snr": torch.log(self.alpha_bar) - torch.log1p(-self.alpha_bar),
            **vars(one_back),
        }
        # one copy a device, or each step would wait for a transfer
        self._tables = {torch.device("cpu"): {key: table.float() for key, table in tables.items()}}

    def alpha(self, t: Tensor, ndim: int) -> Tensor:
        """sqrt(alpha_bar_t) float32, shaped (B, 1, …) for a sample of `ndim` dimensions."""
        return self._gather("alpha", t, ndim)

    def sigma(self, t: Tensor, ndim: int) -> Tensor:
        """sqrt(1 - alpha_bar_t) float32, shaped (B, 1, …)."""
        return self._gather("sigma", t, ndim)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_bar_t / (1 - alpha_bar_t)) float32 (B,)."""
        return self._gather("log_snr", t, 1)

    def posterior(self, t: Tensor, ndim: int) -> Posterior:
        """One timestep back, q(x_{t-1} | x_t, x_0): four float32 tensors (B, 1, …). From t = 0 it is x_0."""
        return Posterior(**{name: self._gather(name, t, ndim) for name in Posterior.__dataclass_fields__})

    def posterior_at(self, time: int, following: int) -> Posterior:
        """Any number of timesteps back: four float64 scalars on the CPU, which suit samples on any device.

        Args:
            time: where the sample is, in 0 … T-1.
            following: where it goes, less than `time`; -1 is x_0.
        Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 19.
        """
        one = torch.ones((), dtype=torch.float64)
        return _posterior(self.alpha_bar[time], self.alpha_bar[following] if following >= 0 else one)

    def _gather(self, name: str, t: Tensor, ndim: int) -> Tensor:
        if t.device not in self._tables:
            cpu = self._tables[torch.device("cpu")]
            self._tables[t.device] = {key: table.to(t.device) for key, table in cpu.items()}
        values: Tensor = self._tables[t.device][name][t]
        return values.view(-1, *([1] * (ndim - 1)))


def _betas(name: ScheduleName, timesteps: int) -> Tensor:
    """Variance added by each timestep (T,) float64, never all of it but for "jsd"."""
    scale = 1000 / timesteps  # a thousand small steps or a hundred large ones end at the same noise
    low, high = scale * 1e-4, scale * 0.02
    if name == "cosine":
        s = 0.008
        grid = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
        f = torch.cos((grid + s) / (1 + s) * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(0, 0.999)
    if name == "jsd":
        return torch.linspace(timesteps, 1, timesteps, dtype=torch.float64).reciprocal()
    if name == "linear":
        betas = torch.linspace(low, high, timesteps, dtype=torch.float64)
    elif name == "quadratic":
        betas = torch.linspace(low**0.5, high**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        betas = low + (high - low) * torch.linspace(-6, 6, timesteps, dtype=torch.float64).sigmoid()
    return betas.clamp(max=0.999)


def _posterior(alpha_bar: Tensor, alpha_bar_after: Tensor) -> Posterior:
    """From one noise level to a lower one, float64 of any one shape. Ho et al. 2020, equation 7."""
    kept = alpha_bar / alpha_bar_after
    beta = 1 - kept
    variance = beta * (1 - alpha_bar_after) / (1 - alpha_bar)
    return Posterior(
        x_start_weight=alpha_bar_after.sqrt() * beta / (1 - alpha_bar),
        x_t_weight=kept.sqrt() * (1 - alpha_bar_after) / (1 - alpha_bar),
        log_variance=variance.clamp(min=TINY).log(),
        log_beta=beta.log(),
    )


def add_noise(schedule: NoiseSchedule, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Sample q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I): Ho et al. 2020, equation 4.

    Args:
        x_start: (B, …); noise: same shape, standard normal; t: (B,) int64.
    """
    return schedule.alpha(t, x_start.ndim) * x_start + schedule.sigma(t, x_start.ndim) * noise


def spaced_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` distinct timesteps from T-1 down to 0, evenly spaced, both ends included."""
    steps = min(steps, timesteps)
    if steps == 1:
        return [timesteps - 1]
    return [round((timesteps - 1) * (1 - i / (steps - 1))) for i in range(steps)]
