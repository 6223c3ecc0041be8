import json
from pathlib import Path

import pytest

from scraper.config import ScraperConfig, SourceConfig
from scraper.sites import Card, Found, Visit
from scraper.sites.image_addresses import source_file
from scraper.sites.logo_names import read_file_name
from scraper.sites.sportslogohistory import (
    LEAGUE_LINK,
    SportsLogoHistory,
    parse_index,
    parse_league_page,
    parse_team_page,
)

PAGES = Path(__file__).parent.parent / "pages"
SITE = "https://sportslogohistory.com"
UPLOADS = f"{SITE}/wp-content/uploads/2018/04"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def league(name: str) -> list[Card]:
    return parse_league_page(page(name), f"{SITE}/nba-primary-logo/")


@pytest.mark.parametrize(
    ("name", "team", "years", "kind"),
    [
        ("denver_nuggets_1994-2003.png", "denver-nuggets", "1994-2003", "primary"),
        ("denver_nuggets_2006-pres.png", "denver-nuggets", "2006-present", "primary"),
        ("denver_nuggets_2006-pres-a.png", "denver-nuggets", "2006-present", "alternate"),
        ("boston_celtics_1979-pres_w.png", "boston-celtics", "1979-present", "wordmark"),
        ("boston_celtics_1979-pres_w-150x150.png", "boston-celtics", "1979-present", "wordmark"),
        ("st._louis_hawks_1955.png", "st-louis-hawks", "1955", "primary"),
        ("utah_jazz_1996-2004-scaled.jpg", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1996-2004-1.png", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1996-2004-e1588012345678.png", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1996-2004@2x.png", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1996-2004-150x150@2x.png", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1996-2004-a-1-300x300.png", "utah-jazz", "1996-2004", "alternate"),
        ("utah_jazz_1996-2004_alt2.png", "utah-jazz", "1996-2004", "alternate"),
        ("utah_jazz_1996-04.png", "utah-jazz", "1996-2004", "primary"),
        ("utah_jazz_1979–1996_w.PNG", "utah-jazz", "1979-1996", "wordmark"),
        ("utah_jazz_1979%E2%80%931996_wordmark.png", "utah-jazz", "1979-1996", "wordmark"),
        ("utah_jazz_2016-pres (1).png", "utah-jazz", "2016-present", "primary"),
        ("philadelphia_76ers_1963-1977.png", "philadelphia-76ers", "1963-1977", "primary"),
        ("san-francisco-49ers-1996-2008-a.png", "san-francisco-49ers", "1996-2008", "alternate"),
        ("1860_munich_1995-2001.png", "1860-munich", "1995-2001", "primary"),
        ("1995-2001_portland.png", "portland", "1995-2001", "primary"),
        ("utah_jazz_1996-2004_anniversary.png", "utah-jazz", "1996-2004", ""),
    ],
)
def test_file_name_tells_team_years_and_kind(name: str, team: str, years: str, kind: str) -> None:
    found = read_file_name(f"{UPLOADS}/{name}?ver=2")
    assert found is not None
    assert (found.team, found.years, found.kind) == (team, years, kind)


@pytest.mark.parametrize(
    "name", ["crest.png", "IMG_20180401.png", "logo-300x300.png", "1990.png", "", "%00.png"]
)
def test_file_name_without_team_and_years_tells_nothing(name: str) -> None:
    assert read_file_name(f"{UPLOADS}/{name}") is None


def test_every_card_of_a_league_page_is_found_and_nothing_else() -> None:
    assert [card.title for card in league("league_lazy.html")] == [
        "Denver Nuggets",
        "Utah Jazz",
        "Kansas City Kings",
        "Boston Celtics",
    ]


def test_full_size_comes_before_its_thumbnail() -> None:
    card = league("league_lazy.html")[0]
    assert card.image_urls == (
        f"{UPLOADS}/denver_nuggets_1994-2003.png",
        f"{UPLOADS}/denver_nuggets_1994-2003-150x150.png",
    )


def test_lazy_source_and_noscript_win_over_the_placeholder() -> None:
    assert league("league_lazy.html")[1].image_urls == (f"{UPLOADS}/utah_jazz_2006-pres-a.png",)


def test_noscript_alone_is_enough() -> None:
    html = '<div class="x-cell"><noscript><img src="/a_b_1990.png"></noscript><h3>A B</h3></div>'
    assert parse_league_page(html, SITE)[0].image_urls == (f"{SITE}/a_b_1990.png",)


def test_card_without_picture_is_a_card_without_addresses() -> None:
    kings = league("league_lazy.html")[2]
    assert kings.image_urls == ()
    assert kings.caption == "A red crown."


def test_card_without_text_has_no_caption() -> None:
    celtics = league("league_lazy.html")[3]
    assert celtics.caption is None
    assert celtics.kind == "wordmark"


def test_entities_no_break_spaces_and_semicolons_survive() -> None:
    caption = league("league_lazy.html")[0].caption
    assert caption == (
        "A dark blue, gold and red mountain range; a white snow cap, with the wordmark “NUGGETS” in gold…"
    )


def test_team_link_is_absolute_and_without_fragment() -> None:
    assert league("league_lazy.html")[0].team_url == f"{SITE}/denver-nuggets/"


def test_extra_wrappers_change_nothing() -> None:
    cards = league("league_wrapped.html")
    assert [card.title for card in cards] == ["Denver Nuggets", "Old Team", "No Years"]
    assert cards[0].image_urls[0] == f"{SITE}/up/denver_nuggets_1976-1981.png"
    assert cards[0].caption == "A rainbow over a white skyline."
    assert cards[0].team_url == f"{SITE}/denver-nuggets/"
    assert cards[2].image_urls == (f"{SITE}/nba-primary-logo/crest.png",)
    assert cards[2].caption == "A crest."


def test_renditions_are_tried_from_large_to_small() -> None:
    assert league("league_wrapped.html")[1].image_urls == (
        f"{SITE}/up/old_team_1950.png",
        f"{SITE}/up/old_team_1950-768x512.png",
        f"{SITE}/up/old_team_1950-300x200.png",
        f"{SITE}/up/old_team_1950-150x150.png",
    )


def test_cards_are_found_when_their_class_is_gone() -> None:
    cards = league("league_articles.html")
    assert [(card.title, card.caption, card.kind) for card in cards] == [
        ("Denver Nuggets", "A navy mountain range.", "primary"),
        ("Utah Jazz", "A note in navy.", "alternate"),
        ("Boston Celtics", None, "wordmark"),
    ]
    assert cards[0].image_urls[0] == f"{UPLOADS}/denver_nuggets_1994-2003.png"
    assert [card.team_url for card in cards] == [
        f"{SITE}/denver-nuggets/",
        f"{SITE}/utah-jazz/",
        f"{SITE}/boston-celtics/",
    ]
    assert {card.licence for card in cards} == {f"{SITE}/terms/"}


def test_picture_is_sought_at_its_origin_before_the_service_that_resizes_it() -> None:
    nuggets, jazz, heat, magic = league("league_photon.html")
    full = "sportslogohistory.com/wp-content/uploads/2018/04/denver_nuggets_1994-2003.png"
    assert nuggets.image_urls[:2] == (f"https://{full}", f"https://i0.wp.com/{full}?ssl=1")
    assert nuggets.image_urls[2].endswith("?w=800&ssl=1")
    assert "-150x150" in nuggets.image_urls[-1]
    assert jazz.image_urls[0] == f"{UPLOADS}/utah_jazz_2006-pres-a.png"
    assert heat.image_urls[0] == f"{UPLOADS}/miami_heat_2000-pres.png"
    assert magic.image_urls[0] == f"{UPLOADS}/orlando_magic_2001-2010.png"
    assert [card.years for card in (nuggets, jazz, heat, magic)] == [
        "1994-2003",
        "2006-present",
        "2000-present",
        "2001-2010",
    ]


def test_renditions_and_formats_of_one_file_share_a_source_file() -> None:
    names = (
        "a_b_1990.png",
        "a_b_1990-150x150.png",
        "a_b_1990-scaled.png",
        "a_b_1990-e1588012345678.png",
        "a_b_1990@2x.png",
        "A_B_1990.png?ver=3",
        "a_b_1990.webp",
        "a_b_1990.png.webp",
        "a_b_1990-scaled-e1588012345678.jpg",
    )
    urls = [*(f"{UPLOADS}/{name}" for name in names), f"https://i2.wp.com/{UPLOADS[8:]}/a_b_1990.png?w=300"]
    assert {source_file(url, SITE) for url in urls} == {"wp-content/uploads/2018/04/a_b_1990"}
    assert source_file("https://elsewhere.example/a_b_1990.png", SITE) == "elsewhere.example/a_b_1990"
    assert source_file(f"{UPLOADS}/a_b_1990-1.png", SITE) != source_file(f"{UPLOADS}/a_b_1990.png", SITE)
    assert source_file(f"{UPLOADS}/st.john_1990.png", SITE) != source_file(
        f"{UPLOADS}/st.paul_1990.png", SITE
    )


def test_service_that_stands_before_a_malformed_address_is_a_host_like_any_other() -> None:
    assert source_file("https://i0.wp.com/[x/a.png", SITE) == "i0.wp.com/[x/a"
    assert source_file("https://elsewhere.example/http://[x/a.png", SITE) == "elsewhere.example/http://[x/a"


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("/a-3x2.png 300w, /a-9x6.png 900w", ["a.png", "a-9x6.png", "a-3x2.png"]),
        ("/a-3x2.png 1x,/a-9x6.png 2x", ["a.png", "a-9x6.png", "a-3x2.png"]),
        ("/a-3x2.png, /a-9x6.png 2x", ["a.png", "a-9x6.png", "a-3x2.png"]),
        ("/a.png?resize=3,2 3w,\n /a.png?resize=9,6 9w", ["a.png", "a.png?resize=9,6", "a.png?resize=3,2"]),
        (" , /a.png", ["a.png"]),
        ("", []),
    ],
)
def test_srcset_is_read_as_browsers_do(text: str, addresses: list[str]) -> None:
    html = f'<div class="x-cell"><img srcset="{text}"><h3>A</h3></div>'
    assert [url.removeprefix(f"{SITE}/") for url in parse_league_page(html, SITE)[0].image_urls] == addresses


