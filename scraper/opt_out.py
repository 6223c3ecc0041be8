"""What a site says about the use of its pages and pictures: against training, and under which licence.

Respected are noai, noimageai and noml (X-Robots-Tag, meta robots) and a text-and-data-mining reservation
(tdm-reservation: 1), said to everybody or to our user agent by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Final

OPT_OUTS: Final = frozenset({"noai", "noimageai", "noml"})
_WITH_VALUE: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that are followed by a colon themselves; any other word before a colon is a user agent."""
_AGENT: Final = re.compile(r"\D\S*")
"""Unlike the end of a date that holds a comma: unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT."""
_META: Final = re.compile(r"<meta\b[^<>]{0,2000}>", re.I)
_LOOKED_AT: Final = 500_000
_LICENCE: Final = re.compile(r"<([^<>]*)>\s*;[^,<>]*\brel\s*=\s*\"?license\"?", re.I)


def directives(value: str, agent: str) -> Iterator[str]:
    """The directives of X-Robots-Tag that are meant for us, in lower case.

    Args:
        value: the header; several headers of that name are lines of it.
        agent: our product token in lower case.
    """
    for line in value.lower().splitlines():
        is_ours = True
        for part in line.split(","):
            name, colon, rest = part.strip().partition(":")
            if colon and name.strip() not in _WITH_VALUE and _AGENT.fullmatch(name.strip()):
                is_ours, name = name.strip() == agent, rest
            if is_ours:
                yield name.strip()


def header_opt_out(headers: Mapping[str, str], agent: str) -> str:
    """What in an answer's headers asks not to use it for training; empty when nothing does."""
    tag = headers.get("x-robots-tag")
    found = OPT_OUTS.intersection(directives(tag, agent)) if tag else None
    if found:
        return f"X-Robots-Tag: {', '.join(sorted(found))}"
    if headers.get("tdm-reservation", "").strip() == "1":
        return "TDM-Reservation: 1"
    return ""


def linked_licence(headers: Mapping[str, str]) -> str:
    """The licence that an answer's own headers link to; empty when there is none."""
    found = _LICENCE.search(headers.get("link", ""))
    return found[1].strip() if found else ""


def page_opt_out(page: str, agent: str) -> str:
    """What in a page's meta elements asks not to use it for training; empty when nothing does."""
    for name, content in _metas(page):
        words = {word.strip() for word in re.split(r"[,\s]+", content)}
        found = OPT_OUTS & words if name in ("robots", agent) else set()
        if found:
            return f'<meta name="{name}" content="{", ".join(sorted(found))}">'
        if name == "tdm-reservation" and content.strip() == "1":
            return '<meta name="tdm-reservation" content="1">'
    return ""


def _metas(page: str) -> Iterable[tuple[str, str]]:
    """Name and content of the meta elements, in lower case; those in comments are none."""
    reader = _MetaReader()
    for tag in _META.findall(_without_comments(page[:_LOOKED_AT])):
        reader.feed(tag)
    return reader.found


def _without_comments(page: str) -> str:
    kept, at = [], 0
    while (start := page.find("<!--", at)) >= 0:
        kept.append(page[at:start])
        end = page.find("-->", start + 4)
        at = len(page) if end < 0 else end + 3
    return "".join((*kept, page[at:]))


class _MetaReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: (value or "").lower() for name, value in attrs}
        self.found.append((values.get("name", "").strip(), values.get("content", "")))
