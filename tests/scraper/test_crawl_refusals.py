"""What a crawl does not get: refusals, counted, said, and tried again when told."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from crest.config import run_command
from crest.errors import DataError
from crest.records import read_manifest, read_records
from scraper.__main__ import SWITCHES, main
from scraper.collect import collect
from scraper.config import ScraperConfig
from scraper.pages import keep_for_inspection


def test_every_mishap_is_a_counted_reason_and_none_ends_the_run(league, server, shelf, as_card, draw, as_png):
    league(1)
    cells = [
        as_card("gone_1990.png", "Gone"),
        as_card("half_1990.png", "Half"),
        as_card("page_1990.png", "Page"),
        as_card("robots/shy_1990.png", "Shy"),
        as_card("", "No picture"),
        as_card("busy_1990.png", "Busy"),
    ]
    server.say("/robots.txt", "User-agent: *\nDisallow: /up/robots/\n")
    server.say("/up/half_1990.png", as_png(draw(1)), cut_to=50)
    server.say("/up/page_1990.png", b"<html>log in</html>")
    server.say("/up/busy_1990.png", b"", status=429, headers={"Retry-After": "0"})
    server.say("/up/busy_1990.png", as_png(draw(2)))
    server.say("/other-primary-logo/", "".join(cells))
    source = {
        "site": "sportslogohistory",
        "url": shelf.url,
        "targets": ["league-primary-logo/", "other-primary-logo/", "x/"],
    }
    collect(shelf.config(source=source))
    report = json.loads((shelf.dir / "crawl.json").read_text())
    assert report["dropped"] == {
        "http_404": 1,
        "truncated": 1,
        "html_not_image": 1,
        "robots": 1,
        "no_image": 1,
    }
    assert report["page_failures"] == {"http_404": 1}
    assert report["counts"]["cards"] == 7
    assert report["counts"]["kept"] == 2
    manifest = read_manifest(shelf.dir, "records", "")
    assert manifest.dropped == report["dropped"]


def test_cut_caption_is_completed_from_the_team_page(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990.png", as_png(draw(1)))
    server.say("/league-primary-logo/", as_card("a_1990.png", "A", "A red; and blue badge above…", "/a/"))
    server.say("/a/", "<p>Founded 1990.</p><p>A red; and blue badge above a wordmark.</p>")
    collect(shelf.config())
    assert read_records(shelf.dir / "records.jsonl")[0].caption == "A red; and blue badge above a wordmark."


def test_site_without_cards_is_told(server, shelf):
    server.say("/league-primary-logo/", "<form>Log in</form>")
    with pytest.raises(DataError, match=r"league-primary-logo/: no card, the only page"):
        collect(shelf.config())


def report_of(shelf):
    return json.loads((shelf.dir / "crawl.json").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (Path(__file__).parent / "pages" / name).read_text(encoding="utf-8")


def test_pages_and_pictures_that_ask_not_to_be_used_are_left_out_and_counted(
    server, shelf, as_card, draw, as_png
):
    server.say("/up/a_1990.png", as_png(draw(1)))
    server.say("/up/b_1990.png", as_png(draw(2)), headers={"X-Robots-Tag": "noimageai"})
    server.say("/up/c_1990.png", as_png(draw(3)))
    cells = as_card("a_1990.png", "A") + as_card("b_1990.png", "B")
    server.say("/league-primary-logo/", cells)
    shy = '<html><head><meta name="robots" content="noai"></head><body>'
    server.say("/shy-primary-logo/", shy + as_card("c_1990.png", "C"))
    server.say("/shyer-primary-logo/", as_card("d_1990.png", "D"), headers={"X-Robots-Tag": "noai"})
    targets = ["league-primary-logo/", "shy-primary-logo/", "shyer-primary-logo/"]
    source = {"site": "sportslogohistory", "url": shelf.url, "targets": targets}
    collect(shelf.config(source=source))
    assert report_of(shelf)["dropped"] == {"opt_out_header": 1}
    assert report_of(shelf)["page_failures"] == {"opt_out_header": 1, "opt_out_meta": 1}
    assert "/up/c_1990.png" not in server.requests
    other = replace(shelf, dir=shelf.dir.with_name("other"))
    collect(other.config(source=source, fetch={"respect_opt_out": False}))
    assert report_of(other)["counts"]["pictures"] == 3


def test_page_in_another_encoding_is_heeded_as_well(server, shelf, as_card):
    shy = '<html><head><meta name="robots" content="noai"></head><body>'
    server.say("/league-primary-logo/", (shy + as_card("a_1990.png", "A")).encode("utf-16"))
    with pytest.raises(DataError, match=r"it asks not to be used for training.*opt_out_meta 1"):
        collect(shelf.config())


def test_changed_site_is_told_with_selector_page_and_the_page_kept(server, shelf):
    server.say("/league-primary-logo/", "<html><h1>Our new look</h1><p>All logos moved.</p></html>")
    with pytest.raises(DataError) as failure:
        collect(shelf.config())
    sentence = str(failure.value)
    assert sentence.startswith(f"{server.url}/league-primary-logo/: no card")
    assert 'class begins with "x-cell"' in sentence
    assert "nothing_found 1" in sentence
    (kept,) = (shelf.dir / "inspect").iterdir()
    assert str(kept) in sentence
    assert kept.name.startswith("league-primary-logo-")
    assert "Our new look" in kept.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("markup", "reason", "meaning"),
    [
        ("login.html", "login_page", "it asks to log in"),
        ("wall.html", "wall_page", "it shows nothing without JavaScript or consent"),
    ],
)
def test_login_and_wall_are_called_what_they_are(server, shelf, markup, reason, meaning):
    server.say("/league-primary-logo/", page(markup))
    with pytest.raises(DataError, match=f"{meaning}.*{reason} 1"):
        collect(shelf.config())


def test_redirect_to_the_login_is_counted_and_the_other_pages_are_read(league, server, shelf, capsys):
    league(1)
    server.say("/members-primary-logo/", "", status=302, headers={"Location": "/wp-login.php?redirect=x"})
    server.say("/wp-login.php?redirect=x", page("login.html"))
    targets = ["members-primary-logo/", "league-primary-logo/"]
    collect(shelf.config(source={"site": "sportslogohistory", "url": shelf.url, "targets": targets}))
    assert report_of(shelf)["page_failures"] == {"login_page": 1}
    assert report_of(shelf)["counts"]["kept"] == 1
    (kept,) = (shelf.dir / "inspect").iterdir()
    assert (
        "members-primary-logo/: login_page, expected cards (elements whose class" in capsys.readouterr().out
    )
    assert "Password" in kept.read_text(encoding="utf-8")


def test_page_with_a_login_form_beside_its_cards_is_read(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990.png", as_png(draw(1)))
    server.say("/league-primary-logo/", page("login.html") + as_card("a_1990.png", "A"))
    collect(shelf.config())
    assert report_of(shelf)["counts"]["kept"] == 1


def test_page_is_told_by_its_bytes_not_by_its_type(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990.png", as_png(draw(1)))
    cells = as_card("a_1990.png", "Atlético", "A rayé badge.")
    server.say(
        "/league-primary-logo/", cells.encode("latin-1"), headers={"Content-Type": "x; charset=latin-1"}
    )
    server.say("/picture-primary-logo/", as_png(draw(2)), headers={"Content-Type": "text/html"})
    targets = ["league-primary-logo/", "picture-primary-logo/"]
    collect(shelf.config(source={"site": "sportslogohistory", "url": shelf.url, "targets": targets}))
    (record,) = read_records(shelf.dir / "records.jsonl")
    assert (record.title, record.caption) == ("Atlético", "A rayé badge.")
    assert report_of(shelf)["page_failures"] == {"not_html": 1}


def test_names_of_inspected_pages_cannot_climb(tmp_path):
    path = keep_for_inspection(b"x", "http://x.example/../..%2f..%2fetc/passwd\0.html", tmp_path)
    assert path.parent == tmp_path / "inspect"
    assert re.fullmatch(r"[a-z0-9-]+\.html", path.name)


def test_cards_after_a_failing_one_are_kept(league, server, shelf, as_card, draw, as_png):
    """One picture that could not be fetched ended seed 002's run, and all cards behind it were lost."""
    league(5)
    server.script["/up/club1_1990-1999.png"] = []
    collect(shelf.config())
    titles = [record.title for record in read_records(shelf.dir / "records.jsonl")]
    assert titles == ["Club 0", "Club 2", "Club 3", "Club 4"]