def test_malformed_addresses_are_left_out() -> None:
    html = (
        '<div class="x-cell"><img data-src="http://[::1" src="https://x.example:99999999/a.png">'
        '<a href="http://[">See Team Logos</a><h3>A</h3><p>A badge.</p></div>'
    )
    (card,) = parse_league_page(html, SITE)
    assert (card.image_urls, card.team_url) == ((), "")


def test_names_that_climb_out_of_a_folder_stay_addresses() -> None:
    html = '<div class="x-cell"><img data-src="/up/../../../etc/passwd_1990.png"><h3>../../x</h3></div>'
    (card,) = parse_league_page(html, SITE)
    assert card.image_urls == (f"{SITE}/etc/passwd_1990.png",)
    assert (card.title, card.group) == ("../../x", "passwd")


def test_link_that_leads_on_is_no_part_of_the_caption() -> None:
    html = (
        '<div class="x-cell"><h3>A</h3><p>A <b>red</b>, white badge&hellip; <a href="/a/">Read more</a> '
        '<a href="/a/">See Team Logos</a></p></div>'
    )
    assert parse_league_page(html, SITE)[0].caption == "A red, white badge…"


def test_years_are_no_caption() -> None:
    html = '<div class="x-cell"><h3>A</h3><img data-src="/a_1990.png"><p>1990 – Present</p></div>'
    assert parse_league_page(html, SITE)[0].caption is None


