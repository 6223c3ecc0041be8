"""sportslogohistory.com: league pages of cards and team pages with the whole text -> cards.

Reads what the theme of the site writes, lazy loading in its usual spellings included; refuses to fetch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup, Tag

from scraper.config import SourceConfig
from scraper.cut_text import completions, is_cut, tidy
from scraper.groups import Groups
from scraper.sites import Assembled, Card, Found, Visit

CELL: Final = "x-cell"
LEAGUE_LINK: Final = re.compile(r"/[^/]*(?:-primary-logos?|-logos)/?$")
LAZY_SOURCES: Final = ("data-src", "data-lazy-src", "data-original", "data-orig-file", "data-large-file")
LAZY_SETS: Final = ("data-srcset", "data-lazy-srcset", "srcset")
_PLACEHOLDER: Final = re.compile(
    r"placeholder|spacer|blank|lazy|loading|pixel|1x1|grey\.gif|transparent", re.I
)
_RENDITION: Final = re.compile(r"-(\d+)x(\d+)(?=\.\w+$)")
_FILE_NAME: Final = re.compile(
    r"^(?P<team>.+?)[_-](?P<first>\d{4})(?:-(?P<last>\d{4}|pres(?:ent)?))?(?:[_-](?P<suffix>[a-z]{1,3}))?"
    r"(?:-scaled|-e\d{6,}|-\d{1,2})*$",
    re.I,
)


@dataclass(frozen=True)
class FileName:
    """What the name of a picture tells."""

    team: str
    years: str
    kind: str


def read_file_name(url: str) -> FileName | None:
    """Team, years and kind from a name like `denver_nuggets_2006-pres-a.png`; None when it tells nothing."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    found = _FILE_NAME.match(_RENDITION.sub("", name).rsplit(".", 1)[0])
    if not found:
        return None
    first, last, suffix = found["first"], found["last"], (found["suffix"] or "").lower()
    kind = "primary" if not suffix else "wordmark" if suffix.startswith("w") else "alternate"
    end = "present" if (last or "").lower().startswith("pres") else last
    return FileName(slug(found["team"]), f"{first}-{end}" if end else first, kind)


