import sqlite3

import pytest

from crest.errors import DataError
from scraper.frontier import Frontier
from scraper.sites import Visit
from scraper.turns import host_of

ROOT = "http://127.0.0.1:5000/"


def visits(*names: str) -> list[Visit]:
    return [Visit(f"{ROOT}{name}", "page") for name in names]


def names(found: list[Visit]) -> list[str]:
    return [visit.url.removeprefix(ROOT) for visit in found]


def test_an_address_is_queued_once(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add(visits("a", "b", "a"))
    frontier.done(visits("a")[0], {}, visits("a", "b", "c"))
    assert names(frontier.waiting(9)) == ["b", "c"]
    assert frontier.size == 3


def test_journal_goes_on_where_it_was_closed(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    started = frontier.begin(again=False)
    frontier.add(visits("a", "b", "c"))
    frontier.done(visits("a")[0], {"id": 1})
    frontier.failed(visits("b")[0], "http_404")
    frontier.close()
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    assert frontier.begin(again=False) == started
    assert names(frontier.waiting(9)) == ["c"]
    assert [(one.reason, one.result) for one in frontier.outcomes()] == [("", {"id": 1}), ("http_404", None)]
    assert frontier.counts() == {"todo": 1, "done": 1, "failed": 1}


def test_site_may_come_back_on_another_port(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add(visits("a", "b"))
    frontier.done(visits("a")[0], {"page": f"{ROOT}a"})
    frontier.close()
    other = "http://127.0.0.1:6000/"
    frontier = Frontier(tmp_path / "j.sqlite", other)
    assert frontier.waiting(9) == [Visit(f"{other}b", "page")]
    assert next(frontier.outcomes()).result == {"page": f"{other}a"}


def test_closed_hosts_and_taken_addresses_are_left_alone(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add([*visits("a", "b"), Visit("https://x.example/c", "image")])
    assert names(frontier.waiting(1, taken=[f"{ROOT}a"])) == ["b"]
    assert frontier.waiting(9, closed_hosts=[host_of(ROOT)]) == [Visit("https://x.example/c", "image")]


def test_host_is_closed_however_it_is_spelled(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add([Visit("https://X.example/c", "image"), Visit("https://me@x.example/d", "image")])
    assert frontier.waiting(9, closed_hosts=[host_of("https://x.example/")]) == []


def test_finished_crawl_starts_over_only_when_told(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.begin(again=True)
    frontier.add(visits("a"))
    frontier.begin(again=True)
    assert frontier.size == 1  # unfinished: goes on
    frontier.finish()
    frontier.begin(again=False)
    assert frontier.is_finished
    frontier.begin(again=True)
    assert not frontier.is_finished
    assert frontier.waiting(9) == []


def test_two_visits_at_once_are_both_there_after_a_crash(tmp_path):
    """What waits to be written together is written by the next change that cannot wait, or at the end."""
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add(visits("a", "b", "c"))
    frontier.done(visits("a")[0], 1)
    frontier.done(visits("b")[0], 2)
    frontier.failed(visits("c")[0], "http_404")
    rows = (
        sqlite3.connect(tmp_path / "j.sqlite")
        .execute("SELECT state FROM visits ORDER BY position")
        .fetchall()
    )
    assert rows == [("done",), ("done",), ("failed",)]


def test_file_that_is_no_journal_is_named(tmp_path):
    (tmp_path / "j.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 20)
    with pytest.raises(DataError, match=r"j\.sqlite: is no journal"):
        Frontier(tmp_path / "j.sqlite", ROOT)


def test_failed_visits_of_a_finished_crawl_wait_again_when_told(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.begin(again=False)
    frontier.add(visits("a", "b", "c"))
    frontier.done(visits("a")[0], 1)
    frontier.failed(visits("b")[0], "http_404")
    frontier.begin(again=False, retry=True)
    assert names(frontier.waiting(9)) == ["c"]  # unfinished: goes on
    frontier.failed(visits("c")[0], "timeout")
    frontier.finish()
    assert frontier.retried is None
    before = frontier.begin(again=False)
    assert frontier.begin(again=False, retry=True) > before
    assert names(frontier.waiting(9)) == ["b", "c"]
    assert not frontier.is_finished
    assert frontier.retried == {"http_404": 1, "timeout": 1}
    frontier.done(visits("b")[0], 2)
    frontier.close()  # killed here
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.begin(again=False, retry=True)
    assert names(frontier.waiting(9)) == ["c"]
    assert frontier.retried == {"http_404": 1, "timeout": 1}


def test_journal_of_an_earlier_version_is_begun_anew(tmp_path):
    frontier = Frontier(tmp_path / "j.sqlite", ROOT)
    frontier.add(visits("a"))
    frontier.close()
    base = sqlite3.connect(tmp_path / "j.sqlite")
    base.execute("DELETE FROM notes WHERE name = 'format'")
    base.commit()
    base.close()
    assert Frontier(tmp_path / "j.sqlite", ROOT).size == 0
