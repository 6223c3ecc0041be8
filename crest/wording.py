"""What a description of a logo says: its colours, its things, its lettering, and whether it says too little.

Rules on text alone, in plain English; nothing here looks at a picture or asks a model.
"""

from __future__ import annotations

import re
from typing import Final

from crest.colours import COLOUR_WORDS, SPELLINGS, colour_words

MIN_WORDS: Final = 4
"""Fewer words describe no logo."""
SHARED_BY_MANY: Final = 20
"""Words of more pictures than this name a class, not a logo."""
REPEATS: Final = 4
"""A thing that is named so often in one description was not looked at again each time."""

FUNCTION_WORDS: Final = frozenset((
    "a", "about", "above", "across", "after", "all", "along", "also", "an", "and", "another", "any",
    "are", "around", "as", "at", "be", "been", "before", "behind", "being", "below", "beneath", "beside",
    "between", "beyond", "both", "but", "by", "can", "down", "during", "each", "either", "for", "from",
    "had", "has", "have", "having", "her", "his", "in", "inside", "into", "is", "it", "its", "itself",
    "just", "like", "many", "more", "most", "near", "next", "no", "not", "of", "off", "on", "one", "onto",
    "or", "other", "out", "outside", "over", "per", "same", "several", "so", "some", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "through", "to",
    "together", "too", "two", "three", "under", "underneath", "up", "upon", "very", "was", "were", "what",
    "where", "which", "while", "who", "whose", "with", "within", "without",
))  # fmt: skip
"""Words that hold a sentence together and name nothing."""
GENERIC_NOUNS: Final = frozenset((
    "art", "artwork", "clipart", "design", "diagram", "drawing", "emblem", "figure", "graphic", "icon",
    "illustration", "image", "logo", "mark", "object", "painting", "photo", "photograph", "picture",
    "print", "scene", "screenshot", "shape", "sign", "sketch", "sticker", "symbol", "thing", "vector", "view",
))  # fmt: skip
"""What every logo is: a description that names nothing else says nothing."""
GENERIC_WORDS: Final = GENERIC_NOUNS | frozenset((
    "abstract", "background", "big", "bright", "clean", "close", "color", "colored", "colorful", "colour",
    "coloured", "colourful", "cool", "dark", "different", "flat", "front", "good", "great", "large", "light",
    "modern", "new", "nice", "old", "plain", "pretty", "round", "shaped", "show", "simple", "small", "square",
    "style", "sport", "team", "club", "top", "various", "vintage", "white", "circular", "circle", "center",
    "middle", "side", "text", "word", "letter", "lettering",
))  # fmt: skip
"""These, and what is said of any of them; a circle or a word alone does not tell one logo from another."""
_IRREGULAR: Final = {
    "wolves": "wolf", "leaves": "leaf", "halves": "half", "hooves": "hoof", "knives": "knife",
    "calves": "calf", "feet": "foot", "teeth": "tooth", "geese": "goose", "mice": "mouse", "men": "man",
    "women": "woman", "oxen": "ox", "axes": "axe", "gas": "gas", "bus": "bus", "lens": "lens",
}  # fmt: skip
COLOUR_PARTS: Final = frozenset(word for name in (*COLOUR_WORDS, *SPELLINGS) for word in name.split())
"""The single words of which names of colours are made."""
_QUOTED: Final = re.compile(r'"([^"“”]+)"|“([^"“”]+)”|«([^«»]+)»|„([^„“”]+)[“”]')
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ELLIPSIS: Final = re.compile(r"(…|\.\.\.)[\s\"”')\]]*$")
_DANGLING: Final = re.compile(
    r"\b(a|an|the|and|or|of|with|at|to|for|from|between|into|is|are|that|which|its|their)\s*[,;:]?$",
    re.IGNORECASE,
)
"""Words that no description ends with; "below" and "in" may well be the last."""
_OF_A_PICTURE: Final = re.compile(
    r"\b(?:close[- ]?up|photo|photograph|picture|image|drawing|view|group|bunch|pair|couple|set)s?"
    r"(?: view)? of\b",
    re.IGNORECASE,
)
_AGAIN: Final = re.compile(r"\b([^\W\d_]+(?: [^\W\d_]+){0,4}?)(?:,? \1)+\b", re.IGNORECASE)


