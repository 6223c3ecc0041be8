"""How far a written caption names what a human one names: colour words, and words of things."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from crest.colours import colour_words
from crest.wording import COLOUR_PARTS, FUNCTION_WORDS, unquoted

FREQUENT_SHARE: Final = 0.01
"""Words of fewer captions are names, years and rarities, which no picture tells."""
_WORD: Final = re.compile(r"[^\W\d_]+")


def object_words(caption: str) -> set[str]:
    """The words of a caption that are no colours, no function words and no lettering in quotes.

    As they are written, where `crest.wording.content_words` has stems: a captioner's `things` are such words.
    """
    return set(_WORD.findall(unquoted(caption).lower())) - COLOUR_PARTS - FUNCTION_WORDS


def frequent_words(captions: Sequence[str]) -> frozenset[str]:
    """The object words that at least one caption in a hundred has."""
    counts = Counter(word for caption in captions for word in object_words(caption))
    return frozenset(word for word, count in counts.items() if count >= FREQUENT_SHARE * len(captions))


def word_scores(written: Sequence[str], true: Sequence[str], objects: Collection[str]) -> dict[str, float]:
    """Precision, recall and F1 of the words that captions share, each word counted once a caption.

    Args:
        written: by the captioner.
        true: by people, of the same pictures.
        objects: the words of things that count.
    Returns:
        `colour_word_precision`, `_recall` and `_f1`, and the same of `object_word`; in [0, 1].
    """
    wanted = frozenset(objects)
    pairs = list(zip(written, true, strict=True))
    return {
        **_scores(
            "colour_word", ((set(colour_words(ours)), set(colour_words(theirs))) for ours, theirs in pairs)
        ),
        **_scores("object_word", ((object_words(a) & wanted, object_words(b) & wanted) for a, b in pairs)),
    }


def _scores(name: str, pairs: Iterable[tuple[set[str], set[str]]]) -> dict[str, float]:
    shared = ours = theirs = 0
    for written, true in pairs:
        shared, ours, theirs = shared + len(written & true), ours + len(written), theirs + len(true)
    precision, recall = shared / max(1, ours), shared / max(1, theirs)
    return {
        f"{name}_precision": precision,
        f"{name}_recall": recall,
        f"{name}_f1": 2 * shared / max(1, ours + theirs),
    }
