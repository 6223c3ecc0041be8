"""Who sees what: every balance that the analysis counts on."""

from collections import Counter

import pytest

from crest.errors import ConfigError
from eval.survey.design import Showing, counts, plan


def planned(
    pairs: int = 40, raters: int = 8, each: int = 4, seed: int = 0, most: int = 40
) -> list[list[Showing]]:
    return plan(pairs, raters, each, gold_share=0.08, repeat_share=0.05, most=most, seed=seed)


@pytest.mark.parametrize(
    ("pairs", "raters", "each"), [(40, 8, 4), (100, 20, 5), (7, 3, 3), (10, 6, 1), (2, 1, 1)]
)
def test_every_pair_is_seen_by_so_many_different_raters(pairs: int, raters: int, each: int) -> None:
    seen = [
        Counter(s.pair for s in showings if s.kind == "real") for showings in planned(pairs, raters, each)
    ]
    assert all(max(counter.values(), default=1) == 1 for counter in seen)
    total = sum(seen, Counter())
    assert set(total.values()) == {each}
    assert len(total) == pairs
    loads = [sum(counter.values()) for counter in seen]
    assert max(loads) - min(loads) <= 1


def test_each_side_is_balanced_within_a_pair() -> None:
    flips: dict[int, list[bool]] = {}
    for showings in planned():
        for s in showings:
            if s.kind == "real":
                flips.setdefault(s.pair, []).append(s.is_flipped)
    assert all(sum(sides) == 2 for sides in flips.values())


def test_checks_are_there_and_stand_where_they_should() -> None:
    for showings in planned():
        gold = [place for place, s in enumerate(showings) if s.kind == "gold"]
        assert len(gold) == 2
        assert gold[0] > 0
        (repeat,) = [place for place, s in enumerate(showings) if s.kind == "repeat"]
        (first,) = [
            place for place, s in enumerate(showings) if s.kind == "real" and s.pair == showings[repeat].pair
        ]
        assert repeat - first > 2
        assert showings[repeat].is_flipped != showings[first].is_flipped


def test_order_differs_between_raters_and_repeats_for_a_seed() -> None:
    orders = [tuple(s.pair for s in showings) for showings in planned()]
    assert len(set(orders)) == len(orders)
    assert planned(seed=1) == planned(seed=1) != planned(seed=2)


def test_default_plan_is_25_pairs_with_checks() -> None:
    load = counts(100, 20, 5, 0.08, 0.05)
    assert (load.real, load.gold, load.repeat, load.total) == (25, 2, 2, 29)


def test_too_long_a_survey_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"most_per_rater: is 20, but 40 pairs with 4 answers each from 8 raters make 23"
    ):
        planned(most=20)