def test_redirect_to_a_dead_host_is_counted_and_does_not_end_the_run(league, server, shelf):
    league(3)
    server.script["/up/club1_1990-1999.png"] = []
    away = {"Location": "http://localhost:9/a.png"}
    server.say("/up/club1_1990-1999.png", "", status=302, headers=away)
    collect(shelf.config())
    assert report_of(shelf)["dropped"] == {"unreachable": 1}
    assert report_of(shelf)["counts"]["kept"] == 2


def test_same_picture_on_two_pages_is_kept_once(server, shelf, as_card, draw, as_png):
    """Seed 002 kept a logo as often as a page showed it."""
    for name in ("a_1990.png", "b_1990.png"):
        server.say(f"/up/{name}", as_png(draw(1)))
    cells = as_card("a_1990.png", "A") + as_card("a_1990.png", "A") + as_card("b_1990.png", "B")
    server.say("/league-primary-logo/", cells)
    collect(shelf.config())
    assert report_of(shelf)["counts"]["kept"] == 1
    assert report_of(shelf)["dropped"] == {"duplicate": 2}
    assert server.requests["/up/a_1990.png"] == 1


def test_retry_failed_visits_what_failed_and_only_that(league, server, shelf, capsys):
    league(4)
    good = server.script["/up/club2_1990-1999.png"]
    server.script["/up/club2_1990-1999.png"] = []
    server.script["/up/club3_1990-1999.png"] = []
    source = {
        "site": "sportslogohistory",
        "url": shelf.url,
        "targets": ["league-primary-logo/", "late-primary-logo/"],
    }
    collect(shelf.config(source=source))
    assert report_of(shelf)["counts"]["kept"] == 2
    server.script["/up/club2_1990-1999.png"] = good
    server.say("/late-primary-logo/", server.script["/league-primary-logo/"][0].content.decode())
    before = server.requests.copy()
    capsys.readouterr()
    collect(shelf.config(source=source, fetch={"retry_failed": True}))
    again = server.requests - before
    paths = ("/up/club2_1990-1999.png", "/up/club3_1990-1999.png", "/late-primary-logo/", "/robots.txt")
    assert again == dict.fromkeys(paths, 1)
    assert "made 3 failed visits once more (http_404 3); now 1 fail (http_404 1)" in capsys.readouterr().out
    counts = report_of(shelf)["counts"]
    assert (counts["kept"], counts["visits_retried"], counts["visits_still_failing"]) == (3, 3, 1)
    assert report_of(shelf)["page_failures"] == {}


def test_retry_failed_of_a_crawl_without_failures_asks_nothing(league, server, shelf, capsys):
    league(2)
    collect(shelf.config())
    asked = server.requests.total()
    collect(shelf.config(fetch={"retry_failed": True}))
    assert server.requests.total() == asked


def test_retry_failed_is_a_flag_of_the_command(league, server, shelf, tmp_path):
    league(2)
    good = server.script["/up/club1_1990-1999.png"]
    server.script["/up/club1_1990-1999.png"] = []
    (tmp_path / "config.json").write_text(shelf.config().model_dump_json(exclude={"schema_"}))
    arguments = ["--config", str(tmp_path / "config.json")]
    for rest, kept in (([], 1), (["--retry-failed"], 2)):
        code = run_command("scraper", ScraperConfig, main, argv=[*arguments, *rest], switches=SWITCHES)
        assert code == 0
        assert len(read_records(shelf.dir / "records.jsonl")) == kept
        server.script["/up/club1_1990-1999.png"] = good
