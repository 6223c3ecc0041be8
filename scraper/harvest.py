"""What a source gave before screening, whichever source it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crest.records import Record

if TYPE_CHECKING:  # numpy and PIL are not needed to count
    from scraper.likeness import Look


@dataclass(frozen=True)
class Drop:
    """Something that goes no further, under a named reason."""

    reason: str
    what: str
    """address, file name or id"""
    image: str = ""
    """where its bytes lie (as `Record.image`), if they were had"""
    like: str = ""
    """id of the kept picture that it repeats"""


@dataclass(frozen=True)
class Harvest:
    """Records and losses of one source."""

    records: tuple[Record, ...]
    looks: Mapping[str, Look]
    """what the pictures look like, by id"""
    dropped: tuple[Drop, ...]
    counts: Mapping[str, int]
    """what came in, by kind of thing"""
    fingerprint: str
    """changes when the source does"""
    page_failures: Mapping[str, int] = field(default_factory=dict)
    """named reason -> pages that could not be read"""


def reasons(dropped: tuple[Drop, ...] | list[Drop]) -> dict[str, int]:
    """How many were dropped for each reason, most frequent first."""
    return dict(Counter(drop.reason for drop in dropped).most_common())


def told(counts: Mapping[str, int]) -> str:
    """Counts as words: `http_404 1, no_image 3`."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "nothing"
