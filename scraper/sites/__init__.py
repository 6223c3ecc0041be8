"""The sources, one file each: html or files -> cards; a site never fetches and never writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from scraper.config import SourceConfig
from scraper.harvest import Drop


@dataclass(frozen=True)
class Visit:
    """An address and why it is visited; "image" is a picture, any other purpose is the site's own."""

    url: str
    purpose: str


@dataclass(frozen=True)
class Card:
    """One logo as a source shows it."""

    image_urls: tuple[str, ...]
    """where the picture may be, best first; empty when the card has none"""
    title: str = ""
    caption: str | None = None
    kind: str = ""
    years: str = ""
    page_url: str = ""
    team_url: str = ""
    """page of the club with the whole text; empty when there is none"""
    group: str = ""
    """what must not be split over train and test"""
    licence: str = ""
    further_captions: tuple[str, ...] = ()
    """the source's own words beside `caption`, where it has several"""
    written_by: str = ""
    """who wrote them; empty: as source.written_by says"""
    source_file: str = ""
    """what renditions of one file share; empty when unknown"""
    source: str = ""
    """where it came from in the first place; empty: from this source"""
    fetched_at: str = ""
    """when it was had there, ISO 8601 in UTC"""
    headers: Mapping[str, str] = field(default_factory=dict)
    """the HTTP headers that came with it"""


@dataclass(frozen=True)
class Found:
    """What one page holds."""

    cards: tuple[Card, ...] = ()
    """the logos that this page gives"""
    references: tuple[Card, ...] = ()
    """logos that other pages give; only their words are of use"""
    texts: tuple[str, ...] = ()
    """paragraphs that may complete a caption which another page cut"""
    visits: tuple[Visit, ...] = ()
    """pages to read next; pictures follow from the cards"""


@dataclass(frozen=True)
class Assembled:
    """All cards of a crawl, captions completed and groups merged."""

    cards: tuple[Card, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    """how many captions were whole, completed, cut, missing"""


class WebSite(Protocol):
    """A source that is read page by page; all of it is pure."""

    def start(self, source: SourceConfig) -> list[Visit]:
        """The first pages to visit."""
        ...

    def read(self, visit: Visit, html: str, url: str) -> Found:
        """What a page holds; `url` is where it was found in the end."""
        ...

    def expected(self, visit: Visit) -> str:
        """What `read` looks for on such a page, selectors and all: for the one who must mend it."""
        ...

    def assemble(self, pages: Sequence[tuple[Visit, Found]]) -> Assembled:
        """Put together what the pages gave, in the order they were found."""
        ...


@dataclass(frozen=True)
class Item:
    """A card of this machine and its picture, which is read when it is its turn."""

    card: Card
    where: str
    """the picture's name within the source, for messages and `Record.image_url`"""
    read: Callable[[], bytes]
    """the picture's bytes; raises Refused with the reason to count"""


@dataclass(frozen=True)
class Listing:
    """All that a source of this machine offers."""

    entries: Iterator[Item | Drop]
    """in the order of the source; a Drop is a row that leads to no picture"""
    fingerprint: str
    """changes when the source does"""
    size: int | None = None
    """how many entries there are, where that is known beforehand"""
    pictures: int | None = None
    """how many pictures there are at most, where that is known beforehand"""


def writable(entries: Iterable[Item | Drop]) -> Iterator[Item | Drop]:
    """Entries with a question mark for what no UTF-8 can hold: a byte of a file's name, half an emoji."""
    for entry in entries:
        if isinstance(entry, Drop):
            yield replace(entry, what=_writable(entry.what))
        else:
            said = {name: _writable(value) for name, value in vars(entry.card).items()}
            if said == vars(entry.card) and entry.where.isascii():
                yield entry
            else:
                yield replace(entry, card=replace(entry.card, **said), where=_writable(entry.where))


def _writable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, tuple):
        return tuple(map(_writable, value))
    if isinstance(value, Mapping):
        return {_writable(name): _writable(one) for name, one in value.items()}
    return value


class LocalSource(Protocol):
    """A source on this machine; it reads, and never writes into what it reads."""

    def open(self, source: SourceConfig) -> Listing:
        """List it.

        Raises:
            DataError: nothing there, or of another make.
        """
        ...


def web_site(name: str) -> WebSite:
    """The web site of this name."""
    from scraper.sites.sportslogohistory import SportsLogoHistory

    return {"sportslogohistory": SportsLogoHistory}[name]()


def local_source(name: str) -> LocalSource:
    """The source on this machine of this name."""
    from scraper.sites.folder import Folder
    from scraper.sites.instagram import Instagram
    from scraper.sites.kanji import Kanji
    from scraper.sites.shards import Shards

    sources: dict[str, type[LocalSource]] = {
        "folder": Folder,
        "shards": Shards,
        "kanji": Kanji,
        "instagram": Instagram,
    }
    return sources[name]()
