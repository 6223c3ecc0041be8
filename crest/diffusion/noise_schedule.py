"""How much noise is in a sample at each timestep: alpha^2 + sigma^2 = 1, from timestep 0 (clean) upward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest.config import ScheduleName


class NoiseSchedule:
    """A variance-preserving discrete schedule.

    Args:
        name: "cosine" (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17) or "linear" (Ho et al. 2020,
            arXiv 2006.11239, section 4, scaled to any number of timesteps).
        timesteps: T, how many; the network sees t in 0 … T-1.
        log_snr_shift: added to the log signal-to-noise ratio at every timestep. A negative shift spends more
            timesteps where a picture's layout is decided, which large flat areas need (Hoogeboom et al. 2023,
            arXiv 2301.11093, section 3.1).
    """

    def __init__(self, name: ScheduleName, timesteps: int, log_snr_shift: float = 0.0) -> None:
        self.name, self.timesteps = name, timesteps
        if name == "cosine":
            s = 0.008
            grid = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
            f = torch.cos((grid + s) / (1 + s) * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp(0, 0.999)
        else:
            scale = 1000 / timesteps
            betas = torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64).clamp(
                max=0.999
            )
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        if log_snr_shift:
            self.alpha_bar = torch.sigmoid(torch.logit(self.alpha_bar) + log_snr_shift)

    def alpha(self, t: Tensor, ndim: int) -> Tensor:
        """sqrt(alpha_bar_t) float32, shaped (B, 1, …) for a sample of `ndim` dimensions."""
        return self._gather(self.alpha_bar.sqrt(), t, ndim)

    def sigma(self, t: Tensor, ndim: int) -> Tensor:
        """sqrt(1 - alpha_bar_t) float32, shaped (B, 1, …)."""
        return self._gather((1 - self.alpha_bar).sqrt(), t, ndim)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_bar_t / (1 - alpha_bar_t)) float32 (B,)."""
        return self._gather(torch.log(self.alpha_bar) - torch.log1p(-self.alpha_bar), t, 1)

    @staticmethod
    def _gather(table: Tensor, t: Tensor, ndim: int) -> Tensor:
        values = table.to(t.device)[t].float()
        return values.view(-1, *([1] * (ndim - 1)))


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