def test_page_of_deeply_nested_elements_is_read() -> None:
    html = "<div>" * 5000 + '<div class="x-cell"><img data-src="/a_1990.png"><h3>A</h3></div>'
    assert [card.title for card in parse_league_page(html, SITE)] == ["A"]


def test_starting_config_visits_every_league_page() -> None:
    """The 32 pages that seed 002 scraped, in its order."""
    root = Path(__file__).parents[3] / "configs" / "sportslogohistory" / "data.json"
    config = ScraperConfig.model_validate(json.loads(root.read_text(encoding="utf-8")))
    visits = SportsLogoHistory().start(config.source)
    assert len({visit.url for visit in visits}) == 32
    assert visits[0].url == f"{SITE}/aaf-primary-logo/"
    assert visits[-1].url == f"{SITE}/xfl-primary-logo/"
    assert all(LEAGUE_LINK.search(visit.url) for visit in visits)


def test_page_of_another_make_has_no_cards() -> None:
    assert parse_league_page("<html><body><form>Log in</form></body></html>", SITE) == []


def test_index_gives_league_pages_of_this_host_once() -> None:
    assert parse_index(page("index.html"), f"{SITE}/") == [f"{SITE}/nba-primary-logo/", f"{SITE}/usfl-logos"]


def assembled(cards: list[Card]) -> tuple[tuple[Card, ...], dict[str, int]]:
    references, texts = parse_team_page(page("team.html"), f"{SITE}/denver-nuggets/")
    pages = [
        (Visit(f"{SITE}/nba-primary-logo/", "league"), Found(cards=tuple(cards))),
        (Visit(f"{SITE}/denver-nuggets/", "team"), Found(references=tuple(references), texts=tuple(texts))),
    ]
    done = SportsLogoHistory().assemble(pages)
    return done.cards, dict(done.counts)


