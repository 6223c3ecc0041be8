from pathlib import Path

import pytest

from scraper.config import SourceConfig
from scraper.sites import Card, Found, Visit
from scraper.sites.logo_names import read_file_name
from scraper.sites.sportslogohistory import (
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
    ],
)
def test_file_name_tells_team_years_and_kind(name: str, team: str, years: str, kind: str) -> None:
    found = read_file_name(f"{UPLOADS}/{name}?ver=2")
    assert found is not None
    assert (found.team, found.years, found.kind) == (team, years, kind)


def test_file_name_without_years_tells_nothing() -> None:
    assert read_file_name(f"{UPLOADS}/crest.png") is None


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
