"""Intervals, p-values and verdicts against closed forms, enumeration and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    Comparison,
    Interval,
    compare,
    figure,
    holm,
    jackknife_variance,
    mean_interval,
    needed_prompts,
    normal_interval,
    p_text,
    sign_flip_p,
    span,
    verdict,
    wilson,
)


def bca_by_hand(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Efron 1987, equations 2.3 and 6.6, written without scipy's bootstrap."""
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(values, len(values)).mean() for _ in range(resamples)])
    z0 = stats.norm.ppf(np.mean(means < values.mean()) + 0.5 * np.mean(means == values.mean()))
    left_out = np.array([np.delete(values, i).mean() for i in range(len(values))])
    gap = left_out.mean() - left_out
    a = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)
    points = [stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in stats.norm.ppf([0.025, 0.975])]
    low, high = np.quantile(means, points)
    return float(low), float(high)


def test_bca_interval_agrees_with_efrons_formula() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    found = mean_interval(values, resamples=9999, seed=0)
    low, high = bca_by_hand(values, 9999, seed=5)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert found.high - found.value > found.value - found.low  # skewed data, skewed interval


def test_interval_of_equal_values_is_that_value() -> None:
    assert mean_interval(np.full(10, 3.0), resamples=99, seed=0) == Interval(3.0, 3.0, 3.0)


def test_interval_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(2).normal(size=30)
    assert mean_interval(values, resamples=999, seed=4) == mean_interval(values, resamples=999, seed=4)


def test_sign_flip_is_exact_for_few_prompts() -> None:
    d = np.array([0.3, -0.1, 0.5, 0.2, 0.2, -0.4, 0.1])
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([-1, 1], repeat=len(d))]
    exact = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    assert sign_flip_p(d, resamples=9999, seed=0) == pytest.approx(exact)


def test_sampled_sign_flip_agrees_with_scipy() -> None:
    d = np.random.default_rng(3).normal(0.25, 1, size=40)
    oracle = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=20000, rng=np.random.default_rng(0)
    ).pvalue
    assert sign_flip_p(d, resamples=20000, seed=1) == pytest.approx(oracle, abs=0.012)


def test_sign_flip_never_says_zero() -> None:
    assert sign_flip_p(np.ones(50), resamples=999, seed=0) == pytest.approx(1 / 1000)


def test_sign_flip_holds_its_level_under_the_null() -> None:
    rng = np.random.default_rng(4)
    found = [sign_flip_p(rng.normal(size=25), resamples=399, seed=n) < 0.05 for n in range(600)]
    assert 0.03 <= np.mean(found) <= 0.07


def test_wilson_agrees_with_scipy() -> None:
    for won, count in ((0, 7), (3, 7), (50, 80), (9, 9)):
        oracle = stats.binomtest(won, count).proportion_ci(method="wilson")
        found = wilson(won, count)
        assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("effect", [0.15, 0.3, 0.6])
def test_needed_prompts_have_80_per_cent_power(effect: float) -> None:
    n = needed_prompts(effect, 1.0)
    assert n is not None

    def power(n: int) -> float:
        limit = stats.t.ppf(0.975, n - 1)
        return float(
            stats.nct.sf(limit, n - 1, effect * np.sqrt(n))
            + stats.nct.cdf(-limit, n - 1, effect * np.sqrt(n))
        )

    assert power(n) >= 0.795
    assert power(n - 3) < 0.80
    assert needed_prompts(0.0, 1.0) is None


def test_jackknife_of_a_mean_is_its_variance() -> None:
    values = np.random.default_rng(5).normal(size=17)
    left_out = np.array([np.delete(values, i).mean() for i in range(17)])
    assert jackknife_variance(left_out) == pytest.approx(values.var(ddof=1) / 17)


def test_normal_interval_agrees_with_the_t_test() -> None:
    values = np.random.default_rng(6).normal(0.4, 1, size=20)
    interval, p = normal_interval(values.mean(), values.var(ddof=1) / 20, 20)
    oracle = stats.ttest_1samp(values, 0)
    assert p == pytest.approx(oracle.pvalue)
    assert (interval.low, interval.high) == pytest.approx(oracle.confidence_interval())


def test_comparison_counts_ties_half_and_knows_the_better_direction() -> None:
    system, base = np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.0, 1.0])
    assert compare(system, base, resamples=99, seed=0).win_share == pytest.approx(0.625)
    assert compare(system, base, resamples=99, seed=0, higher_is_better=False).win_share == pytest.approx(
        0.375
    )


def comparison(difference: float, p: float, spread: float = 2.0) -> Comparison:
    return Comparison(Interval(difference, difference - 1, difference + 1), p, 40, difference, 0.6, spread)


def test_verdict_says_better_worse_or_that_nothing_could_be_shown() -> None:
    better = verdict("CLIPScore", "tuned", "stock", (27.0, 22.0), comparison(5.0, 0.0001))
    assert better.startswith("tuned is better than stock: CLIPScore 27.0 against 22.0, difference 5.00")
    assert "p < 0.001, 40 prompts" in better
    assert verdict("X", "a", "b", (1, 3), comparison(-2, 0.01)).startswith("a is worse than b")
    assert verdict("X", "a", "b", (1, 3), comparison(-2, 0.01), higher_is_better=False).startswith(
        "a is better"
    )
    needed = needed_prompts(0.2, 2.0)
    none = verdict("CLIPScore", "tuned", "stock", (22.2, 22.0), comparison(0.2, 0.4))
    assert none.startswith("No difference could be shown between tuned and stock")
    assert none.endswith(f"; n = {needed} prompts would be needed to show one of this size.")
    assert "the two means are equal" in verdict("X", "a", "b", (1, 1), comparison(0.0, 1.0, spread=0.0))


def test_p_shows_on_which_side_of_five_percent_it_lies() -> None:
    assert [p_text(p) for p in (None, 0.0004, 0.0123, 0.0497, 0.0502, 0.2)] == [
        "no test", "p < 0.001", "p = 0.012", "p = 0.0497", "p = 0.0502", "p = 0.200",
    ]  # fmt: skip


def test_numbers_are_written_with_three_digits() -> None:
    assert [figure(x) for x in (0, 1234.5, 27.123, 0.01234, -1.5, 1e-9)] == [
        "0", "1234", "27.1", "0.0123", "−1.50", "0.000000",
    ]  # fmt: skip
    assert figure(0.1234, is_share=True) == "12.3\u00a0%"
    assert span(Interval(0.1, 0.05, 0.2), is_share=True) == "10.0 points (95\u00a0% interval 5.0 to 20.0)"
