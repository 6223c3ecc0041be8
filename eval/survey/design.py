"""Who sees which pair, in which order, on which side: balanced by count, random otherwise.

Numbers only, no pictures and no names; export gives them their opaque ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crest.errors import ConfigError

Kind = Literal["real", "gold", "repeat"]


@dataclass(frozen=True)
class Showing:
    """One pair as one rater sees it."""

    kind: Kind
    pair: int
    """number of the prompt (real, repeat) or of the gold item"""
    is_flipped: bool
    """whether the second picture stands at the left"""


@dataclass(frozen=True)
class Counts:
    """How many pairs of each kind a rater sees at most."""

    real: int
    gold: int
    repeat: int

    @property
    def total(self) -> int:
        """All pairs of one rater."""
        return self.real + self.gold + self.repeat


def counts(pairs: int, raters: int, answers_per_pair: int, gold_share: float, repeat_share: float) -> Counts:
    """Derive a rater's load; checks are rounded up so that a small survey has them too."""
    real = math.ceil(pairs * answers_per_pair / raters)
    return Counts(real, math.ceil(real * gold_share), min(real // 2, math.ceil(real * repeat_share)))


def plan(
    pairs: int,
    raters: int,
    answers_per_pair: int,
    *,
    gold_share: float,
    repeat_share: float,
    most: int,
    seed: int,
) -> list[list[Showing]]:
    """One plan for each rater.

    Every pair is shown `answers_per_pair` times, to different raters, each side equally often (within one);
    loads differ by one at most; gold items never come first; a repeat comes in the last third, its
    first showing in the first half, with sides swapped.

    Raises:
        ConfigError: a rater would see more than `most` pairs.
    """
    load = counts(pairs, raters, answers_per_pair, gold_share, repeat_share)
    if load.total > most:
        raise ConfigError(
            f"survey.most_per_rater: is {most}, but {pairs} pairs with {answers_per_pair} answers each from "
            f"{raters} raters make {load.total} pairs a rater; ask more raters, fewer pairs or fewer answers "
            "per pair."
        )
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 2, size=pairs)
    seen: list[dict[int, Showing]] = [{} for _ in range(raters)]
    for turn in range(answers_per_pair):
        for pair in map(int, rng.permutation(pairs)):
            loads = [math.inf if pair in mine else len(mine) + rng.random() * 0.5 for mine in seen]
            seen[int(np.argmin(loads))][pair] = Showing("real", pair, bool((start[pair] + turn) % 2))
    _level(seen)
    return [_with_checks(list(mine.values()), load, rng, rater) for rater, mine in enumerate(seen)]


def _level(seen: list[dict[int, Showing]]) -> None:
    """Hand pairs from the longest plan to the shortest until they differ by one at most."""
    while True:
        longest, shortest = max(seen, key=len), min(seen, key=len)
        if len(longest) - len(shortest) <= 1:
            return
        pair = next(pair for pair in longest if pair not in shortest)  # there is one: it holds more
        shortest[pair] = longest.pop(pair)


def _with_checks(
    showings: list[Showing], load: Counts, rng: np.random.Generator, rater: int
) -> list[Showing]:
    order = [showings[int(place)] for place in rng.permutation(len(showings))]
    repeated = (
        [order[int(place)] for place in rng.permutation(max(1, len(order) // 2))[: load.repeat]]
        if order
        else []
    )
    for item in range(load.gold):
        place = int(rng.integers(1, len(order) + 1)) if order else 0
        order.insert(place, Showing("gold", item, bool((item + rater) % 2)))
    for showing in repeated:
        place = int(rng.integers(max(1, 2 * len(order) // 3), len(order) + 1))
        order.insert(place, Showing("repeat", showing.pair, not showing.is_flipped))
    return order


def gold_items(pairs: int, raters: int, answers_per_pair: int, gold_share: float) -> int:
    """How many different gold items the survey needs (each rater sees all of them)."""
    return counts(pairs, raters, answers_per_pair, gold_share, 0.0).gold
