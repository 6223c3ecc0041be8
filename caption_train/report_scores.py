"""How far written captions say what people said: figures with intervals. Pure functions of texts.

Words are compared as sets, each once a caption: colours by crest.colours, things by crest.wording (stems of
what is neither colour, function word nor lettering). Intervals resample groups: the eras of a club are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crest.wording import colours_of, content_words, quoted_words, vague_reasons

Array = NDArray[np.float64]
LEVEL: Final = 0.95
_CHUNK: Final = 100

TITLES: Final[dict[str, str]] = {
    "colour_precision": "colour words: precision",
    "colour_recall": "colour words: recall",
    "colour_f1": "colour words: F1",
    "object_precision": "things: precision",
    "object_recall": "things: recall",
    "object_f1": "things: F1",
    "wordmark_exact": "lettering exactly right",
    "wordmark_error": "lettering: wrong characters",
    "wordmark_invented": "lettering where there is none",
    "bleu": "BLEU",
    "chrf": "chrF",
    "words": "words in a caption",
    "duplicates": "captions said twice",
    "vague": "captions that say too little",
    "silent": "no caption at all",
}
SHARES: Final = frozenset(TITLES) - {"bleu", "chrf", "words"}
LOWER_IS_BETTER: Final = frozenset(("wordmark_error", "wordmark_invented", "duplicates", "vague", "silent"))


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; none where it is not resampled."""

    value: float
    low: float | None = None
    high: float | None = None


def score(
    written: Sequence[str], true: Sequence[str], groups: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Figure]:
    """Compare a captioner's words with people's.

    Args:
        written: by the captioner; empty where it said nothing.
        true: by people, of the same logos.
        groups: which logos stand or fall together.
        resamples: of the groups.
    Returns:
        metric -> figure; metrics that nothing speaks of (no lettering anywhere) are left out.
    """
    columns = _columns(written, true)
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([names[group] for group in groups])
    sums = {
        name: np.bincount(place, weights=values, minlength=len(names)) for name, values in columns.items()
    }
    draws = _draws(len(names), resamples, seed)
    table = {name: np.concatenate([some @ values for some in draws]) for name, values in sums.items()}
    whole = {name: np.array([values.sum()]) for name, values in sums.items()}
    estimates, spreads = _ratios(whole), _ratios(table)
    figures = {}
    for name, value in estimates.items():
        if np.isnan(value[0]):
            continue
        seen = spreads[name][~np.isnan(spreads[name])]
        low, high = np.quantile(seen, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(seen) else (np.nan, np.nan)
        figures[name] = Figure(float(value[0]), float(low), float(high))
    return figures


def _columns(written: Sequence[str], true: Sequence[str]) -> dict[str, Array]:
    """Counts of each logo, of which all metrics are ratios of sums."""
    said_by = Counter(" ".join(text.casefold().split()) for text in written)
    rows: dict[str, list[float]] = {}
    for ours, theirs in zip(written, true, strict=True):
        row: dict[str, float] = {"logos": 1.0, "silent": float(not ours.strip())}
        for kind, words in (("colour", colours_of), ("object", content_words)):
            said, meant = set(words(ours)), set(words(theirs))
            row |= {f"{kind}_both": len(said & meant), f"{kind}_said": len(said), f"{kind}_meant": len(meant)}
        letters, told = quoted_words(theirs), quoted_words(ours)
        row["lettered"], row["unlettered"] = float(bool(letters)), float(not letters)
        row["exact"] = float(bool(letters) and sorted(letters) == sorted(told))
        row["invented"] = float(not letters and bool(told))
        row["characters"] = float(len(" ".join(letters)))
        row["wrong"] = float(distance(" ".join(told), " ".join(letters))) if letters else 0.0
        row["length"] = float(len(ours.split()))
        row["twice"] = float(said_by[" ".join(ours.casefold().split())] > 1)
        row["vague"] = float(bool(vague_reasons(ours)))
        for name, value in row.items():
            rows.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in rows.items()}


def _ratios(sums: Mapping[str, Array]) -> dict[str, Array]:
    """All metrics out of sums over the same logos; not a number where nothing is to be divided by."""
    found = {}
    for kind in ("colour", "object"):
        both, said, meant = (sums[f"{kind}_{part}"] for part in ("both", "said", "meant"))
        found[f"{kind}_precision"] = _share(both, said)
        found[f"{kind}_recall"] = _share(both, meant)
        found[f"{kind}_f1"] = _share(2 * both, said + meant)
    found["wordmark_exact"] = _share(sums["exact"], sums["lettered"])
    found["wordmark_error"] = _share(sums["wrong"], sums["characters"])
    found["wordmark_invented"] = _share(sums["invented"], sums["unlettered"])
    found["words"] = _share(sums["length"], sums["logos"])
    found["duplicates"] = _share(sums["twice"], sums["logos"])
    found["vague"] = _share(sums["vague"], sums["logos"])
    found["silent"] = _share(sums["silent"], sums["logos"])
    return found


def _share(part: Array, whole: Array) -> Array:
    shares: Array = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return shares


def _draws(groups: int, resamples: int, seed: int) -> list[Array]:
    """How often each group is drawn in each resample: arrays (R, G), some resamples at a time."""
    rng = np.random.default_rng(seed)
    even = np.full(groups, 1 / groups)
    sizes = [min(_CHUNK, resamples - first) for first in range(0, resamples, _CHUNK)]
    return [rng.multinomial(groups, even, size=size).astype(np.float64) for size in sizes]


def distance(left: str, right: str) -> int:
    """Levenshtein's: the fewest letters to put in, take out or change."""
    before = list(range(len(right) + 1))
    for row, letter in enumerate(left, start=1):
        now = [row]
        for column, other in enumerate(right, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != other)))
        before = now
    return before[-1]


def someone_elses(true: Sequence[str], groups: Sequence[str]) -> list[str]:
    """For every logo the words that people wrote of another one, of another group where there is one."""
    count = len(true)
    found = []
    for place, group in enumerate(groups):
        # half of the list away, so that neighbours do not all get the same one
        others = [(place + count // 2 + step) % count for step in range(count)]
        found.append(true[next((other for other in others if groups[other] != group), others[0])])
    return found