def slug(text: str) -> str:
    """A name as one lower-case word with hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


def parse_league_page(html: str, url: str) -> list[Card]:
    """The cards of a league or team page, in order; a card without a picture is a card too."""
    soup = BeautifulSoup(html, "html.parser")
    return [_card(cell, url) for cell in _cells(soup)]


def parse_team_page(html: str, url: str) -> tuple[list[Card], list[str]]:
    """The cards of a team page and all its paragraphs."""
    soup = BeautifulSoup(html, "html.parser")
    texts = [tidy(paragraph.get_text(" ")) for paragraph in soup.find_all("p")]
    return [_card(cell, url) for cell in _cells(soup)], [text for text in texts if text]


def parse_index(html: str, url: str) -> list[str]:
    """The league pages that the root page links to, on the same host."""
    soup = BeautifulSoup(html, "html.parser")
    links = (urljoin(url, str(link["href"])).partition("#")[0] for link in soup.find_all("a", href=True))
    ours = (link for link in links if urlsplit(link).netloc == urlsplit(url).netloc)
    return list(dict.fromkeys(link for link in ours if LEAGUE_LINK.search(urlsplit(link).path)))


class SportsLogoHistory:
    """The site: root page -> league pages -> cards, and team pages for what was cut."""

    def start(self, source: SourceConfig) -> list[Visit]:
        """The league pages of the config, or the root page that links to them."""
        root = source.root_url
        if not source.targets:
            return [Visit(root, "index")]
        return [Visit(urljoin(root, target), "league") for target in source.targets]

    def read(self, visit: Visit, html: str, url: str) -> Found:
        """What a root, league or team page holds."""
        if visit.purpose == "index":
            return Found(visits=tuple(Visit(link, "league") for link in parse_index(html, url)))
        if visit.purpose == "team":
            team_cards, texts = parse_team_page(html, url)
            return Found(references=tuple(team_cards), texts=tuple(texts))
        cards = parse_league_page(html, url)
        unfinished = (card for card in cards if card.team_url and (not card.caption or is_cut(card.caption)))
        links = dict.fromkeys(card.team_url for card in unfinished)
        return Found(cards=tuple(cards), visits=tuple(Visit(link, "team") for link in links))

    def assemble(self, pages: Sequence[tuple[Visit, Found]]) -> Assembled:
        """The cards of the league pages, completed from the team pages, one group for each club."""
        teams = {visit.url: found for visit, found in pages if visit.purpose == "team"}
        counts: Counter[str] = Counter(caption_whole=0, caption_completed=0, caption_cut=0, caption_missing=0)
        cards: list[Card] = []
        for visit, found in pages:
            if visit.purpose != "league":
                continue
            for card in found.cards:
                whole, how = _completed(card, teams.get(card.team_url))
                counts[f"caption_{how}"] += 1
                cards.append(whole)
        return Assembled(tuple(_grouped(cards)), dict(counts))


def _cells(soup: BeautifulSoup) -> Iterator[Tag]:
    for cell in soup.find_all(_is_cell):
        if cell.find_parent(_is_cell) is None:
            yield from _single_cells(cell)


def _is_cell(tag: Tag) -> bool:
    classes: list[str] | str = tag.get("class") or []
    return tag.name == "div" and any(str(name).startswith(CELL) for name in classes)


def _single_cells(cell: Tag) -> Iterator[Tag]:
    """The cell, or those in it when it only wraps several cards."""
    inner = [one for one in cell.find_all(_is_cell) if one.find_parent(_is_cell) is cell]
    headed = [one for one in inner if one.find(re.compile(r"^h[1-6]$")) or one.find("img")]
    pictured = [one for one in inner if one.find("img")]
    is_wrapper = len(pictured) > 1 or (len(headed) > 1 and len(_team_links(cell)) > 1)
    if is_wrapper:
        for one in headed:
            yield from _single_cells(one)
    elif cell.find("img") or cell.find(re.compile(r"^h[1-6]$")):
        yield cell


def _card(cell: Tag, page_url: str) -> Card:
    image_urls = tuple(_image_urls(cell, page_url))
    named = next((found for found in map(read_file_name, image_urls) if found), None)
    heading = cell.find(re.compile(r"^h[1-6]$"))
    image = cell.find("img")
    alt = str(image.get("alt") or "") if image else ""
    title = tidy(heading.get_text(" ")) if heading else tidy(alt)
    links = _team_links(cell)
    team = named.team if named else ""
    return Card(
        image_urls=image_urls,
        title=title or team.replace("-", " ").title(),
        caption=_caption(cell),
        kind=named.kind if named else "",
        years=named.years if named else "",
        page_url=page_url,
        team_url=urljoin(page_url, links[0]).partition("#")[0] if links else "",
        group=team or slug(title),
    )


def _team_links(cell: Tag) -> list[str]:
    links = [
        link for link in cell.find_all("a", href=True) if "team logos" in tidy(link.get_text(" ")).lower()
    ]
    return list(dict.fromkeys(str(link["href"]) for link in links))


def _caption(cell: Tag) -> str | None:
    """The longest paragraph that is not only a link."""
    texts = []
    for paragraph in cell.find_all("p"):
        linked = " ".join(tidy(link.get_text(" ")) for link in paragraph.find_all("a"))
        text = tidy(paragraph.get_text(" "))
        texts.append("" if text == linked else text)
    longest = max(texts, key=len, default="")
    return longest or None


def _image_urls(cell: Tag, page_url: str) -> Iterator[str]:
    """Full sizes first, then renditions from large to small; placeholders and data: never."""
    found: dict[str, int] = {}
    for image in cell.find_all(["img", "source"]):
        for name in LAZY_SOURCES:
            _note(found, image.get(name), page_url)
        for name in LAZY_SETS:
            for part in str(image.get(name) or "").split(","):
                words = part.split()
                _note(found, words[0] if words else None, page_url)
        _note(found, image.get("src"), page_url)
    renditions = sorted((url for url in found if _RENDITION.search(url)), key=lambda url: -found[url])
    full = [_RENDITION.sub("", url) for url in found]
    yield from dict.fromkeys([*full, *renditions])


def _note(found: dict[str, int], value: object, page_url: str) -> None:
    address = str(value or "").strip()
    if not address or address.startswith("data:"):
        return
    url = urljoin(page_url, address)
    path = urlsplit(url).path
    if urlsplit(url).scheme not in ("http", "https") or _PLACEHOLDER.search(path.rsplit("/", 1)[-1]):
        return
    size = _RENDITION.search(path)
    found.setdefault(url, int(size[1]) * int(size[2]) if size else 0)


def _completed(card: Card, team: Found | None) -> tuple[Card, str]:
    """The card with its whole caption, and how that was come by."""
    if card.caption and not is_cut(card.caption):
        return card, "whole"
    names = {_picture_name(url) for url in card.image_urls}
    same = (
        [one for one in team.references if names & {_picture_name(url) for url in one.image_urls}]
        if team
        else []
    )
    own = [one.caption for one in same if one.caption]
    if not card.caption:
        whole = [text for text in own if not is_cut(text)]
        return (replace(card, caption=whole[0]), "completed") if whole else (card, "missing")
    whole = completions(card.caption, own) or completions(card.caption, team.texts if team else ())
    if len(whole) == 1:  # two texts that begin alike tell nothing
        return replace(card, caption=whole[0]), "completed"
    return card, "cut"


def _picture_name(url: str) -> str:
    return _RENDITION.sub("", urlsplit(url).path).rsplit("/", 1)[-1].lower()


def _grouped(cards: Sequence[Card]) -> Iterator[Card]:
    """One group for all that shares a team page or a team's name."""
    groups = Groups()
    for card in cards:
        groups.merge(key for key in (card.group, card.team_url and f"~{card.team_url}") if key)
    for card in cards:
        names = [groups.name(card.group)] if card.group else [groups.name(f"~{card.team_url}")]
        yield replace(card, group=names[0])
