import json
import os
import signal
import subprocess
import sys
import time

import pytest

from crest.errors import DataError, FetchError
from crest.records import content_id, read_manifest, read_records
from scraper.collect import check_source, collect
from scraper.crawl import crawl, is_crawled, reach


@pytest.fixture
def league(server, as_card, draw, as_png):
    """A league page with so many logos; returns how to make it."""

    def make(count, **rest):
        cells = []
        for number in range(count):
            server.say(f"/up/club{number}_1990-1999.png", as_png(draw(number)), **rest)
            cells.append(
                as_card(f"club{number}_1990-1999.png", f"Club {number}", f"A badge of number {number}.")
            )
        server.say("/league-primary-logo/", "".join(cells))

    return make


def test_cards_become_records_with_all_that_the_site_says(league, server, shelf, draw, as_png):
    league(3)
    collect(shelf.config())
    records = read_records(shelf.dir / "records.jsonl")
    assert [record.title for record in records] == ["Club 0", "Club 1", "Club 2"]
    first = records[0]
    assert first.id == content_id(as_png(draw(0)))
    assert (shelf.dir / first.image).read_bytes() == as_png(draw(0))
    assert (first.caption, first.group, first.years, first.kind) == (
        "A badge of number 0.",
        "club0",
        "1990-1999",
        "primary",
    )
    assert first.page_url == f"{server.url}/league-primary-logo/"
    assert first.image_url == f"{server.url}/up/club0_1990-1999.png"
    assert (first.width_px, first.height_px) == (96, 96)


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


