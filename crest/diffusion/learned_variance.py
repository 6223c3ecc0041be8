"""A network that also says how sure it is: the variance of a reverse step, and the bound that trains it.

Paper: Nichol and Dhariwal 2021 (arXiv 2102.09672), section 3.1. The mean is trained by the simple loss alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest.config import Prediction
from crest.diffusion.noise_schedule import NoiseSchedule, Posterior
from crest.diffusion.prediction import to_x_start

LEAST_PROBABILITY = 1e-12
"""Of a pixel's value, as in Ho et al. 2020's and Nichol and Dhariwal's code: a far miss costs 40 bits."""


def split_prediction(output: Tensor) -> tuple[Tensor, Tensor]:
    """A network's output (B, 2C, …) as its prediction and its fraction, (B, C, …) each."""
    predicted, fraction = output.chunk(2, dim=1)
    return predicted, fraction


def constrain(fraction: Tensor) -> Tensor:
    """A fraction kept in (-1, 1), as dalle2-pytorch's learned_variance_constrain_frac keeps it."""
    return 2 * ((fraction + 1) / 2).sigmoid() - 1


def log_variance(fraction: Tensor, posterior: Posterior) -> Tensor:
    """Log of the reverse step's variance, between the least and the largest that it can sensibly be.

    Args:
        fraction: what the network says, (B, C, …); -1 stands for beta-tilde, 1 for beta; it may go beyond.
    Source: Nichol and Dhariwal 2021, equation 15, with v = (fraction + 1) / 2.
    """
    v = (fraction + 1) / 2
    return v * posterior.log_beta + (1 - v) * posterior.log_variance


def variational_bound(
    kind: Prediction,
    predicted: Tensor,
    fraction: Tensor,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """Each sample's term of the variational bound, for the gradient of the variance only.

    Args:
        predicted: the network's prediction (B, C, …) of the kind; no gradient goes back through it.
        fraction: its variance, see `log_variance`.
        x_start: pictures in [-1, 1] of 256 values a channel; t: (B,) int64.
    Returns:
        (B,) float32 in bits per channel of a pixel: at t = 0 the negative log likelihood of the picture, else
        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). Bits, as Nichol and Dhariwal's code has it.
    Source: Nichol and Dhariwal 2021, equations 4 to 6.
    """
    x_start, x_t, ndim = x_start.float(), x_t.float(), x_start.ndim
    alpha, sigma = schedule.alpha(t, ndim), schedule.sigma(t, ndim)
    posterior = schedule.posterior(t, ndim)
    x_start_hat = to_x_start(kind, predicted.detach().float(), x_t, alpha, sigma)
    log_var = log_variance(fraction.float(), posterior)
    is_first = (t == 0).view(-1, *([1] * (ndim - 1)))
    # at t = 0 beta-tilde is nearly 0: KL is kept finite there, or its gradient would be 0 times infinity
    bound = torch.where(
        is_first,
        -_log_likelihood(x_start, x_start_hat, log_var),
        _kl(
            posterior.log_variance.where(~is_first, 0.0),
            posterior.x_start_weight * (x_start - x_start_hat),  # of the means; x_t's share is the same
            log_var.where(~is_first, 0.0),
        ),
    )
    return bound.flatten(1).mean(dim=1) / math.log(2)


def hybrid_loss(simple: Tensor, bound: Tensor, timesteps: int, weight: float = 0.001) -> Tensor:
    """L_simple + weight L_vlb, (B,), for t drawn uniformly.

    L_vlb is a sum over all T timesteps, so one drawn term stands for T of them. dalle2-pytorch leaves the T
    out and so weighs the bound a thousandth as much at T = 1000: `weight / timesteps` gives its loss.

    Args:
        simple: the weighted error of the prediction (B,); bound: of `variational_bound` (B,).
    Source: Nichol and Dhariwal 2021, equation 16 with lambda = 0.001.
    """
    return simple + weight * timesteps * bound


def _kl(log_var_true: Tensor, mean_difference: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(m, exp log_var_true) || N(m + mean_difference, exp log_var)), in nats."""
    ratio = (log_var_true - log_var).exp()
    return 0.5 * (log_var - log_var_true + ratio - 1 + mean_difference.square() * (-log_var).exp())


def _log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log of a Gaussian's mass over the bin around x, one of 256 in [-1, 1]; the outer two are open.

    Source: Ho et al. 2020 (arXiv 2006.11239), equation 13.
    """
    inverse = (-0.5 * log_var).exp()
    upper = (x - mean + 1 / 255) * inverse
    lower = (x - mean - 1 / 255) * inverse
    upper = upper.where(x < 0.999, torch.inf)
    lower = lower.where(x > -0.999, -torch.inf)
    # mirrored to where the distribution function is small, and float32 can tell its values apart
    mirrored = lower > 0
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    root = math.sqrt(0.5)  # erfc, because 1 + erf has no small values
    mass = (torch.erfc(-root * high) - torch.erfc(-root * low)) / 2
    return mass.clamp(min=LEAST_PROBABILITY).log()
