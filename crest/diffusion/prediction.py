"""What a denoiser predicts, turned into what a loss or a sampler needs. x_t = alpha x_0 + sigma epsilon.

v = alpha epsilon - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512, section 4).
"""

from __future__ import annotations

from torch import Tensor

from crest.config import Prediction
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.errors import ConfigError


def refuse_blind_epsilon(kind: Prediction, schedule: NoiseSchedule) -> None:
    """Noise without signal says nothing of x_0, and a network that predicts it could never start to draw.

    Raises:
        ConfigError: `kind` is "epsilon" and no signal is left at the schedule's last timestep.
    """
    if schedule.alpha_bar.is_meta:
        return  # sizes are looked at, without numbers
    if kind == "epsilon" and float(schedule.alpha_bar[-1]) <= 0:
        raise ConfigError(
            f'prediction: found "epsilon" with noise_schedule "{schedule.name}", which leaves no signal at '
            'the last timestep, expected "x_start" or "v"; change one of the two.'
        )


def target(kind: Prediction, x_start: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should have said."""
    if kind == "epsilon":
        return epsilon
    if kind == "x_start":
        return x_start
    return alpha * epsilon - sigma * x_start


def to_x_start(kind: Prediction, predicted: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean sample that a prediction implies."""
    if kind == "epsilon":
        return (x_t - sigma * predicted) / alpha
    if kind == "x_start":
        return predicted
    return alpha * x_t - sigma * predicted


def to_epsilon(x_start: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a clean sample implies."""
    return (x_t - alpha * x_start) / sigma


def from_x_start(kind: Prediction, x_start: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction that a clean sample implies: the inverse of `to_x_start`."""
    if kind == "epsilon":
        return to_epsilon(x_start, x_t, alpha, sigma)
    if kind == "x_start":
        return x_start
    return (alpha * x_t - x_start) / sigma  # alpha epsilon - sigma x_0, with alpha^2 + sigma^2 = 1


def loss_weight(
    kind: Prediction,
    log_snr: Tensor,
    min_snr_gamma: float | None = None,
    *,
    p2_gamma: float | None = None,
    p2_k: float = 1.0,
) -> Tensor:
    """Per-sample weight of the squared error, (B,).

    Both schemes weigh the error of x_0; whatever is predicted, one mistake costs the same. An error of x_0 is
    SNR times as large an error of epsilon, squared, and SNR + 1 times as large an error of v.

    Args:
        min_snr_gamma: clamp of the signal-to-noise ratio; None does not clamp.
        p2_gamma: how far early, coarse timesteps are preferred; None does not. The paper takes 0.5 or 1.
        p2_k: keeps the weight finite where there is no noise.
    Returns:
        ones, where neither scheme is asked for: the plain error of what is predicted.
    Raises:
        ConfigError: both schemes, or a gamma or k that is not above 0.
    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4: min(SNR, gamma) on x_0. Choi et al. 2022 (arXiv
        2204.00227), section 3.2: 1 / (k + SNR)^gamma on epsilon.
    """
    for name, value in (("min_snr_gamma", min_snr_gamma), ("p2_gamma", p2_gamma), ("p2_k", p2_k)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name}: found {value}, expected a number above 0; change it or take null.")
    snr = log_snr.exp()
    if min_snr_gamma is None and p2_gamma is None:
        return snr.new_ones(snr.shape)
    if min_snr_gamma is not None and p2_gamma is not None:
        raise ConfigError(
            f"min_snr_gamma: found {min_snr_gamma} beside p2_gamma {p2_gamma}, expected one of the two, "
            "which weigh the same error; set the other to null."
        )
    if min_snr_gamma is not None:
        on_x_start = snr.clamp(max=min_snr_gamma)
        on_epsilon = (min_snr_gamma / snr).clamp(max=1)
    else:
        assert p2_gamma is not None
        on_epsilon = (p2_k + snr) ** -p2_gamma
        on_x_start = snr * on_epsilon
    if kind == "epsilon":
        return on_epsilon
    if kind == "x_start":
        return on_x_start
    return on_x_start / (snr + 1)