def test_thumbnail_is_taken_when_the_full_size_is_gone(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990-150x150.png", as_png(draw(1)))
    server.say("/league-primary-logo/", as_card("a_1990-150x150.png", "A"))
    collect(shelf.config())
    assert read_records(shelf.dir / "records.jsonl")[0].image_url.endswith("-150x150.png")
    assert server.requests["/up/a_1990.png"] == 1


def test_cut_caption_is_completed_from_the_team_page(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990.png", as_png(draw(1)))
    server.say("/league-primary-logo/", as_card("a_1990.png", "A", "A red; and blue badge above…", "/a/"))
    server.say("/a/", "<p>Founded 1990.</p><p>A red; and blue badge above a wordmark.</p>")
    collect(shelf.config())
    assert read_records(shelf.dir / "records.jsonl")[0].caption == "A red; and blue badge above a wordmark."


def test_finished_crawl_run_again_asks_nothing_and_says_so(league, server, shelf, capsys):
    league(2)
    collect(shelf.config())
    asked = server.requests.total()
    capsys.readouterr()
    collect(shelf.config())
    assert server.requests.total() == asked
    assert "up to date, 2 logos" in capsys.readouterr().out


def test_refresh_fetches_only_what_changed(league, server, shelf, as_card, draw, as_png):
    league(2, headers={"ETag": '"1"'})
    collect(shelf.config())
    server.script["/up/club1_1990-1999.png"].clear()
    server.say("/up/club1_1990-1999.png", as_png(draw(9)), headers={"ETag": '"2"'})
    before = len(server.headers)
    collect(shelf.config(fetch={"refresh": True}))
    asked = {path: headers.get("If-None-Match") for path, headers in server.headers[before:]}
    assert asked["/up/club0_1990-1999.png"] == '"1"'
    assert [record.id for record in read_records(shelf.dir / "records.jsonl")][1] == content_id(
        as_png(draw(9))
    )


def test_other_screening_needs_no_second_crawl(league, server, shelf):
    league(2)
    collect(shelf.config())
    asked = server.requests.total()
    with pytest.raises(DataError, match=r"none of 2 pictures passed \(too_small 2\)"):
        collect(shelf.config(screen={"min_side_px": 500}))
    collect(shelf.config(screen={"min_side_px": 90}))
    assert server.requests.total() == asked


def test_no_network_is_one_sentence_and_leaves_nothing_half_written(shelf, server):
    source = {"site": "sportslogohistory", "url": "http://127.0.0.1:9/", "targets": ["a/"]}
    with pytest.raises(FetchError, match="did not answer"):
        collect(shelf.config(source=source))
    assert not shelf.dir.exists()


def test_refresh_without_network_leaves_the_finished_folder_as_it_is(league, server, shelf, capsys):
    league(2)
    collect(shelf.config())
    away = {"site": "sportslogohistory", "url": "http://127.0.0.1:9/", "targets": ["league-primary-logo/"]}
    with pytest.raises(FetchError, match="did not answer"):
        collect(shelf.config(source=away, fetch={"refresh": True}))
    collect(shelf.config(source=away))  # another port of this machine is the same site
    assert "up to date, 2 logos" in capsys.readouterr().out


def test_private_address_is_refused_in_one_sentence(league, shelf):
    league(1)
    with pytest.raises(FetchError, match=r"private address 127\.0\.0\.1"):
        collect(shelf.config(fetch={"allow_hosts": []}))
    assert not shelf.dir.exists()


def test_picture_host_that_is_down_costs_its_pictures_only(server, shelf, as_card, draw, as_png):
    away = '<div class="x-cell"><img data-src="http://localhost:9/up/b_1990.png"><h3>B</h3></div>'
    server.say("/up/a_1990.png", as_png(draw(1)))
    server.say("/league-primary-logo/", as_card("a_1990.png", "A") + away)
    collect(shelf.config())
    assert json.loads((shelf.dir / "crawl.json").read_text())["dropped"] == {"unreachable": 1}


def test_site_without_cards_is_told(server, shelf):
    server.say("/league-primary-logo/", "<form>Log in</form>")
    with pytest.raises(DataError, match=r"league-primary-logo/: no card, the only page"):
        collect(shelf.config())


def test_data_folder_of_another_source_is_refused(league, shelf, tmp_path, draw):
    league(1)
    collect(shelf.config())
    (tmp_path / "mine").mkdir()
    draw(1).save(tmp_path / "mine" / "a.png")
    other = shelf.config(source={"site": "folder", "path": str(tmp_path / "mine")})
    for work in (collect, check_source):
        with pytest.raises(DataError, match=r"was made with source\.site 'sportslogohistory'"):
            work(other)
    assert read_manifest(shelf.dir, "records", "").counts["kept"] == 1


def test_one_host_with_a_delay_sees_one_request_at_a_time(league, server, shelf):
    league(6, wait_s=0.03)
    config = shelf.config(fetch={"delay_s": 0.01})
    crawl(config, reach(config))
    assert server.most_at_once == 1


def test_host_without_delay_is_asked_in_parallel(league, server, shelf):
    league(12, wait_s=0.05)
    config = shelf.config(fetch={"connections": 4})
    crawl(config, reach(config))
    assert 2 <= server.most_at_once <= 4


def test_order_of_records_is_that_of_the_page(league, server, shelf):
    league(8)
    for number in range(0, 8, 2):
        server.script[f"/up/club{number}_1990-1999.png"][0].wait_s = 0.05
    harvest = crawl(shelf.config(), reach(shelf.config()))
    assert [record.title for record in harvest.records] == [f"Club {number}" for number in range(8)]


def test_killed_crawl_goes_on_and_fetches_nothing_twice(league, server, shelf, tmp_path):
    league(40, wait_s=0.02)
    config = shelf.config(fetch={"connections": 2})
    (tmp_path / "config.json").write_text(config.model_dump_json(exclude={"schema_"}))
    command = [sys.executable, "-m", "scraper", "--config", str(tmp_path / "config.json")]
    kills = 0
    for enough in (12, 26):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while server.requests.total() < enough and running.poll() is None:
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
    assert kills == 2
    assert not is_crawled(config)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert len(read_records(shelf.dir / "records.jsonl")) == 40
    pictures = {path: times for path, times in server.requests.items() if path.startswith("/up/")}
    assert len(pictures) == 40
    # only what was in flight at a kill (two connections) may be asked for again
    assert sum(times - 1 for times in pictures.values()) <= 2 * kills
    assert server.requests["/league-primary-logo/"] == 1
