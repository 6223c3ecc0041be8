"""The site must show the world as the real one does, mishaps included, and the scraper must read it back."""

import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import pytest
from PIL import Image

from crest.records import read_records
from demo.site import THUMB_PX, UPLOADS, LeagueSite, pages
from scraper.collect import collect
from scraper.config import ScraperConfig
from scraper.sites.sportslogohistory import parse_index, parse_league_page, parse_team_page


@dataclass(frozen=True)
class FakeLogo:
    file_name: str
    colour: tuple[int, int, int] = (200, 0, 0)
    caption: str = "A red disc."
    card_text: str | None = "A red disc."
    is_broken: bool = False
    years: str = "1990 - 1999"

    def draw(self, side_px: int = 96) -> Image.Image:
        picture = Image.new("RGBA", (side_px, side_px), (0, 0, 0, 0))
        picture.paste((*self.colour, 255), (side_px // 4, side_px // 8, side_px // 2, side_px - side_px // 8))
        return picture


@dataclass(frozen=True)
class FakeClub:
    club_id: str
    name: str
    logos: tuple[FakeLogo, ...]


@dataclass(frozen=True)
class FakeLeague:
    league_id: str
    name: str
    clubs: tuple[FakeClub, ...] = field(default=())


def world():
    """Two leagues of four clubs with two logos each; some cards cut, without text, without picture."""
    leagues = []
    for which in range(2):
        clubs = []
        for number in range(4):
            name = f"town{which}{number}_stars"
            colour = (60 * number, 120 * which, 255 - 50 * number)
            whole = f"A disc of colour {which}{number} in front of a long, long description; and more."
            cut = whole[:40] + "…" if number == 1 else whole
            first = FakeLogo(f"{name}_1990-1999.png", colour, whole, None if number == 2 else cut)
            second = FakeLogo(
                f"{name}_2000-pres-a.png", colour[::-1], f"Other {number}.", f"Other {number}.", number == 3
            )
            clubs.append(
                FakeClub(f"town{which}{number}-stars", f"Town{which}{number} & Stars", (first, second))
            )
        leagues.append(FakeLeague(f"league{which}", f"League {which}", tuple(clubs)))
    return leagues


@pytest.fixture
def site():
    with LeagueSite(world()) as running:
        yield running


def ask(site, path, **headers):
    request = urllib.request.Request(site.url.rstrip("/") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), b""


def whole_picture(site):
    taken = {site.mishaps.missing, site.mishaps.busy, site.mishaps.truncated, site.mishaps.not_a_picture}
    logos = [logo for league in world() for club in league.clubs for logo in club.logos]
    return next(logo for logo in logos if logo.file_name not in taken)


def test_every_page_is_served_and_every_card_is_read_back(site):
    for path in pages(world()):
        assert ask(site, path)[0] == 200
    index = ask(site, "/")[2].decode()
    leagues = parse_index(index, site.url)
    assert leagues == [f"{site.url}league0-primary-logo/", f"{site.url}league1-primary-logo/"]
    cards = parse_league_page(ask(site, "/league1-primary-logo/")[2].decode(), leagues[1])
    logos = [(club, logo) for club in world()[1].clubs for logo in club.logos]
    assert [card.title for card in cards] == [club.name for club, _ in logos]
    assert [card.caption for card in cards] == [logo.card_text for _, logo in logos]
    assert [bool(card.image_urls) for card in cards] == [not logo.is_broken for _, logo in logos]
    assert {card.image_urls[0].rsplit("/", 1)[-1] for card in cards if card.image_urls} == {
        logo.file_name for _, logo in logos if not logo.is_broken
    }


def test_some_cards_show_a_thumbnail_only(site):
    html = ask(site, "/league0-primary-logo/")[2].decode()
    assert f'data-src="{UPLOADS}town00_stars_1990-1999-{THUMB_PX}x{THUMB_PX}.png"' in html
    assert 'src="data:image/gif' in html


def test_team_page_has_the_whole_text_but_none_where_the_card_has_none(site):
    _, texts = parse_team_page(ask(site, "/town01-stars-logos/")[2].decode(), site.url)
    assert world()[0].clubs[1].logos[0].caption in texts
    _, texts = parse_team_page(ask(site, "/town02-stars-logos/")[2].decode(), site.url)
    assert texts == ["Other 2."]


def test_picture_keeps_its_alpha_and_has_a_tag(site):
    logo = whole_picture(site)
    status, headers, content = ask(site, UPLOADS + logo.file_name)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "RGBA"
    status, _, content = ask(site, UPLOADS + logo.file_name, **{"If-None-Match": headers["ETag"]})
    assert (status, content) == (304, b"")


def test_thumbnail_is_smaller(site):
    name = whole_picture(site).file_name.removesuffix(".png") + f"-{THUMB_PX}x{THUMB_PX}.png"
    with Image.open(io.BytesIO(ask(site, UPLOADS + name)[2])) as picture:
        assert picture.size == (THUMB_PX, THUMB_PX)


def test_four_mishaps(site):
    assert len(set(vars(site.mishaps).values())) == 4
    assert ask(site, UPLOADS + site.mishaps.missing)[0] == 404
    status, headers, _ = ask(site, UPLOADS + site.mishaps.busy)
    assert (status, headers["Retry-After"]) == (429, "1")
    assert ask(site, UPLOADS + site.mishaps.busy)[0] == 200
    _, headers, content = ask(site, UPLOADS + site.mishaps.not_a_picture)
    assert headers["Content-Type"] == "image/png"
    assert content.startswith(b"<!DOCTYPE html>")
    with pytest.raises(Exception, match="IncompleteRead"):
        ask(site, UPLOADS + site.mishaps.truncated)


def test_robots_asks_to_keep_out_of_a_path(site):
    assert b"Disallow: /private/" in ask(site, "/robots.txt")[2]


@pytest.mark.parametrize(
    "path", ["/nowhere/", "/town00-stars-logos/x", f"{UPLOADS}no.png", f"{UPLOADS}../../../etc/passwd"]
)
def test_unknown_paths_are_not_found(site, path):
    assert ask(site, path)[0] == 404


def test_two_sites_at_once_and_the_port_is_free_again(site):
    with LeagueSite(world()) as other:
        assert other.url != site.url
        port = int(other.url.rsplit(":", 1)[1].rstrip("/"))
    with LeagueSite(world(), port=port) as again:
        assert ask(again, "/")[0] == 200


def test_drawing_ahead_gives_the_same_pictures():
    from demo.league import league

    leagues = [league(0, 0, clubs_per_league=3)]
    names = [logo.file_name for club in leagues[0].clubs for logo in club.logos if not logo.is_broken]
    with LeagueSite(leagues, draw_ahead=True) as ahead, LeagueSite(leagues) as plain:
        for name in names[4:]:
            assert ahead.reply(UPLOADS + name) == plain.reply(UPLOADS + name)


def test_scraper_reads_the_whole_site(site, tmp_path, capsys):
    fetch = {"delay_s": 0, "retries": 1, "backoff_s": 0.01, "allow_hosts": ["127.0.0.1"]}
    values = {
        "data": {"dir": tmp_path},
        "source": {"site": "sportslogohistory", "url": site.url},
        "fetch": fetch,
        "screen": {"duplicate_difference": 0, "related_difference": 0},
    }
    collect(ScraperConfig.model_validate(values))
    report = json.loads((tmp_path / "crawl.json").read_text())
    assert report["counts"]["cards"] == 16
    assert report["dropped"] == {"no_image": 2, "http_404": 1, "truncated": 1, "html_not_image": 1}
    assert report["counts"]["caption_completed"] == 2
    records = read_records(tmp_path / "records.jsonl")
    assert len(records) == 11
    assert any(record.image_url.endswith(site.mishaps.busy) for record in records)
    captions = {record.image_url.rsplit("/", 1)[-1]: record.caption for record in records}
    truth = {logo.file_name: logo for league in world() for club in league.clubs for logo in club.logos}
    assert captions == {name: truth[name].caption if truth[name].card_text else None for name in captions}
    assert {record.group for record in records} == {f"town{a}{b}-stars" for a in range(2) for b in range(4)}
    assert not any(path.startswith("/private") for path in site.requests)
