"""sportslogohistory.com: league pages of cards and team pages with the whole text -> cards.

Reads what the theme of the site writes, in the spellings that themes and their plugins give to one thing;
where the class of the cards is gone, blocks that look like cards (blocks.py). Refuses to fetch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString

from scraper.config import SourceConfig
from scraper.cut_text import completions, is_cut, tidy
from scraper.groups import Groups
from scraper.sites import Assembled, Card, Found, Visit
from scraper.sites.blocks import HEADING, find_blocks
from scraper.sites.image_addresses import absolute, image_addresses, source_file
from scraper.sites.logo_names import read_file_name, slug

CELL: Final = "x-cell"
LEAGUE_LINK: Final = re.compile(r"/[^/]*(?:-primary-logos?|-logos)/?$")
TEAM_LINK: Final = re.compile(
    r"\bteam logos?\b|\b(?:all|more|full)\b.{0,20}\blogos?\b|\blogo history\b", re.I
)
_MORE_LINK: Final = re.compile(r"^\W*(?:read|continue|see|learn|view)?\W*(?:more|reading)?\W*$", re.I)
_TITLE_CLASS: Final = re.compile(r"head(?:line|ing)|title|team-?name", re.I)
_YEARS_ONLY: Final = re.compile(r"\W*\d{4}\W*(?:\d{2,4}|pres\w*|now)?\W*$", re.I)
_BREAKS: Final = frozenset(("br", "p", "div", "li", "td", "tr", "h1", "h2", "h3", "h4", "h5", "h6"))
_PAGE: Final = re.compile(r"(?:/|\.html?|\.php)$|/[^/.]+$", re.I)
_EXPECTED: Final = {
    "index": 'links like "/nba-primary-logo/"',
    "league": f'cards (elements whose class begins with "{CELL}", or repeated blocks of a picture, a heading '
    'and a link "See Team Logos")',
    "team": "paragraphs or cards",
}


def _soup(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def parse_league_page(html: str, url: str) -> list[Card]:
    """The cards of a league or team page, in order; a card without a picture is a card too."""
    return _cards(_soup(html), url)


def parse_team_page(html: str, url: str) -> tuple[list[Card], list[str]]:
    """The cards of a team page and all its paragraphs."""
    soup = _soup(html)
    texts = [_text(paragraph) for paragraph in soup.find_all(["p", "figcaption", "dd"])]
    return _cards(soup, url), [text for text in dict.fromkeys(texts) if text]


def parse_index(html: str, url: str) -> list[str]:
    """The league pages that the root page links to, on the same host."""
    links = (absolute(url, str(link["href"])) for link in _soup(html).find_all("a", href=True))
    ours = (link for link in links if link and _is_same_host(link, url))
    return list(dict.fromkeys(link for link in ours if LEAGUE_LINK.search(urlsplit(link).path)))


class SportsLogoHistory:
    """The site: root page -> league pages -> cards, and team pages for what was cut."""

    def start(self, source: SourceConfig) -> list[Visit]:
        """The league pages of the config, or the root page that links to them."""
        root = source.root_url
        if not source.targets:
            return [Visit(root, "index")]
        pages = (absolute(root, target) for target in source.targets)
        return [Visit(page, "league") for page in pages if page]

    def expected(self, visit: Visit) -> str:
        """What `read` looks for, selectors and all."""
        return _EXPECTED[visit.purpose]

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


def _is_same_host(url: str, other: str) -> bool:
    hosts = [urlsplit(one).netloc.lower().removeprefix("www.") for one in (url, other)]
    return hosts[0] == hosts[1]


def _cards(soup: BeautifulSoup, url: str) -> list[Card]:
    cells = list(_cells(soup, url)) or find_blocks(soup, url, lambda link: _named_links(link, url))
    return [_card(cell, url) for cell in cells]


def _cells(soup: BeautifulSoup, url: str) -> Iterator[Tag]:
    for cell in soup.find_all(_is_cell):
        if cell.find_parent(_is_cell) is None:
            yield from _single_cells(cell, url)


def _is_cell(tag: Tag) -> bool:
    classes: list[str] | str = tag.get("class") or []
    return any(str(name).startswith(CELL) for name in classes)


def _single_cells(cell: Tag, url: str) -> Iterator[Tag]:
    """The cell, or those in it when it only wraps several cards."""
    inner = [one for one in cell.find_all(_is_cell) if one.find_parent(_is_cell) is cell]
    pictured = [one for one in inner if image_addresses(one, url)]
    headed = [one for one in inner if one in pictured or one.find(HEADING)]
    is_wrapper = len(pictured) > 1 or (len(headed) > 1 and len(_team_links(cell, url)) > 1)
    if is_wrapper:
        for one in headed:
            yield from _single_cells(one, url)
    elif cell.find(HEADING) or image_addresses(cell, url) or any(_named_links(a, url) for a in cell("a")):
        yield cell


def _card(cell: Tag, page_url: str) -> Card:
    image_urls = image_addresses(cell, page_url)
    named = next((found for found in map(read_file_name, image_urls) if found), None)
    heading = _heading(cell)
    title = tidy(heading.get_text(" ")) if heading is not None else _alternative_text(cell)
    links = _team_links(cell, page_url)
    team = named.team if named else ""
    return Card(
        image_urls=image_urls,
        title=title or team.replace("-", " ").title(),
        caption=_caption(cell, heading),
        kind=named.kind if named else "",
        years=named.years if named else "",
        page_url=page_url,
        team_url=links[0] if links else "",
        group=team or slug(title),
        licence=_licence(cell, page_url),
        source_file=source_file(image_urls[0], page_url) if image_urls else "",
    )


def _heading(cell: Tag) -> Tag | None:
    """The heading, or what is styled as one."""
    found = (cell.find(HEADING), cell.find(role="heading"), cell.find(class_=_TITLE_CLASS))
    return next((one for one in found if one is not None and tidy(one.get_text(" "))), None)


def _alternative_text(cell: Tag) -> str:
    texts = (tidy(str(image.get("alt") or "")) for image in cell.find_all("img"))
    return next((text for text in texts if text), "")


def _named_links(link: Tag, page_url: str) -> list[str]:
    """The address of a link that says that it leads to a team's logos."""
    said = " ".join((link.get_text(" "), str(link.get("title") or ""), str(link.get("aria-label") or "")))
    url = absolute(page_url, str(link.get("href") or "")) if TEAM_LINK.search(tidy(said)) else None
    return [url] if url and url != page_url.partition("#")[0] else []


