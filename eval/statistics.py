"""How sure are we: intervals, p-values, effect sizes and the verdict, with the prompt as the unit.

Pure functions of numbers. The prompt is the unit because pictures of one prompt stand or fall together;
answers and pictures are never treated as independent draws here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
Z = 1.959963984540054  # the 97.5 % point of the normal distribution
Z_POWER = 0.8416212335729143  # its 80 % point


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How one system differs from the baseline in one metric (system minus baseline)."""

    difference: Interval
    p: float | None
    """two-sided; None for a metric that only describes"""
    units: int
    """prompts that the difference rests on"""
    effect_size: float | None = None
    """mean difference over the standard deviation of the differences (paired metrics only)"""
    win_share: float | None = None
    """share of prompts on which the system is better, ties counted half (paired metrics only)"""
    spread: float | None = None
    """standard deviation of the per-prompt differences (paired metrics only)"""


def mean_interval(values: Array, *, resamples: int, seed: int) -> Interval:
    """The mean with its BCa bootstrap interval (Efron 1987), resampling prompts.

    Args:
        values: (P,), one figure a prompt.
    """
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2 or float(np.ptp(values)) == 0.0:
        return Interval(mean, mean, mean)
    for method in ("BCa", "percentile"):  # BCa is undefined where every resample lies on one side of the mean
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (values,), np.mean, n_resamples=resamples, confidence_level=LEVEL, method=method, batch=1000,
                rng=np.random.default_rng(seed), vectorized=True,
            ).confidence_interval  # fmt: skip
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(mean, float(found.low), float(found.high))
    return Interval(mean, mean, mean)


def sign_flip_p(differences: Array, *, resamples: int, seed: int) -> float:
    """Two-sided p of the mean difference when each prompt's sign is a coin flip under the null.

    Exact over all 2^P signs where that is no more than `resamples`, else (1 + hits) / (1 + resamples).

    Args:
        differences: (P,), system minus baseline.
    """
    count = len(differences)
    observed = abs(float(differences.sum()))
    slack = 1e-9 * max(
        1.0, float(np.abs(differences).sum())
    )  # sums in another order differ in the last digits
    if 2**count <= resamples:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)[None, :]) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed - slack))
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, resamples, 1000):
        size = min(1000, resamples - start)
        signs = 1 - 2 * rng.integers(0, 2, size=(size, count))
        hits += int(np.sum(np.abs(signs @ differences) >= observed - slack))
    return (1 + hits) / (1 + resamples)


def wilson(successes: float, count: int) -> Interval:
    """Share of successes with Wilson's 95 % interval; it never leaves [0, 1]."""
    if count == 0:
        return Interval(0.5, 0.0, 1.0)
    share = successes / count
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def compare(
    system: Array, baseline: Array, *, resamples: int, seed: int, higher_is_better: bool = True
) -> Comparison:
    """Compare two systems prompt by prompt.

    Args:
        system: (P,), one figure a prompt.
        baseline: (P,), the same prompts.
    """
    differences = system - baseline
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    better = differences if higher_is_better else -differences
    wins = float(np.mean(better > 0) + 0.5 * np.mean(better == 0))
    mean = float(differences.mean())
    return Comparison(
        difference=mean_interval(differences, resamples=resamples, seed=seed),
        p=sign_flip_p(differences, resamples=resamples, seed=seed),
        units=len(differences),
        effect_size=mean / spread if spread > 0 else None,
        win_share=wins,
        spread=spread,
    )


def needed_prompts(difference: float, spread: float) -> int | None:
    """Prompts that show a difference of this size with 80 % power at 5 %, two-sided; None when it is zero.

    n = (z_.975 + z_.8)^2 (spread / difference)^2 + z_.975^2 / 2; the last term pays for the estimated spread
    (Guenther 1981).
    """
    if difference == 0.0:
        return None
    return max(2, math.ceil(((Z + Z_POWER) * spread / difference) ** 2 + Z * Z / 2))


def jackknife_variance(leave_one_out: Array) -> float:
    """Variance of a statistic from its values with each unit left out in turn (Tukey).

    Args:
        leave_one_out: (P,), the statistic without unit i.
    """
    count = len(leave_one_out)
    return float((count - 1) / count * np.sum((leave_one_out - leave_one_out.mean()) ** 2))


def normal_interval(value: float, variance: float, units: int) -> tuple[Interval, float]:
    """Interval and two-sided p against 0 from a variance, by Student's t (units - 1)."""
    from scipy import stats

    error = math.sqrt(max(variance, 0.0))
    if error == 0.0:
        return Interval(value, value, value), 1.0 if value == 0.0 else 0.0
    half = float(stats.t.ppf(0.5 + LEVEL / 2, units - 1)) * error
    return Interval(value, value - half, value + half), float(2 * stats.t.sf(abs(value) / error, units - 1))


def verdict(
    metric: str, system: str, baseline: str, means: tuple[float, float], comparison: Comparison,
    *, higher_is_better: bool = True, is_share: bool = False,
) -> str:  # fmt: skip
    """The one sentence that the report opens with; it may be that no difference could be shown.

    Args:
        metric: title of the primary metric.
        means: the system's and the baseline's mean.
    """
    d = comparison.difference
    evidence = (
        f"{metric} {figure(means[0], is_share=is_share)} against {figure(means[1], is_share=is_share)}, "
        f"difference {span(d, is_share=is_share)}, {p_text(comparison.p)}, {comparison.units} prompts"
    )
    if comparison.p is not None and comparison.p < 1 - LEVEL:
        word = "better" if (d.value > 0) == higher_is_better else "worse"
        return f"{system} is {word} than {baseline}: {evidence}."
    needed = needed_prompts(d.value, comparison.spread or 0.0)
    advice = (
        f"n = {needed} prompts would be needed to show one of this size"
        if needed is not None and needed > comparison.units
        else "the two means are equal"
        if needed is None
        else "more prompts would be needed to settle it"
    )
    return f"No difference could be shown between {system} and {baseline}: {evidence}; {advice}."


def figure(value: float, *, is_share: bool = False) -> str:
    """A number with three significant digits and a real minus sign; a share in per cent with one decimal."""
    if not math.isfinite(value):
        return "–"
    if is_share:
        return f"{100 * value:.1f}\u00a0%".replace("-", "−")
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}".replace("-", "−")


def span(interval: Interval, *, is_share: bool = False) -> str:
    """A difference with its interval in words; shares differ by points."""
    unit = " points" if is_share else ""
    value, low, high = (
        figure(number, is_share=is_share).removesuffix("\u00a0%")
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit} (95\u00a0% interval {low} to {high})"


def p_text(p: float | None) -> str:
    """A p-value in words that never claim zero."""
    if p is None:
        return "no test"
    if p < 0.001:
        return "p < 0.001"
    rounded = f"{p:.3f}"
    return f"p = {p:.4f}" if rounded == "0.050" else f"p = {rounded}"  # which side of 0.05 must stay visible
