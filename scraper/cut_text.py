"""Captions that a page cut with '…': tell them, complete them from the whole text, or end them at a clause.

Refuses to invent: what is cut back is a part of what was there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MIN_WORDS: Final = 4
"""Fewer words describe no logo."""
_ENDINGS: Final = re.compile(r"\s*(…|\.\.\.|\[…\]|\[\.\.\.\])+\s*$")
_SENTENCE_END: Final = re.compile(r'(?:(?<=\w{3})|(?<=["”)]))[.!?](?=\s|$)|[.!?]["”\')]+(?=\s|$)')
"""A full stop, but not that of "St." or "N."."""
_CLAUSE: Final = re.compile(
    r"[,;]\s|\s(?=(?:with|above|below|over|under|on|in|inside|behind|beneath|next to|and|written)\s)"
)


def tidy(text: str) -> str:
    """One space between words, none at the ends; no-break and zero-width spaces are spaces too."""
    return " ".join(text.replace("\u200b", " ").replace("\ufeff", " ").split())


def is_cut(text: str) -> bool:
    """Whether a caption ends in '…' or '...'."""
    return _ENDINGS.search(text) is not None


def stem(text: str) -> str:
    """The text before the '…'."""
    return _ENDINGS.sub("", text)


def _comparable(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def completions(text: str, candidates: Iterable[str]) -> list[str]:
    """Whole texts that begin with the words of a cut caption, each once, in order."""
    begun = _comparable(stem(text))
    found = (tidy(candidate) for candidate in candidates)
    whole = (one for one in found if begun and not is_cut(one) and _comparable(one).startswith(begun))
    return list(dict.fromkeys(whole))


def cut_back(text: str) -> str | None:
    """End a cut caption at its last full sentence, else at its last clause.

    Returns:
        the shorter caption, or None when too little would be left.
    """
    begun = stem(text)
    sentences = [found.end() for found in _SENTENCE_END.finditer(begun)]
    clauses = [found.start() for found in _CLAUSE.finditer(begun)]
    for end in [*reversed(sentences), *reversed(clauses)]:
        part = begun[:end].rstrip(" ,;")
        has_whole_quotes = len(re.findall('["“”]', part)) % 2 == 0
        if has_whole_quotes and len(part.split()) >= MIN_WORDS:
            return part if re.search(r"[.!?][\"”')]*$", part) else f"{part}."
    return None
