"""Maximum mean discrepancy between drawings and real pictures: unbiased, with interval and noise floor.

Holds what KID and CMMD share; each of them adds its kernel. The V-statistic of published CMMD code is never
used for a claim: at n = 50 its bias is as large as a real shift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.evidence import Evidence, Floats, Gallery
from eval.metrics import Estimate, Outcome
from eval.statistics import jackknife_variance, normal_interval

Kernel = Callable[[Floats, Floats], Floats]
HALVES = 200
"""random splits of the real pictures behind the noise floor"""
FEWEST_REAL = 8
MOST_REAL = 2000
"""real pictures compared with at most: the Gram matrix grows with their square"""


def squared_mmd(k_xx: Floats, k_yy: Floats, k_xy: Floats) -> float:
    """Unbiased estimate of the squared MMD from the three Gram matrices.

    MMD^2_u = sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1) - 2 mean k(x_i, y_j).
    Paper: Gretton et al. 2012, JMLR 13, equation 3.
    """
    n, m = k_xy.shape
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * k_xy.mean())


def biased_squared_mmd(k_xx: Floats, k_yy: Floats, k_xy: Floats) -> float:
    """The V-statistic, for comparison with published CMMD figures only."""
    return float(k_xx.mean() + k_yy.mean() - 2 * k_xy.mean())


@dataclass(frozen=True)
class Discrepancy:
    """A squared MMD and what it becomes without each prompt and without each real picture."""

    value: float
    without_prompt: Floats
    without_real: Floats


def discrepancy(k_xx: Floats, k_yy: Floats, k_xy: Floats, prompt_of: Floats, prompts: int) -> Discrepancy:
    """Squared MMD with all leave-one-out values, from sums of the Gram matrices alone.

    Args:
        prompt_of: (n,) prompt of picture x_i; a prompt is left out with all its pictures.
    """
    n, m = k_xy.shape
    group = np.zeros((prompts, n))
    group[prompt_of.astype(int), np.arange(n)] = 1.0
    sizes = group.sum(axis=1)
    off_x = k_xx - np.diag(np.diag(k_xx))
    off_y = k_yy - np.diag(np.diag(k_yy))
    between = group @ off_x @ group.T  # sums of k over pairs of prompts
    sum_x, sum_y, sum_xy = off_x.sum(), off_y.sum(), k_xy.sum()
    within_y = sum_y / (m * (m - 1))
    left = n - sizes
    xx = (sum_x - 2 * between.sum(axis=1) + np.diag(between)) / (left * (left - 1))
    xy = (sum_xy - group @ k_xy.sum(axis=1)) / (left * m)
    yy = (sum_y - 2 * off_y.sum(axis=1)) / ((m - 1) * (m - 2))
    xy_real = (sum_xy - k_xy.sum(axis=0)) / (n * (m - 1))
    return Discrepancy(
        squared_mmd(k_xx, k_yy, k_xy), xx + within_y - 2 * xy, sum_x / (n * (n - 1)) + yy - 2 * xy_real
    )


def noise_floor(k_yy: Floats, size: int, seed: int) -> tuple[float, float]:
    """What two random halves of the real pictures give: mean and 95 % point over many splits.

    Args:
        size: pictures in each half.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(HALVES):
        order = rng.permutation(len(k_yy))
        a, b = order[:size], order[size : 2 * size]
        values.append(squared_mmd(k_yy[np.ix_(a, a)], k_yy[np.ix_(b, b)], k_yy[np.ix_(a, b)]))
    return float(np.mean(values)), float(np.quantile(values, 0.95))


def measure(
    evidence: Evidence, kernel: Kernel, scale: float, real: Gallery, *, most_real: int = MOST_REAL
) -> Outcome:
    """Distance of every system from the real pictures, and the differences from the baseline's.

    Args:
        evidence: all drawings.
        kernel: two sets of unit-length rows -> their Gram matrix.
        scale: factor by which published figures are multiplied.
        real: the pictures to be near to.
        most_real: how many of them are compared with at most, chosen by seed.
    """
    y = real.image_embed
    if len(y) > most_real:
        y = y[np.random.default_rng(evidence.seed).permutation(len(y))[:most_real]]
    k_yy = kernel(y, y) * scale
    prompts, prompt_of = len(evidence.prompts), evidence.prompt_of.astype(np.float64)
    found: dict[str, Discrepancy] = {}
    figures: dict[str, float] = {}
    for name, gallery in evidence.systems.items():
        x = gallery.image_embed
        k_xx, k_xy = kernel(x, x) * scale, kernel(x, y) * scale
        found[name] = discrepancy(k_xx, k_yy, k_xy, prompt_of, prompts)
        figures[f"{name}.biased"] = biased_squared_mmd(k_xx, k_yy, k_xy)
    size = min(len(evidence.prompt_of), len(y) // 2)
    mean, high = noise_floor(k_yy, size, evidence.seed)
    figures |= {
        "noise_floor": high,
        "noise_floor_mean": mean,
        "noise_floor_pictures": size,
        "real_pictures": len(y),
    }
    zero = Discrepancy(0.0, np.zeros(prompts), np.zeros(len(y)))
    base = found[evidence.baseline]
    return Outcome(
        estimates={name: _estimate(d, zero) for name, d in found.items()},
        differences={name: _estimate(d, base) for name, d in found.items() if name != evidence.baseline},
        figures=figures,
        note=f"two random halves of the real pictures ({size} each) stay below {high:.3g} in 95 % of splits",
    )


def _estimate(d: Discrepancy, base: Discrepancy) -> Estimate:
    """Interval by the two-sample jackknife: prompts and real pictures both vary."""
    variance = jackknife_variance(d.without_prompt - base.without_prompt)
    variance += jackknife_variance(d.without_real - base.without_real)
    units = min(len(d.without_prompt), len(d.without_real))
    interval, p = normal_interval(d.value - base.value, variance, units)
    return Estimate(interval, p)


def too_few(real: Gallery | None) -> str | None:
    """Why a distance to real pictures can't be measured, or None when it can."""
    if real is None:
        return "no real pictures: eval.shards is not set, or its test split is empty"
    if len(real) < FEWEST_REAL:
        return (
            f"the test split holds {len(real)} real pictures, too few for a distance (at least {FEWEST_REAL})"
        )
    return None
