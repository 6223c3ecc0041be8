"""What the file name of a logo tells: team, years and kind; guesses nothing that is not in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

_ENDINGS: Final = re.compile(r"(?:-\d{1,5}x\d{1,5}|@\dx|-scaled|-rotated|-e\d{9,}|\s*\(\d{1,2}\))+$")
"""What WordPress and its plugins add to a name."""
_YEARS: Final = re.compile(
    r"(?<!\d)(?P<first>1[89]\d\d|20\d\d)(?!\d)"
    r"(?:[-_ ]+(?P<last>(?:1[89]|20)\d\d(?!\d)|pres(?:ent)?(?![a-z])|now(?![a-z])|\d\d(?!\d)))?",
    re.I,
)
_COPY: Final = re.compile(r"^\d{1,2}$")
_PRIMARY: Final = frozenset({"p", "primary", "logo", "main"})
_WORDMARK: Final = frozenset({"w", "wm", "wordmark", "word", "script"})
_ALTERNATE: Final = frozenset({"alt", "alternate", "secondary", "sec"})


@dataclass(frozen=True)
class FileName:
    """What the name of a picture tells."""

    team: str
    years: str
    kind: str
    """primary, alternate or wordmark; empty when the name ends in something else"""


def read_file_name(url: str) -> FileName | None:
    """Team, years and kind from a name like `denver_nuggets_2006-pres-a.png`; None when it has no years."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1].replace("\u2013", "-").replace("\u2014", "-")
    stem = _ENDINGS.sub("", name.rpartition(".")[0] or name)
    found = list(_YEARS.finditer(stem))
    if not found:
        return None
    years = found[-1]  # a club may have one in its name: 1860_munich_1995-2001
    before, behind = slug(stem[: years.start()]), stem[years.end() :]
    words = [word for word in re.split(r"[-_ .]+", behind.lower()) if word and not _COPY.match(word)]
    team = before or slug(" ".join(words))
    if not team:
        return None
    return FileName(team, _span(years["first"], years["last"]), _kind(words if before else []))


def _span(first: str, last: str | None) -> str:
    if last is None:
        return first
    if not last.isdigit():
        return f"{first}-present"
    if len(last) == 2:  # 1994-03
        century = int(first[:2]) + (int(last) < int(first[2:]))
        last = f"{century}{last}"
    return f"{first}-{last}"


def _kind(words: list[str]) -> str:
    if not words:
        return "primary"
    word = words[-1].rstrip("0123456789")
    if word in _PRIMARY:
        return "primary"
    if word in _WORDMARK:
        return "wordmark"
    return "alternate" if word in _ALTERNATE or len(word) == 1 else ""


def slug(text: str) -> str:
    """A name as one lower-case word with hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")
