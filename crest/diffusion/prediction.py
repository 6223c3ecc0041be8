"""What a denoiser predicts, turned into what a loss or a sampler needs. x_t = alpha x_0 + sigma epsilon.

v = alpha epsilon - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512, section 4).
"""

from __future__ import annotations

from torch import Tensor

from crest.config import Prediction


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


def loss_weight(kind: Prediction, log_snr: Tensor, min_snr_gamma: float | None) -> Tensor:
    """Per-sample weight of the squared error, (B,).

    Args:
        min_snr_gamma: clamp of the signal-to-noise ratio; None weighs every timestep alike.
    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4: min(SNR, gamma) on the x_0 error, which is
        min(SNR, gamma)/SNR on the epsilon error and min(SNR, gamma)/(SNR + 1) on the v error.
    """
    snr = log_snr.exp()
    if min_snr_gamma is None:
        return snr.new_ones(snr.shape)
    clamped = snr.clamp(max=min_snr_gamma)
    if kind == "epsilon":
        return clamped / snr
    if kind == "x_start":
        return clamped
    return clamped / (snr + 1)
