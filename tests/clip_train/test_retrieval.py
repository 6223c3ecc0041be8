"""Ranks by hand: ties, duplicates, both directions; chance by enumeration; intervals against plain loops."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_train.retrieval import (
    Ranks,
    gain,
    number_captions,
    rank_metrics,
    ranks,
    recall,
    retrieval_metrics,
    retrieval_ranks,
)


def test_the_rank_counts_the_wrong_answers_before_the_right_one() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.9, 0.8, 0.1]])
    assert ranks(similarity, torch.arange(3)).tolist() == [1.0, 2.0, 3.0]


def test_equal_captions_share_a_number_whatever_their_case_and_spaces() -> None:
    assert number_captions(["A red crest", "a  red crest ", "a navy crest"]).tolist() == [0, 0, 1]


def test_a_tie_counts_half() -> None:
    assert ranks(torch.zeros(5, 5), torch.arange(5)).tolist() == [3.0] * 5  # the middle of five equals
    similarity = torch.tensor([[0.5, 0.5, 0.9], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    assert ranks(similarity, torch.arange(3)).tolist() == [2.5, 1.0, 1.0]


def test_a_difference_that_rounding_makes_is_a_tie() -> None:
    similarity = torch.tensor([[0.5, 0.5 + 1e-7], [0.5 - 1e-7, 0.5]])
    assert ranks(similarity, torch.arange(2)).tolist() == [1.5, 1.5]
    assert ranks(similarity + torch.tensor([[0, 1e-5], [0, 0]]), torch.arange(2)).tolist() == [2.0, 1.5]


def test_every_picture_of_an_equal_caption_is_a_right_answer() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert ranks(similarity, torch.tensor([7, 7, 8])).tolist() == [1.0, 1.0, 3.0]


def test_right_answers_may_be_named_one_by_one_and_be_of_fewer_rows() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    right = torch.tensor([[True, False, True], [False, False, False]])
    assert ranks(similarity, right).tolist() == [2.0, 4.0]  # the second has none: behind all three


def test_the_similarities_come_back_unchanged() -> None:
    similarity = torch.rand(6, 6)
    before = similarity.clone()
    ranks(similarity, torch.arange(6))
    assert torch.equal(similarity, before)


def test_a_model_that_says_the_same_of_all_is_at_chance() -> None:
    embed = F.normalize(torch.ones(100, 4), dim=1)
    metrics = retrieval_metrics(embed, embed, torch.arange(100))
    assert metrics["r_at_1"] == 0.0  # not 1: a constant model gets no credit for ties
    assert metrics["text_to_image_median_rank"] == 50.5 == metrics["chance_mean_rank"]
    assert metrics["chance_r_at_1"] == pytest.approx(0.01)


def test_a_model_whose_numbers_are_none_is_last_of_all() -> None:
    embed = F.normalize(torch.eye(20), dim=1)
    broken = torch.full_like(embed, torch.nan)
    for pair in ((broken, broken), (embed, broken), (broken, embed)):
        metrics = retrieval_metrics(*pair, torch.arange(20))
        assert metrics["mean_rank"] == metrics["median_rank"] == 20.0
        assert metrics["r_at_10"] == 0.0
    one = embed.clone()
    one[3] = torch.nan  # a wrong answer to all others, before their own
    found = retrieval_ranks(one, embed, torch.arange(20))
    assert found.text_to_image.tolist() == [2.0] * 3 + [20.0] + [2.0] * 16


def test_a_model_that_knows_every_pair_is_perfect_both_ways() -> None:
    embed = torch.eye(6)
    metrics = retrieval_metrics(embed, embed, torch.arange(6))
    assert metrics["text_to_image_r_at_1"] == metrics["image_to_text_r_at_1"] == metrics["r_at_1"] == 1.0
    assert metrics["image_to_text_median_rank"] == metrics["mrr"] == 1.0


def test_the_two_directions_are_told_apart() -> None:
    image, text = torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    metrics = retrieval_metrics(image, text, torch.arange(3))
    assert metrics["text_to_image_r_at_1"] == pytest.approx(2 / 3)
    assert metrics["image_to_text_r_at_1"] == pytest.approx(1 / 3)  # 0 ties with 1, and 1 ties with all
    assert metrics["r_at_1"] == pytest.approx(1 / 2)
    # ranks 1, 2.5, 1 and 1.5, 2, 1
    assert metrics["mean_rank"] == pytest.approx((4.5 + 4.5) / 6)
    assert metrics["median_rank"] == pytest.approx((1 + 1.5) / 2)
    assert metrics["mrr"] == pytest.approx((2.4 + 2 / 3 + 1.5) / 6)


def test_recall_is_the_share_within_k() -> None:
    assert recall(torch.tensor([1.0, 1.5, 2.0, 6.0]), 1) == 0.25
    assert recall(torch.tensor([1.0, 1.5, 2.0, 6.0]), 5) == 0.75


def pairs(count: int, noise: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    image = F.normalize(torch.randn(count, 8, generator=generator), dim=1)
    return image, F.normalize(image + noise * torch.randn(count, 8, generator=generator), dim=1)


def test_three_ways_to_say_what_is_right_and_slices_of_any_height_give_the_same_ranks() -> None:
    image, text = pairs(60)
    same = torch.arange(60) // 3
    matrix = same[:, None] == same[None, :]
    asked: list[int] = []

    def rows_of(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows) * 60)
        return matrix[rows]

    whole = retrieval_ranks(image, text, same)
    assert 1 < whole.text_to_image.mean() < 20  # neither perfect nor random, or the test says nothing
    for other in (retrieval_ranks(image, text, matrix), retrieval_ranks(image, text, rows_of, block=500)):
        for name in ("text_to_image", "image_to_text", "pictures_right", "captions_right"):
            assert getattr(other, name).tolist() == getattr(whole, name).tolist()
    assert max(asked) <= 500
    assert whole.text_to_image.tolist() == ranks(text @ image.T, same).tolist()
    assert whole.image_to_text.tolist() == ranks(image @ text.T, same).tolist()


def test_a_caption_may_be_right_for_a_picture_whose_own_is_not_right_for_it() -> None:
    right = torch.eye(3, dtype=torch.bool)
    right[0, 1] = True  # caption 0 is true of picture 1; caption 1 says what picture 0 lacks
    image, text = torch.eye(3), torch.tensor([[0.0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]])
    found = retrieval_ranks(image, text, right)
    assert found.text_to_image.tolist() == [1.0, 1.0, 1.0]
    assert found.image_to_text.tolist() == [2.5, 1.0, 1.0]  # behind caption 1, which is wrong, tied with 2
    assert (found.pictures_right.tolist(), found.captions_right.tolist()) == ([2, 1, 1], [1, 2, 1])


def test_the_arithmetic_of_the_run_does_not_reach_the_ranks() -> None:
    image, text = pairs(200)
    plain = retrieval_ranks(image, text, torch.arange(200))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            coarse = retrieval_ranks(image, text, torch.arange(200))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert coarse.text_to_image.tolist() == plain.text_to_image.tolist()


@pytest.mark.parametrize("same", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_chance_is_the_mean_over_all_orders(same: list[int]) -> None:
    embed = torch.eye(5)
    metrics = retrieval_metrics(embed, embed, torch.tensor(same))
    best = [
        1 + min(order.index(place) for place in range(5) if same[place] == same[row])
        for order in itertools.permutations(range(5))
        for row in range(5)
    ]
    for k in (1, 5, 10):
        assert metrics[f"chance_r_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in best]))
    assert metrics["chance_mean_rank"] == pytest.approx(np.mean(best))


def of(text_to_image: list[float], image_to_text: list[float] | None = None) -> Ranks:
    ones = np.ones(len(text_to_image), np.int64)
    both = np.array(text_to_image), np.array(image_to_text or text_to_image)
    return Ranks(*both, ones, ones, len(ones) * ones)


def test_intervals_are_a_function_of_the_seed() -> None:
    found = retrieval_ranks(*pairs(50), torch.arange(50))
    first, again, other = (rank_metrics(found, bootstrap=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["mean_rank_low"] != other["mean_rank_low"]
    assert first["mean_rank"] == other["mean_rank"] == rank_metrics(found)["mean_rank"]
    assert not any(name.endswith(("_low", "_high")) for name in rank_metrics(found))


def test_an_interval_is_the_percentiles_of_plainly_resampled_figures() -> None:
    random = np.random.default_rng(0)
    text_to_image, image_to_text = random.integers(1, 20, (2, 41)).astype(float)
    metrics = rank_metrics(of(text_to_image.tolist(), image_to_text.tolist()), bootstrap=300, seed=7)
    plain: dict[str, list[float]] = {"r_at_5": [], "median_rank": [], "mean_rank": [], "mrr": []}
    for chosen in np.random.default_rng(7).integers(0, 41, (300, 41)):
        ways = text_to_image[chosen], image_to_text[chosen]
        plain["r_at_5"].append(float(np.mean([way <= 5 for way in ways])))
        plain["median_rank"].append(float(np.mean([np.median(way) for way in ways])))
        plain["mean_rank"].append(float(np.mean(ways)))
        plain["mrr"].append(float(np.mean([1 / way for way in ways])))
    for name, values in plain.items():
        low, high = np.quantile(values, (0.025, 0.975))
        assert metrics[f"{name}_low"] == pytest.approx(low)
        assert metrics[f"{name}_high"] == pytest.approx(high)
        assert low < metrics[name] < high


def test_an_interval_is_as_wide_as_the_normal_one_where_that_holds() -> None:
    metrics = rank_metrics(of([1.0] * 120 + [50.0] * 280), bootstrap=4000)
    width = metrics["r_at_1_high"] - metrics["r_at_1_low"]
    assert width == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 400) ** 0.5, rel=0.05)


def test_pictures_that_belong_together_are_drawn_together() -> None:
    values = [1.0, 1, 1, 1, 9, 9, 9, 9] * 20  # four of a group answer alike, so 40 groups are what is known
    groups = [f"club {place // 4}" for place in range(160)]
    alone = rank_metrics(of(values), bootstrap=2000)
    together = rank_metrics(of(values), bootstrap=2000, groups=groups)
    widths = [one["r_at_1_high"] - one["r_at_1_low"] for one in (alone, together)]
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=0.1)
    # groups of unequal size: whatever is drawn, a share stays the share of what was drawn
    uneven = rank_metrics(of([1.0] * 30 + [9.0]), bootstrap=500, groups=["a"] * 30 + ["b"])
    assert (uneven["r_at_1_low"], uneven["r_at_1_high"]) == (0.0, 1.0)


def test_eight_of_eight_is_no_proof_of_always() -> None:
    metrics = rank_metrics(of([1.0] * 8), bootstrap=100)
    assert metrics["r_at_1_high"] == 1.0
    assert metrics["r_at_1_low"] == pytest.approx(8 / (8 + 1.959964**2))  # Wilson's, of a share of 1
    never = rank_metrics(of([99.0] * 8), bootstrap=100)
    assert never["r_at_1_low"] == 0.0
    assert never["r_at_1_high"] == pytest.approx(1 - metrics["r_at_1_low"])


def test_a_gain_is_judged_pair_by_pair() -> None:
    random = np.random.default_rng(1)
    before = random.integers(1, 100, 60).astype(float)
    after = before - np.minimum(before - 1, 2)  # hard pairs stay hard; all others move up by up to two places
    change = gain(of(before.tolist()), of(after.tolist()), bootstrap=500)
    assert change["mean_rank"] == pytest.approx(float(np.mean(after - before)))
    assert change["mean_rank_high"] < -1.5  # although either one's own interval is more than ten ranks wide
    own = rank_metrics(of(before.tolist()), bootstrap=500)
    assert own["mean_rank_high"] - own["mean_rank_low"] > 10
    still = gain(of(before.tolist()), of(before.tolist()), bootstrap=100)
    assert set(still.values()) == {0.0}


def test_joined_sets_are_ranked_and_guessed_each_among_its_own() -> None:
    first, second = (retrieval_ranks(*pairs(count), torch.arange(count)) for count in (10, 40))
    both = rank_metrics(Ranks.joined([first, second]))
    apart = [rank_metrics(one) for one in (first, second)]
    for name in (
        "r_at_1",
        "r_at_5",
        "mean_rank",
        "mrr",
        "chance_r_at_1",
        "chance_r_at_10",
        "chance_mean_rank",
    ):
        assert both[name] == pytest.approx((10 * apart[0][name] + 40 * apart[1][name]) / 50)
    assert both["chance_r_at_10"] == pytest.approx((10 * 1 + 40 * 10 / 40) / 50)


def test_blocks_of_draws_do_not_change_what_is_drawn() -> None:
    from clip_train.retrieval import _draws

    groups = [str(place // 2) for place in range(10)]
    for chosen in (None, groups):
        whole = np.concatenate(list(_draws(10, 64, 5, chosen)))
        parted = np.concatenate(list(_draws(10, 64, 5, chosen, block=70)))
        assert (whole == parted).all()
        assert whole.shape == (64, 10)
    assert (np.concatenate(list(_draws(10, 9, 5, None))).sum(axis=1) == 10).all()
