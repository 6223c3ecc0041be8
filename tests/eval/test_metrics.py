"""Every metric against its definition, by brute force or on pictures whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from crest.colours import COLOURS
from crest.errors import DataError
from eval import mmd
from eval.evidence import Evidence, Gallery
from eval.judge import flat_metrics, judge
from eval.metrics import Metric, all_metrics
from eval.metrics.clip_score import ClipScore, clip_score
from eval.metrics.cmmd import Cmmd, gaussian_kernel
from eval.metrics.colours import Colours, holds_colours
from eval.metrics.flatness import colours_for, flat_border, flat_share
from eval.metrics.kid import Kid, cubic_kernel
from eval.metrics.near_copy import NearCopy, fewest_bits, hash_distance, nearest, perceptual_hash
from eval.metrics.r_precision import RPrecision, distractors, ranks_first
from eval.metrics.vendi import mean_similarity, similarity_within, vendi_score

Make = Callable[..., Evidence]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# the contract that all metrics share


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_metric_keeps_the_contract(metric: Metric, evidence: Make) -> None:
    seen = evidence()
    assert metric.unfit(seen) is None
    found = metric.measure(seen)
    assert bool(found.scores) != bool(found.estimates)
    assert set(found.scores or found.estimates) == {"stock", "tuned"}
    for figures in found.scores.values():
        assert figures.shape == (10,)
        assert not metric.is_share or ((figures >= 0) & (figures <= 1)).all()
    if found.estimates:
        assert set(found.differences) == {"tuned"}
        for estimate in (*found.estimates.values(), *found.differences.values()):
            assert estimate.interval.low <= estimate.interval.value <= estimate.interval.high
    assert all(np.isfinite(value) for value in found.figures.values())


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_metric_finds_no_difference_between_equal_systems(metric: Metric, evidence: Make) -> None:
    rows = unit(np.random.default_rng(1), 20, 16)
    pixels = np.random.default_rng(2).integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)
    found = metric.measure(evidence({"stock": rows, "tuned": rows.copy()}, pixels=pixels))
    if found.scores:
        assert np.array_equal(found.scores["stock"], found.scores["tuned"], equal_nan=True)
    else:
        assert found.differences["tuned"].interval.value == pytest.approx(0, abs=1e-12)
        assert found.differences["tuned"].p == pytest.approx(1)


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_metric_without_real_pictures_measures_or_says_why(metric: Metric, evidence: Make) -> None:
    seen = evidence(real=0)
    reason = metric.unfit(seen)
    if reason is None:
        metric.measure(seen)
    else:
        assert "real pictures" in reason


def test_metric_names_are_distinct() -> None:
    names = [metric.name for metric in all_metrics()]
    assert len(set(names)) == len(names)


# CLIPScore


def test_clip_score_is_100_times_the_cosine_and_never_negative() -> None:
    image = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    text = np.array([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    assert clip_score(image, text) == pytest.approx([100, 80, 0])


def test_clip_score_averages_pictures_within_a_prompt_first(evidence: Make) -> None:
    seen = evidence()
    cosine = np.einsum("nd,nd->n", seen.systems["tuned"].image_embed, seen.text_embed[seen.prompt_of])
    by_hand = 100 * np.maximum(cosine, 0).reshape(10, 2).mean(axis=1)
    assert ClipScore().measure(seen).scores["tuned"] == pytest.approx(by_hand)


# R-precision


def test_own_caption_is_never_a_distractor_and_copies_count_once() -> None:
    prompts = ("a red star", "A  red STAR", "a blue star", "a green star", "a blue star")
    rivals = distractors(prompts, seed=0)
    assert [list(r) for r in rivals] == [[2, 3], [2, 3], [0, 3], [0, 2], [0, 3]]


def test_at_most_99_distractors_the_same_for_the_same_seed() -> None:
    prompts = tuple(f"prompt {n}" for n in range(150))
    first, again = distractors(prompts, seed=3), distractors(prompts, seed=3)
    assert all(len(r) == 99 and n not in r for n, r in enumerate(first))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_rank_first_beaten_and_tied() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.3, 0.3]])
    others = [np.array([1, 2]), np.array([0, 2]), np.array([0, 1])]
    assert ranks_first(similarity, np.array([0, 1, 2]), others) == pytest.approx([1, 0, 1 / 3])


def test_perfect_drawings_reach_one_and_random_ones_chance(evidence: Make) -> None:
    seen = evidence(texts=[f"prompt {n}" for n in range(200)], width=64)
    perfect = Gallery(("x",) * 400, seen.systems["stock"].pixels, seen.text_embed[seen.prompt_of])
    better = Evidence(
        seen.prompts, seen.text_embed, seen.prompt_of, {"stock": seen.systems["stock"], "tuned": perfect}
    )
    found = RPrecision().measure(better)
    assert found.scores["tuned"].mean() == 1
    assert found.figures["chance"] == pytest.approx(0.01)
    assert found.scores["stock"].mean() < 0.05


# KID and CMMD


def brute_force(x: np.ndarray, y: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], float]) -> float:
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return float(xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m))


def test_kid_is_the_cubic_mmd_by_brute_force(evidence: Make) -> None:
    seen = evidence()
    assert seen.real is not None
    d = 16
    raw = lambda a, b: (np.dot(a * np.sqrt(d), b * np.sqrt(d)) / d + 1) ** 3  # noqa: E731
    for name, gallery in seen.systems.items():
        by_hand = 1000 * brute_force(gallery.image_embed, seen.real.image_embed, raw)
        assert Kid().measure(seen).estimates[name].interval.value == pytest.approx(by_hand)


def test_cmmd_is_the_gaussian_mmd_by_brute_force(evidence: Make) -> None:
    seen = evidence()
    assert seen.real is not None
    gaussian = lambda a, b: np.exp(-np.sum((a - b) ** 2) / 200)  # noqa: E731
    by_hand = 1000 * brute_force(seen.systems["tuned"].image_embed, seen.real.image_embed, gaussian)
    assert Cmmd().measure(seen).estimates["tuned"].interval.value == pytest.approx(by_hand)


@pytest.mark.parametrize("kernel", [cubic_kernel, gaussian_kernel])
def test_leave_one_out_values_are_those_of_smaller_sets(kernel: mmd.Kernel) -> None:
    rng = np.random.default_rng(3)
    x, y = unit(rng, 10, 6), unit(rng, 9, 6)
    prompt_of = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4, 4])
    found = mmd.discrepancy(kernel(x, x), kernel(y, y), kernel(x, y), prompt_of.astype(float), 5)
    for prompt in range(5):
        kept = x[prompt_of != prompt]
        assert found.without_prompt[prompt] == pytest.approx(
            mmd.squared_mmd(kernel(kept, kept), kernel(y, y), kernel(kept, y))
        )
    for place in range(9):
        kept = np.delete(y, place, axis=0)
        assert found.without_real[place] == pytest.approx(
            mmd.squared_mmd(kernel(x, x), kernel(kept, kept), kernel(x, kept))
        )


def test_distance_is_centred_on_zero_for_equal_sources_while_the_biased_one_is_not() -> None:
    rng = np.random.default_rng(4)
    unbiased, biased = [], []
    for _ in range(60):
        x, y = unit(rng, 30, 8), unit(rng, 30, 8)
        grams = gaussian_kernel(x, x), gaussian_kernel(y, y), gaussian_kernel(x, y)
        unbiased.append(mmd.squared_mmd(*grams))
        biased.append(mmd.biased_squared_mmd(*grams))
    assert abs(np.mean(unbiased)) < 3 * np.std(unbiased) / np.sqrt(60)
    assert np.mean(biased) > 10 * np.std(biased) / np.sqrt(60)


def test_shifted_drawings_rise_above_the_noise_floor(evidence: Make) -> None:
    rng = np.random.default_rng(5)
    near, far = unit(rng, 60, 16), unit(rng, 60, 16) + 0.4
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    seen = evidence({"stock": far, "tuned": near}, texts=[f"p{n}" for n in range(60)])
    real = Gallery(("r",) * 80, np.zeros((80, 3, 4, 4), np.uint8), unit(rng, 80, 16))
    seen = Evidence(seen.prompts, seen.text_embed, seen.prompt_of, seen.systems, real=real)
    found = Kid().measure(seen)
    assert found.estimates["stock"].interval.low > found.figures["noise_floor"]
    assert found.estimates["tuned"].interval.low < 0 < found.estimates["tuned"].interval.high
    assert found.differences["tuned"].interval.high < 0
    assert (found.differences["tuned"].p or 1) < 0.001


def test_too_few_real_pictures_are_said(evidence: Make) -> None:
    assert "5 real pictures, too few" in str(Kid().unfit(evidence(real=5)))


# Vendi


def test_vendi_is_one_for_equal_and_n_for_orthogonal_pictures() -> None:
    assert vendi_score(np.tile([[0.6, 0.8]], (9, 1))) == pytest.approx(1)
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.eye(7)[:, :7].repeat(3, axis=0)) == pytest.approx(
        7
    )  # n > D takes the other Gram matrix


def test_vendi_agrees_with_the_definition_on_both_sides() -> None:
    rows = unit(np.random.default_rng(6), 12, 5)
    values = np.linalg.eigvalsh(rows @ rows.T / 12)
    values = values[values > 1e-12]
    assert vendi_score(rows) == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_similarities_by_hand() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert mean_similarity(rows) == pytest.approx(1 / 3)
    assert similarity_within(rows, np.array([0, 1, 0])) == pytest.approx(1)
    assert similarity_within(rows, np.array([0, 1, 2])) is None


# near copies


def drawn(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (48, 48), Image.Resampling.BICUBIC
    )
    return np.asarray(small).transpose(2, 0, 1)


def test_perceptual_hash_knows_a_copy_its_mirror_and_a_stranger() -> None:
    train = perceptual_hash(np.stack([drawn(n) for n in range(5)]))
    copy = np.clip(
        drawn(2).astype(int) + np.random.default_rng(0).integers(-6, 7, (3, 48, 48)), 0, 255
    ).astype(np.uint8)
    found = fewest_bits(np.stack([copy, copy[:, :, ::-1], drawn(99)]), train)
    assert found[0] <= 6
    assert found[1] <= 6
    assert found[2] > 6


def test_hash_distance_counts_bits() -> None:
    a, b = (
        np.array([[0b1010] + [0] * 7], np.uint8),
        np.array([[0b0110] + [0] * 7, [0b1010] + [0] * 7], np.uint8),
    )
    assert hash_distance(a, b).tolist() == [[2, 0]]


def test_nearest_is_the_brute_force_nearest() -> None:
    rng = np.random.default_rng(7)
    queries, train = unit(rng, 30, 8), unit(rng, 40, 8)
    numbers, cosines = nearest(queries, train, chunk=7)
    assert numbers.tolist() == (queries @ train.T).argmax(axis=1).tolist()
    assert cosines == pytest.approx((queries @ train.T).max(axis=1))


def test_planted_copies_are_flagged_and_listed_first(evidence: Make) -> None:
    seen = evidence(real=60)
    assert seen.train is not None
    copied = seen.systems["tuned"].image_embed.copy()
    copied[[4, 5]] = seen.train.image_embed[[11, 12]]
    systems = {
        "stock": seen.systems["stock"],
        "tuned": Gallery(seen.systems["tuned"].ids, seen.systems["tuned"].pixels, copied),
    }
    planted = Evidence(seen.prompts, seen.text_embed, seen.prompt_of, systems, seen.real, seen.train)
    found = NearCopy().measure(planted)
    assert found.scores["tuned"][2] == 1
    assert found.scores["tuned"].sum() <= 2
    assert {str(row["nearest_id"]) for row in found.pairs[:2]} == {"train-11", "train-12"}
    assert found.pairs[0]["cosine"] == pytest.approx(1)
    assert len(found.pairs) == 40


def test_threshold_needs_enough_unseen_pictures(evidence: Make) -> None:
    assert "too few for a threshold" in str(NearCopy().unfit(evidence(real=12)))


# colours and flatness


def halves(left: str, right: str) -> np.ndarray:
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[:, :, :16] = np.array(COLOURS[left])[:, None, None]
    pixels[:, :, 16:] = np.array(COLOURS[right])[:, None, None]
    return pixels


def test_colours_that_are_there_are_found_and_others_are_not() -> None:
    assert holds_colours(halves("red", "white"), ["red", "white", "green", "navy"]).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_a_speck_is_not_a_colour() -> None:
    pixels = halves("white", "white")
    pixels[:, 0, 0] = COLOURS["red"]
    assert holds_colours(pixels, ["red", "white"]).tolist() == [False, True]


def test_colour_faithfulness_counts_words_and_states_chance(evidence: Make) -> None:
    texts = ["a red and white flag", "a green and navy flag", "a flag"]
    right = np.stack([halves("red", "white"), halves("green", "navy"), halves("red", "red")])
    rows = unit(np.random.default_rng(8), 3, 16)
    found = Colours().measure(evidence({"stock": rows, "tuned": rows}, texts, pixels=right))
    assert found.scores["tuned"][:2].tolist() == [1, 1]
    assert np.isnan(found.scores["tuned"][2])
    assert found.figures["tuned.chance"] == pytest.approx((0 + 0 + 0.25) / 3)
    assert found.figures["prompts"] == 2


def test_colourless_prompts_are_said(evidence: Make) -> None:
    rows = unit(np.random.default_rng(9), 3, 16)
    unfit = Colours().unfit(evidence({"stock": rows, "tuned": rows}, ["a star", "a red star", "a moon"]))
    assert unfit == "1 of 3 prompts name a colour (at least 2)"


def test_flatness_of_known_pictures() -> None:
    flat, split = halves("red", "red"), halves("red", "white")
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    shares = flat_share(np.stack([flat, split, noise]))
    assert shares[0] == 1
    assert shares[1] == pytest.approx(30 / 31)
    assert shares[2] < 0.01
    assert colours_for(np.stack([flat, split])).tolist() == [1, 2]
    assert flat_border(np.stack([flat]))[0] == 1


# the judge


def test_secondary_metrics_are_adjusted_and_the_primary_is_not(evidence: Make) -> None:
    seen = evidence()
    found = judge(seen, all_metrics(), primary="clip_score", resamples=199)
    flat = flat_metrics(found, seen)
    assert "tuned.clip_score.difference.p" in flat
    assert "tuned.clip_score.difference.p_holm" not in flat
    assert flat["tuned.kid.difference.p_holm"] >= flat["tuned.kid.difference.p"]
    assert "tuned.flatness.difference.p" not in flat  # described, never tested
    assert all(not isinstance(value, (dict, list)) for value in flat.values())


def test_share_of_nothing_keeps_an_honest_upper_bound(evidence: Make) -> None:
    seen = evidence(real=60)
    found = judge(seen, [ClipScore(), NearCopy()], primary="clip_score", resamples=199)
    near = found.findings[1].values["stock"]
    if near.value == 0:
        assert near.high == pytest.approx(0.2775, abs=1e-3)  # Wilson for 0 of 10
        difference = found.findings[1].comparisons["tuned"].difference
        assert (difference.low, difference.high) == pytest.approx((-0.2775, 0.2775), abs=1e-3)
    else:
        pytest.fail("the planted world should hold no near copies")


def test_nan_prompts_leave_both_systems(evidence: Make) -> None:
    texts = ["a red flag", "a green flag", "a flag", "a blue flag"]
    rows = unit(np.random.default_rng(10), 4, 16)
    pixels = np.stack([halves("red", "red")] * 4)
    found = judge(
        evidence({"stock": rows, "tuned": rows}, texts, pixels=pixels),
        [ClipScore(), Colours()],
        primary="clip_score",
        resamples=99,
    )
    assert found.findings[1].comparisons["tuned"].units == 3


def test_primary_metric_that_can_not_be_measured_is_an_error(evidence: Make) -> None:
    rows = unit(np.random.default_rng(11), 3, 16)
    same = evidence({"stock": rows, "tuned": rows}, ["a red star", "A red  star", "a RED star"])
    with pytest.raises(
        DataError, match=r"eval.primary: r_precision_at_1 can't be measured here \(all prompts are alike\)"
    ):
        judge(same, all_metrics(), primary="r_precision_at_1", resamples=99)


def test_only_so_many_real_pictures_enter_the_gram_matrix(evidence: Make) -> None:
    seen = evidence(real=30)
    assert seen.real is not None
    found = mmd.measure(seen, cubic_kernel, 1.0, seen.real, most_real=20)
    assert found.figures["real_pictures"] == 20
    assert found.figures["noise_floor_pictures"] == 10