def test_cut_caption_is_completed_from_the_same_picture_of_the_team_page() -> None:
    """Seed 002 kept 151 of 498 captions as they were, cut with "…"."""
    cards, counts = assembled(league("league_lazy.html"))
    assert cards[0].caption is not None
    assert cards[0].caption.endswith("in gold above a pick.")
    assert counts == {"caption_whole": 2, "caption_completed": 1, "caption_cut": 0, "caption_missing": 1}


def test_cut_caption_that_two_paragraphs_begin_with_stays_cut() -> None:
    card = Card(
        ("https://x.example/unknown.png",),
        caption="A dark blue, gold and red mountain range; a…",
        team_url=f"{SITE}/denver-nuggets/",
    )
    cards, counts = assembled([card])
    assert cards[0].caption == card.caption
    assert counts["caption_cut"] == 1


def test_paragraph_must_begin_with_the_words_of_the_card() -> None:
    card = Card((), caption="The club was dissolved…", team_url=f"{SITE}/denver-nuggets/")
    assert assembled([card])[0][0].caption == "The club was dissolved…"
    card = Card((), caption="The club was founded…", team_url=f"{SITE}/denver-nuggets/")
    assert assembled([card])[0][0].caption == "The club was founded in 1967."


def test_only_unfinished_captions_send_us_to_the_team_page() -> None:
    found = SportsLogoHistory().read(
        Visit(f"{SITE}/nba-primary-logo/", "league"), page("league_lazy.html"), f"{SITE}/nba-primary-logo/"
    )
    assert [visit.url for visit in found.visits] == [f"{SITE}/denver-nuggets/"]


def test_variants_of_a_team_share_a_group_whatever_tells_them_apart() -> None:
    cards = [
        Card((), title="Nuggets", group="denver-nuggets", team_url=f"{SITE}/denver/"),
        Card((), title="Rockets", group="denver-rockets", team_url=f"{SITE}/denver/"),
        Card((), title="Rockets", group="denver-rockets"),
        Card((), title="Jazz", group="utah-jazz", team_url=f"{SITE}/utah/"),
    ]
    groups = [card.group for card in assembled(cards)[0]]
    assert groups == ["denver-nuggets"] * 3 + ["utah-jazz"]


def test_targets_are_relative_to_the_root() -> None:
    source = SourceConfig(site="sportslogohistory", url=SITE, targets=("nba-primary-logo/",))
    assert SportsLogoHistory().start(source) == [Visit(f"{SITE}/nba-primary-logo/", "league")]
    source = SourceConfig(site="sportslogohistory", url=SITE)
    assert SportsLogoHistory().start(source) == [Visit(f"{SITE}/", "index")]