def _team_links(cell: Tag, page_url: str) -> list[str]:
    """Where the card's links lead: those that say so; without any, those to a page of this site."""
    links = [*([cell] if cell.name == "a" else []), *cell.find_all("a", href=True)]
    named = [url for link in links for url in _named_links(link, page_url)]
    if named:
        return list(dict.fromkeys(named))
    urls = (absolute(page_url, str(link.get("href") or "")) for link in links)
    ours = (url for url in urls if url and _is_same_host(url, page_url) and url != page_url)
    return list(dict.fromkeys(url for url in ours if _PAGE.search(urlsplit(url).path)))


def _text(tag: Tag) -> str:
    """The words of a paragraph, without those of links that lead on."""
    skipped = {id(link) for link in tag.find_all("a") if _leads_on(link)}
    parts: list[str] = []
    for part in tag.descendants:
        if isinstance(part, Tag):
            parts.append(" " if part.name in _BREAKS else "")
        elif type(part) is NavigableString and not any(id(above) in skipped for above in part.parents):
            parts.append(part)
    return tidy("".join(parts))


def _leads_on(link: Tag) -> bool:
    words = tidy(link.get_text(" "))
    return bool(TEAM_LINK.search(words) or _MORE_LINK.match(words))


def _caption(cell: Tag, heading: Tag | None) -> str | None:
    """The longest text beside the heading that is not only years or a link, best in a paragraph."""
    skipped: set[int] = set()
    if heading is not None:
        skipped = {id(tag) for tag in (heading, *heading.parents, *heading.find_all(True))}
    for names in (["p"], ["figcaption", "dd", "blockquote", "li", "span", "div"]):
        texts = []
        for tag in cell.find_all(names):
            if id(tag) in skipped or tag.find("img"):
                continue
            linked = tidy(" ".join(link.get_text(" ") for link in tag.find_all("a")))
            text = _text(tag)
            texts.append("" if text == linked or _YEARS_ONLY.match(text) else text)
        longest = max(texts, key=len, default="")
        if longest:
            return longest
    return None


def _licence(cell: Tag, page_url: str) -> str:
    """Where the card or its page links to a licence."""
    root = cell.find_parents()[-1] if cell.parent is not None else cell
    for link in (*cell.find_all("a", rel="license"), *root.find_all("link", rel="license")):
        url = absolute(page_url, str(link.get("href") or ""))
        if url:
            return url
    return ""


def _completed(card: Card, team: Found | None) -> tuple[Card, str]:
    """The card with its whole caption, and how that was come by."""
    if card.caption and not is_cut(card.caption):
        return card, "whole"
    same = [one for one in team.references if _is_same_file(one, card)] if team else []
    own = [one.caption for one in same if one.caption]
    if not card.caption:
        whole = [text for text in own if not is_cut(text)]
        return (replace(card, caption=whole[0]), "completed") if whole else (card, "missing")
    whole = completions(card.caption, own) or completions(card.caption, team.texts if team else ())
    if len(whole) == 1:  # two texts that begin alike tell nothing
        return replace(card, caption=whole[0]), "completed"
    return card, "cut"


def _is_same_file(one: Card, other: Card) -> bool:
    """Whether both show the same file, wherever it lies."""
    names = [card.source_file.rsplit("/", 1)[-1] for card in (one, other)]
    return names[0] == names[1] != ""


def _grouped(cards: Sequence[Card]) -> Iterator[Card]:
    """One group for all that shares a team page or a team's name."""
    groups = Groups()
    for card in cards:
        groups.merge(key for key in (card.group, card.team_url and f"~{card.team_url}") if key)
    for card in cards:
        names = [groups.name(card.group)] if card.group else [groups.name(f"~{card.team_url}")]
        yield replace(card, group=names[0])
