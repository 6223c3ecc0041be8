"""One league page under the changes that themes and their plugins make: the cards stay the same."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag

from scraper.sites import Card
from scraper.sites.sportslogohistory import parse_league_page

URL = "https://sportslogohistory.com/nba-primary-logo/"
PLAIN = (Path(__file__).parent.parent / "pages" / "league_plain.html").read_text(encoding="utf-8")
PLACEHOLDER = "/wp-content/plugins/lazy/placeholder.gif"
Change = Callable[[BeautifulSoup], None]


def cells(soup: BeautifulSoup) -> list[Tag]:
    return soup.find_all(class_=re.compile("^(?:x-cell|card-item)$"))


def images(soup: BeautifulSoup) -> list[Tag]:
    return [image for cell in cells(soup) for image in cell.find_all("img", attrs={"data-src": True})]


def tag_of(html: str) -> Tag:
    found = BeautifulSoup(html, "html.parser").find(True)
    assert isinstance(found, Tag)
    return found


def wrappers(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        inner = tag_of('<div class="x-div"><div class="inner"></div></div>')
        for child in list(cell.children):
            inner.div.append(child.extract())
        cell.append(inner)
        cell.wrap(tag_of('<div class="x-col"></div>'))


def renamed_lazy_attribute(name: str) -> Change:
    def change(soup: BeautifulSoup) -> None:
        for image in images(soup):
            image[name] = image["data-src"]
            del image["data-src"]

    return change


def srcset(name: str) -> Change:
    def change(soup: BeautifulSoup) -> None:
        for image in images(soup):
            full = str(image["data-src"])
            small = full.replace(".png", "-300x200.png")
            image[name] = f"{small} 300w, {full} 1200w"
            image["src"] = PLACEHOLDER
            del image["data-src"]

    return change


def noscript(soup: BeautifulSoup) -> None:
    for image in images(soup):
        fallback = tag_of("<noscript></noscript>")
        fallback.append(tag_of(f'<img src="{image["data-src"]}">'))
        image.insert_after(fallback)
        image["src"] = PLACEHOLDER
        del image["data-src"]


def picture(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image.wrap(tag_of("<picture></picture>"))
        webp, full = f"{image['data-src']}.webp", image["data-src"]
        image.insert_before(tag_of(f'<source type="image/png" srcset="{full}">'))
        image.insert_before(tag_of(f'<source type="image/webp" data-srcset="{webp}">'))
        del image["data-src"]


def thumbnails(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image["data-src"] = str(image["data-src"]).replace(".png", "-150x150.png")


def retina(soup: BeautifulSoup) -> None:
    for image in images(soup):
        full = str(image["data-src"])
        image["srcset"] = f"{full} 1x, {full.replace('.png', '@2x.png')} 2x"


def versions(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image["data-src"] = f"{image['data-src']}?ver=6.4.2"


def photon(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image["src"] = f"https://i1.wp.com/sportslogohistory.com{image['data-src']}?resize=150%2C150&ssl=1"
        del image["data-src"]


def cloudflare(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image["src"] = f"/cdn-cgi/image/width=300,format=auto{image['data-src']}"
        del image["data-src"]


def background(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image.replace_with(
            tag_of(f'<div class="bg" style="background-image:url({image["data-src"]})"></div>')
        )


def lazy_background(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image.replace_with(tag_of(f'<span class="lazyload" data-bg="{image["data-src"]}"></span>'))


def amp(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image.name = "amp-img"
        image["src"] = image["data-src"]
        del image["data-src"]


def lightbox(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image.wrap(tag_of(f'<a class="lightbox" href="{image["data-src"]}"></a>'))
        image["src"] = str(image["data-src"]).replace(".png", "-150x150.png")
        del image["data-src"]


def absolute_addresses(soup: BeautifulSoup) -> None:
    for image in images(soup):
        image["data-src"] = f"//www.sportslogohistory.com{image['data-src']}"


def elements(name: str) -> Change:
    def change(soup: BeautifulSoup) -> None:
        for cell in cells(soup):
            cell.name = name

    return change


def other_class(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        cell["class"] = ["card-item"]


def no_class(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        del cell["class"]


def other_headings(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        for heading in cell.find_all(["h3"]):
            heading.name = "h5"


def styled_headings(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        for heading in cell.find_all(["h3"]):
            heading.name = "div"
            heading["class"] = ["x-text-content-text-primary", "x-headline"]


def texts_in_divs(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        for paragraph in cell.find_all("p"):
            paragraph.name = "div"


def linked_headings(soup: BeautifulSoup) -> None:
    """The link "See Team Logos" goes, the heading leads to the team."""
    for cell in cells(soup):
        link = cell.find("a", string="See Team Logos")
        heading = cell.find(["h3", "h5"])
        if link is not None and heading is not None:
            heading.string = ""
            heading.append(tag_of(f'<a href="{link["href"]}">{cell_titles[str(link["href"])]}</a>'))
            link.find_parent(["p", "div"]).decompose()


cell_titles = {
    str(cell.find("a")["href"]): cell.find("h3").get_text()
    for cell in cells(BeautifulSoup(PLAIN, "html.parser"))
}


def other_words(soup: BeautifulSoup) -> None:
    for link in soup.find_all("a", string="See Team Logos"):
        link.string = "View All Team Logos »"


def icons(soup: BeautifulSoup) -> None:
    for cell in cells(soup):
        cell.append(tag_of('<img class="emoji" src="https://s.w.org/images/core/emoji/14/72x72/1f3c0.png">'))
        cell.append(tag_of('<img src="/wp-content/themes/x/img/spacer.gif">'))


def comments(soup: BeautifulSoup) -> None:
    from bs4 import Comment

    for cell in cells(soup):
        cell.insert(0, Comment('<div class="x-cell"><h3>Never</h3><img src="/never_1990.png"></div>'))
        if paragraph := cell.find("p"):
            paragraph.append(Comment(" wp:paragraph "))


CHANGES: dict[str, Change] = {
    "wrappers": wrappers,
    "data-lazy-src": renamed_lazy_attribute("data-lazy-src"),
    "data-original": renamed_lazy_attribute("data-original"),
    "data-orig-file": renamed_lazy_attribute("data-orig-file"),
    "src": renamed_lazy_attribute("src"),
    "srcset": srcset("srcset"),
    "data-srcset": srcset("data-srcset"),
    "data-lazy-srcset": srcset("data-lazy-srcset"),
    "noscript": noscript,
    "picture": picture,
    "thumbnails": thumbnails,
    "retina": retina,
    "versions": versions,
    "photon": photon,
    "cloudflare": cloudflare,
    "background": background,
    "lazy_background": lazy_background,
    "amp": amp,
    "lightbox": lightbox,
    "absolute_addresses": absolute_addresses,
    "article": elements("article"),
    "li": elements("li"),
    "section": elements("section"),
    "other_class": other_class,
    "no_class": no_class,
    "other_headings": other_headings,
    "styled_headings": styled_headings,
    "texts_in_divs": texts_in_divs,
    "linked_headings": linked_headings,
    "other_words": other_words,
    "icons": icons,
    "comments": comments,
}
OF_THE_PICTURE = list(CHANGES)[1:19]
OF_THE_CARD = [name for name in CHANGES if name not in OF_THE_PICTURE]


def told(cards: list[Card]) -> list[tuple[str, ...]]:
    """All that a card says, with the place of its best picture."""
    return [
        (
            card.title,
            card.caption or "",
            card.kind,
            card.years,
            card.group,
            card.team_url,
            card.source_file,
            re.sub(r"\?ver=.*|//www\.|@2x", lambda found: "//" if "www" in found[0] else "", best)
            if (best := card.image_urls[0] if card.image_urls else "")
            else "",
        )
        for card in cards
    ]


def changed(*names: str) -> list[tuple[str, ...]]:
    soup = BeautifulSoup(PLAIN, "html.parser")
    for name in names:
        CHANGES[name](soup)
    return told(parse_league_page(str(soup), URL))


def test_the_page_itself_holds_six_cards() -> None:
    cards = told(parse_league_page(PLAIN, URL))
    assert [card[0] for card in cards] == [
        "Denver Nuggets",
        "Utah Jazz",
        "Kansas City Kings",
        "Boston Celtics",
        "Portland Trail Blazers",
        "Old Crest",
    ]
    assert [card[2] for card in cards] == ["primary", "alternate", "", "wordmark", "primary", ""]


@pytest.mark.parametrize("name", CHANGES)
def test_cards_survive_one_change(name: str) -> None:
    assert changed(name) == told(parse_league_page(PLAIN, URL))


def test_cards_survive_any_changes_together() -> None:
    """Twenty-five pages, each with one change of its pictures and up to four of its cards."""
    draw = random.Random(0)
    for _ in range(25):
        names = [draw.choice(OF_THE_PICTURE), *draw.sample(OF_THE_CARD, draw.randint(1, 4))]
        names.sort(key=list(CHANGES).index)
        assert changed(*names) == told(parse_league_page(PLAIN, URL)), names