def quoted_words(text: str) -> list[str]:
    """What stands in double quotes, straight or curly, in order: the lettering that a description names."""
    found = [" ".join("".join(groups).split()) for groups in _QUOTED.findall(text)]
    return [words for words in found if words]


def unquoted(text: str) -> str:
    """The text without what stands in quotes."""
    return _QUOTED.sub(" ", text)


def stem(word: str) -> str:
    """A word's singular in lower case, by English spelling: `stars` and `star's` are `star`.

    Light on purpose: verbs keep their endings (`striped` is not `stripes`), unknown plurals stay as they are.
    """
    word = re.sub(r"['’]s?$|['’]s\b", "", word.lower())
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def content_words(text: str) -> list[str]:
    """The words of a description that name things: stems, each once, in order.

    Left out are colours, function words, lettering in quotes and numbers.
    """
    words = (word.lower() for word in _WORD.findall(unquoted(text)))
    named = (stem(word) for word in words if word not in FUNCTION_WORDS and word not in COLOUR_PARTS)
    return list(dict.fromkeys(word for word in named if len(word) > 1))


def colours_of(text: str) -> list[str]:
    """The colour words of a description, each once, in order; a wordmark that reads "RED" names none."""
    return list(dict.fromkeys(colour_words(unquoted(text))))


def vague_reasons(text: str, *, is_shared: bool = False) -> tuple[str, ...]:
    """Why a description says too little of a logo, as named rules; none for a good one.

    Args:
        is_shared: more pictures of the collection have these words than one logo would.
    Returns:
        of these, in this order: `too_short` (fewer than four words), `no_colour`, `no_object` (nothing named
        but drawings, shapes, words), `generic_phrase` ("A blue lion drawing.", "a picture of a lion"),
        `cut_short` (ends in '…' or in the middle of a phrase), `duplicate_words` ("a star and a star and a
        star"), `shared_by_many`.
    """
    plain = unquoted(text).strip()
    things = content_words(text)
    checks = {
        "too_short": len(_WORD.findall(text)) < MIN_WORDS,
        "no_colour": not colours_of(text),
        "no_object": not quoted_words(text) and all(_is_generic(word) for word in things),
        "generic_phrase": not quoted_words(text) and _is_generic_phrase(plain, things),
        "cut_short": _ELLIPSIS.search(text) is not None or _DANGLING.search(text.rstrip()) is not None,
        "duplicate_words": _repeats(plain),
        "shared_by_many": is_shared,
    }
    return tuple(name for name, holds in checks.items() if holds)


def _is_generic(word: str) -> bool:
    return word in GENERIC_WORDS


def _is_generic_phrase(text: str, things: list[str]) -> bool:
    """One thing called a picture: "a … drawing", "a picture of a …"."""
    words = [stem(word) for word in _WORD.findall(text)]
    named = [word for word in things if not _is_generic(word)]
    ends_so = bool(words) and words[-1] in GENERIC_NOUNS and len(words) <= 6
    return len(named) <= 1 and (ends_so or _OF_A_PICTURE.search(text) is not None)


def _repeats(text: str) -> bool:
    if _AGAIN.search(" ".join(text.split())):
        return True
    words = [stem(word) for word in _WORD.findall(text) if word.lower() not in FUNCTION_WORDS | COLOUR_PARTS]
    return any(words.count(word) >= REPEATS for word in set(words))


def shared_limit(pictures: int) -> int:
    """How many pictures of a collection may share their words before these name a class: a tenth, 3 to 20."""
    return min(SHARED_BY_MANY, max(3, pictures // 10))
