"""Finds the cards of a page when their class is gone: repeated blocks that each hold one logo.

A block grows from a picture, a heading or a link for as long as it holds no second one of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Final

from bs4 import BeautifulSoup, Tag

from scraper.sites.image_addresses import files_in
from scraper.sites.logo_names import read_file_name

HEADING: Final = re.compile(r"^h[1-6]$")
_TOO_LARGE: Final = frozenset({"html", "body", "main", "header", "footer", "nav", "aside", "[document]"})
_SKIPPED: Final = frozenset({"header", "footer", "nav", "aside", "head", "script", "style"})


def find_blocks(soup: BeautifulSoup, page_url: str, links_in: Callable[[Tag], list[str]]) -> list[Tag]:
    """The blocks that hold one logo each, in the order of the page.

    Args:
        soup: the page.
        page_url: for addresses that are relative.
        links_in: the links to a team's page that an element itself is.
    """
    holds: dict[int, dict[str, set[Hashable]]] = defaultdict(lambda: defaultdict(set))
    seeds: list[Tag] = []
    for tag in soup.find_all(True):
        found: dict[str, set[Hashable]] = {
            "picture": set(files_in(tag, page_url)) if tag.name != "link" else set(),
            "heading": {id(tag)} if HEADING.match(tag.name) else set(),
            "link": set(links_in(tag)) if tag.name == "a" else set(),
        }
        if not any(found.values()) or any(parent.name in _SKIPPED for parent in tag.parents):
            continue
        seeds.append(tag)
        for element in (tag, *tag.parents):
            for kind, values in found.items():
                holds[id(element)][kind] |= values
    blocks = {id(block): block for block in (_grown(seed, holds) for seed in seeds)}
    return _cards(list(blocks.values()), holds)


def _grown(seed: Tag, holds: dict[int, dict[str, set[Hashable]]]) -> Tag:
    block = seed
    while block.parent is not None and block.parent.name not in _TOO_LARGE:
        if any(len(values) > 1 for values in holds[id(block.parent)].values()):
            break
        block = block.parent
    return block


def _cards(blocks: list[Tag], holds: dict[int, dict[str, set[Hashable]]]) -> list[Tag]:
    """The blocks that are sure to be cards, and those that look like one of them."""

    def is_sure(block: Tag) -> bool:
        held = holds[id(block)]
        is_named = any(read_file_name(f"/{name}.png") for name in held["picture"])
        return bool(held["picture"] and held["link"]) or bool(
            is_named and (held["heading"] or block.find("p"))
        )

    def has_words(block: Tag) -> bool:
        held = holds[id(block)]
        return bool(held["heading"] or held["link"] or block.find("p"))

    makes = {_make(block) for block in blocks if is_sure(block)}
    return [block for block in blocks if is_sure(block) or (_make(block) in makes and has_words(block))]


def _make(block: Tag) -> tuple[int, str, frozenset[str]]:
    """What the cards of one page have in common: parent, element and classes but for their numbers."""
    classes: list[str] | str = block.get("class") or []
    words = frozenset(str(name) for name in classes if not any(letter.isdigit() for letter in str(name)))
    return id(block.parent), block.name, words
