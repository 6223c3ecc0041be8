import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from crest.errors import DataError, FetchError
from crest.records import content_id, read_manifest, read_records
from scraper.collect import check_source, collect
from scraper.crawl import crawl, reach


def report_of(shelf):
    return json.loads((shelf.dir / "crawl.json").read_text(encoding="utf-8"))


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


def test_thumbnail_is_taken_when_the_full_size_is_gone(server, shelf, as_card, draw, as_png):
    server.say("/up/a_1990-150x150.png", as_png(draw(1)))
    server.say("/league-primary-logo/", as_card("a_1990-150x150.png", "A"))
    collect(shelf.config())
    assert read_records(shelf.dir / "records.jsonl")[0].image_url.endswith("-150x150.png")
    assert server.requests["/up/a_1990.png"] == 1


@pytest.mark.parametrize("late_s", [0.0, 0.3])
def test_cards_that_share_a_lost_full_size_each_keep_their_own_thumbnail(
    server, shelf, as_card, draw, as_png, late_s
):
    pages = {
        "league-primary-logo/": ("a_1990-150x150.png", "A"),
        "league-wordmark-logo/": ("a_1990-90x90.png", "B"),
    }
    for number, (page, (name, title)) in enumerate(pages.items()):
        server.say(f"/up/{name}", as_png(draw(number + 1)))
        server.say(
            f"/{page}", as_card(name, title), wait_s=number * late_s
        )  # late: the loss is known by then
    collect(shelf.config(source={"targets": list(pages)}))
    found = {record.title: record.image_url for record in read_records(shelf.dir / "records.jsonl")}
    assert found == {title: f"{server.url}/up/{name}" for name, title in pages.values()}
    assert server.requests["/up/a_1990.png"] == 1


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


def test_record_says_where_and_when_each_picture_came_from(server, shelf, as_card, draw, as_png):
    said = {
        "ETag": '"7"',
        "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        "Link": '<https://x.example/l>; rel="license"',
    }
    content = as_png(draw(1))
    server.say("/up/a_1990-w.png", content, headers=said)
    server.say("/league-primary-logo/", as_card("a_1990-w-150x150.png", "A", "A badge."))
    before = datetime.now(UTC).replace(microsecond=0)
    collect(shelf.config(source={**shelf.config().source.model_dump(), "licence": "ask"}))
    (record,) = read_records(shelf.dir / "records.jsonl")
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.id == record.sha256[:16]
    assert before <= datetime.fromisoformat(record.fetched_at) <= datetime.now(UTC)
    assert record.headers == {
        "content-type": "image/png",
        "etag": '"7"',
        "last-modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        "link": '<https://x.example/l>; rel="license"',
    }
    assert (record.licence, record.source_file) == ("https://x.example/l", "up/a_1990-w")
    assert (record.kind, record.frames, record.written_by) == ("wordmark", 1, "human")


def test_second_run_keeps_headers_and_time_of_what_has_not_changed(league, server, shelf):
    league(2, headers={"ETag": '"1"'})
    collect(shelf.config())
    before = read_records(shelf.dir / "records.jsonl")
    time.sleep(1.1)  # times are told in whole seconds
    collect(shelf.config(fetch={"refresh": True}))
    assert read_records(shelf.dir / "records.jsonl") == before


def test_crawl_killed_at_any_moment_loses_nothing_and_fetches_nothing_twice(league, server, shelf, tmp_path):
    """What was in the cache when the process died, page or picture, is never asked for again."""
    league(30, wait_s=0.01)
    broken = "/up/club7_1990-1999.png"
    server.script[broken] = []
    config = shelf.config(fetch={"connections": 3})
    (tmp_path / "config.json").write_text(config.model_dump_json(exclude={"schema_"}))
    command = [sys.executable, "-m", "scraper", "--config", str(tmp_path / "config.json")]
    kills = 0
    asked: dict[str, int] = {}
    for enough in (3, 14, 29):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while server.requests.total() < enough and running.poll() is None:
            time.sleep(0.002)
        os.kill(running.pid, signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
        lines = (shelf.dir / "cache").glob("*/*.json")
        kept = [json.loads(line.read_text())["url"].removeprefix(server.url) for line in lines]
        asked = {**{path: server.requests[path] for path in kept}, **asked}
    assert kills == 3
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert {path: server.requests[path] for path in asked} == asked
    assert len(asked) > 10
    assert len(read_records(shelf.dir / "records.jsonl")) == 29
    assert report_of(shelf)["dropped"] == {"http_404": 1}
    bodies = server.requests.total() - server.requests["/robots.txt"]
    assert bodies <= 31 + kills * 3  # but for what was in flight at a kill, each address once
