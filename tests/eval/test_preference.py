"""Preference statistics against brute force, closed forms and simulated raters of known taste."""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval.survey.preference import krippendorff_alpha, naive_rate, needed_factor, two_way_rate


def brute_force_variance(y: np.ndarray, prompts: np.ndarray, raters: np.ndarray) -> float:
    """Every pair of answers, term by term."""
    e, n = y - y.mean(), len(y)

    def part(same: np.ndarray, groups: int) -> float:
        total = sum(e[i] * e[j] for i, j in itertools.product(range(n), repeat=2) if same[i, j])
        return float(groups / (groups - 1) * total / n**2)

    v_p = part(prompts[:, None] == prompts[None], len(set(prompts)))
    v_r = part(raters[:, None] == raters[None], len(set(raters)))
    v_c = part(np.eye(n, dtype=bool), n)
    return max(v_p + v_r - v_c, v_p, v_r)


def test_two_way_error_is_the_sum_over_pairs_that_share_prompt_or_rater() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        y = rng.choice([0, 0.5, 1], size=40)
        prompts, raters = rng.integers(0, 9, 40), rng.integers(0, 6, 40)
        found = two_way_rate(y.tolist(), prompts.tolist(), raters.tolist())
        variance = brute_force_variance(y, prompts, raters)
        assert found.error**2 == pytest.approx(variance)
        free = min(len(set(prompts.tolist())), len(set(raters.tolist()))) - 1
        half = stats.t.ppf(0.975, free) * np.sqrt(variance)
        assert found.interval.low == pytest.approx(max(0, y.mean() - half))
        assert found.p == pytest.approx(2 * stats.t.sf(abs(y.mean() - 0.5) / np.sqrt(variance), free))


def test_one_answer_a_rater_falls_back_to_the_prompt_clusters() -> None:
    rng = np.random.default_rng(1)
    y, prompts = rng.choice([0.0, 1.0], 30), np.repeat(np.arange(10), 3)
    e = y - y.mean()
    by_prompt = 10 / 9 * (np.bincount(prompts, weights=e) ** 2).sum() / 900
    by_answer = 30 / 29 * (e**2).sum() / 900
    found = two_way_rate(y.tolist(), prompts.tolist(), list(range(30)))
    assert found.error**2 == pytest.approx(max(by_prompt, by_answer))


def test_unanimous_answers_keep_an_interval() -> None:
    found = two_way_rate([1.0] * 12, [0, 1, 2, 3] * 3, [0] * 4 + [1] * 4 + [2] * 4)
    assert found.interval.value == found.interval.high == 1
    assert 0 < found.interval.low < 0.5  # three raters, however many answers
    assert found.p == pytest.approx(0.25)
    assert two_way_rate([0.5] * 6, [0, 1, 2] * 2, [0, 0, 0, 1, 1, 1]).p == 1


def test_a_single_answer_says_nothing() -> None:
    found = two_way_rate([1.0], ["p"], ["r"])
    assert found.interval.low < 0.25
    assert found.p == 1


def simulate(rng: np.random.Generator, taste: float) -> tuple[list[float], list[int], list[int]]:
    """60 prompts x 15 raters, 3 answers a prompt; prompts and raters each shift the log-odds."""
    by_prompt, by_rater = rng.normal(0, 0.7, 60), rng.normal(0, 0.5, 15)
    prompts = np.repeat(np.arange(60), 3)
    raters = np.concatenate([rng.permutation(15)[:3] for _ in range(60)])
    odds = taste + by_prompt[prompts] + by_rater[raters]
    wins = (rng.random(180) < 1 / (1 + np.exp(-odds))).astype(float)
    return wins.tolist(), prompts.tolist(), raters.tolist()


def test_two_way_interval_holds_its_level_where_the_binomial_does_not() -> None:
    rng = np.random.default_rng(2)
    clustered, naive = 0, 0
    for _ in range(300):
        wins, prompts, raters = simulate(rng, 0.0)
        clustered += two_way_rate(wins, prompts, raters).p < 0.05
        naive += naive_rate(wins).p < 0.05
    assert 0.02 <= clustered / 300 <= 0.08
    assert naive / 300 > 0.09


def test_naive_rate_leaves_ties_out() -> None:
    found = naive_rate([1, 1, 1, 0, 0.5, 0.5])
    oracle = stats.binomtest(3, 4)
    assert found.p == pytest.approx(oracle.pvalue)
    assert found.interval.low == pytest.approx(oracle.proportion_ci(method="wilson").low)
    assert naive_rate([0.5, 0.5]).p == 1


def alpha_by_coincidences(units: list[list[str]]) -> float:
    """Krippendorff's coincidence matrix, spelled out."""
    names = sorted({value for unit in units for value in unit})
    matrix = np.zeros((len(names), len(names)))
    for unit in units:
        for i, j in itertools.permutations(range(len(unit)), 2):
            matrix[names.index(unit[i]), names.index(unit[j])] += 1 / (len(unit) - 1)
    marginal, n = matrix.sum(axis=1), matrix.sum()
    disagree = n - np.trace(matrix)
    expected = (n**2 - (marginal**2).sum()) / (n - 1)
    return float(1 - disagree / expected)


def test_alpha_agrees_with_the_coincidence_matrix() -> None:
    rng = np.random.default_rng(3)
    for _ in range(4):
        units = [rng.choice(["left", "tie", "right"], size=rng.integers(2, 6)).tolist() for _ in range(20)]
        assert krippendorff_alpha(units) == pytest.approx(alpha_by_coincidences(units))


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, section C: nominal data of four observers, alpha 0.743."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    units = [[value for value in column if value is not None] for column in zip(a, b, c, d, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_full_agreement_and_of_no_variety() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == pytest.approx(1)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None


def test_needed_factor_grows_as_the_preference_shrinks() -> None:
    rng = np.random.default_rng(4)
    wins, prompts, raters = simulate(rng, 0.3)
    found = two_way_rate(wins, prompts, raters)
    factor = needed_factor(found)
    assert factor == pytest.approx(((1.96 + 0.8416) * found.error / abs(np.mean(wins) - 0.5)) ** 2)
    assert needed_factor(two_way_rate([1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1])) is None
