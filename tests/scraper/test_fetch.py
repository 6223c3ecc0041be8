import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from crest.errors import FetchError
from scraper.config import FetchConfig
from scraper.fetch import CLOSED_S, Fetcher
from scraper.refused import Refused, Unreachable


def test_robots_is_read_once_and_obeyed(server, fetcher):
    server.say("/robots.txt", "User-agent: *\nDisallow: /private/\n")
    server.say("/a", "hello")
    server.say("/private/b", "secret")
    fetch = fetcher()
    assert fetch.get(f"{server.url}/a").content == b"hello"
    with pytest.raises(Refused) as refused:
        fetch.get(f"{server.url}/private/b")
    assert refused.value.reason == "robots"
    assert server.requests == {"/robots.txt": 1, "/a": 1}


def test_redirect_into_a_disallowed_path_is_refused(server, fetcher):
    server.say("/robots.txt", "User-agent: *\nDisallow: /private/\n")
    server.say("/a", "", status=302, headers={"Location": "/private/b"})
    with pytest.raises(Refused) as refused:
        fetcher().get(f"{server.url}/a")
    assert refused.value.reason == "robots"
    assert "/private/b" not in server.requests


def test_unreadable_robots_closes_the_site(server, fetcher):
    server.say("/robots.txt", "oops", status=503)
    with pytest.raises(Refused) as refused:
        fetcher(retries=1).get(f"{server.url}/a")
    assert refused.value.reason == "robots"
    assert server.requests == {"/robots.txt": 2}


def test_user_agent_is_honest_and_names_a_contact(server, fetcher):
    server.say("/a", "hello")
    fetcher(user_agent="crest-test/1", contact="me@example.org").get(f"{server.url}/a")
    assert {headers["User-Agent"] for _, headers in server.headers} == {"crest-test/1 (+me@example.org)"}


def test_crawl_delay_of_robots_wins_over_a_shorter_one(server, fetcher):
    server.say("/robots.txt", "User-agent: *\nCrawl-delay: 7\n")
    server.say("/a", "hello")
    slept: list[float] = []
    fetch = fetcher(slept, delay_s=1.0)
    fetch.get(f"{server.url}/a")
    fetch.get(f"{server.url}/a")
    assert fetch.delay_s(f"{server.url}/a") == 7.0
    assert slept[0] == pytest.approx(1.0, abs=0.5)  # after robots.txt itself
    assert slept[1] > 6


def test_delay_between_two_requests_to_one_host(server, fetcher):
    server.say("/a", "hello")
    fetch = fetcher(delay_s=0.15)
    started = time.monotonic()
    for _ in range(2):
        fetch.get(f"{server.url}/a")
    assert time.monotonic() - started >= 0.3  # robots.txt, then twice /a


def test_busy_host_is_asked_again_after_as_long_as_it_said(server, fetcher):
    server.say("/a", "slow down", status=429, headers={"Retry-After": "3"})
    server.say("/a", "hello")
    slept: list[float] = []
    assert fetcher(slept).get(f"{server.url}/a").content == b"hello"
    assert slept == [pytest.approx(3.0, abs=0.5)]


def test_retry_after_may_be_a_date(server, fetcher):
    server.say("/a", "slow down", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    server.say("/a", "hello")
    assert fetcher().get(f"{server.url}/a").content == b"hello"


def test_retry_after_of_an_hour_is_a_no(server, fetcher):
    server.say("/a", "slow down", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(Refused) as refused:
        fetcher().get(f"{server.url}/a")
    assert refused.value.reason == "http_429"
    assert server.requests["/a"] == 1


def test_server_error_is_tried_again_with_growing_pauses(server, fetcher):
    server.say("/a", "oops", status=500)
    slept: list[float] = []
    with pytest.raises(Refused) as refused:
        fetcher(slept, retries=3, backoff_s=1.0).get(f"{server.url}/a")
    assert refused.value.reason == "http_500"
    assert server.requests["/a"] == 4
    assert [round(pause / 2**number) for number, pause in enumerate(slept)] == [1, 1, 1]


def test_missing_page_is_not_tried_again(server, fetcher):
    with pytest.raises(Refused) as refused:
        fetcher().get(f"{server.url}/a")
    assert refused.value.reason == "http_404"
    assert server.requests["/a"] == 1


def test_truncated_answer_is_tried_again_and_then_named(server, fetcher):
    server.say("/a", b"x" * 1000, cut_to=500)
    with pytest.raises(Refused) as refused:
        fetcher(retries=1).get(f"{server.url}/a")
    assert refused.value.reason == "truncated"
    assert server.requests["/a"] == 2


def test_answer_that_was_truncated_once_is_had_whole(server, fetcher):
    server.say("/a", b"x" * 1000, cut_to=500)
    server.say("/a", b"x" * 1000)
    assert len(fetcher().get(f"{server.url}/a").content) == 1000


def test_silent_server_is_a_timeout(server, fetcher):
    server.say("/a", "late", wait_s=1.0)
    with pytest.raises(Refused) as refused:
        fetcher(retries=0, timeout_s=0.2).get(f"{server.url}/a")
    assert refused.value.reason == "timeout"


def test_redirect_is_followed_and_told(server, fetcher):
    server.say("/a", "", status=301, headers={"Location": "/b"})
    server.say("/b", "hello")
    assert fetcher().get(f"{server.url}/a").final_url == f"{server.url}/b"


def test_redirect_in_raw_utf_8_is_followed(server, fetcher):
    server.say("/a", "", status=302, headers={"Location": "/café".encode().decode("latin-1")})
    server.say("/caf%C3%A9", "hello")
    assert fetcher().get(f"{server.url}/a").content == b"hello"


def test_no_network_is_told_at_once_in_one_sentence(fetcher):
    started = time.monotonic()
    with pytest.raises(Unreachable) as refused:
        fetcher().get("http://127.0.0.1:9/a")
    assert time.monotonic() - started < 5
    assert isinstance(refused.value, FetchError)
    assert str(refused.value) == (
        "127.0.0.1:9: did not answer (connection refused), expected a web site; "
        "check the network, then run the same command again."
    )


def test_second_run_asks_only_whether_something_changed(server, fetcher):
    server.say("/a", "hello", headers={"ETag": '"1"'})
    assert not fetcher().get(f"{server.url}/a").is_from_cache
    again = fetcher().get(f"{server.url}/a")
    assert again.is_from_cache
    assert again.content == b"hello"
    assert [headers.get("If-None-Match") for path, headers in server.headers if path == "/a"] == [None, '"1"']


def test_one_connection_serves_pages_errors_and_unchanged_answers(server, fetcher):
    server.say("/a", "hello", headers={"ETag": '"1"'})
    fetch = fetcher()
    for _ in range(4):
        fetch.get(f"{server.url}/a")
    assert server.requests == {"/robots.txt": 1, "/a": 4}
    assert len(server.callers) == 1


def test_changed_answer_replaces_the_kept_one(server, fetcher):
    server.say("/a", "old", headers={"ETag": '"1"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"})
    server.say("/a", "new", headers={"ETag": '"2"'})
    fetcher().get(f"{server.url}/a")
    again = fetcher().get(f"{server.url}/a")
    assert again.content == b"new"
    assert again.body_path.read_bytes() == b"new"
    assert server.headers[-1][1]["If-Modified-Since"] == "Wed, 21 Oct 2015 07:28:00 GMT"


def test_answer_of_this_run_is_not_asked_for_again(server, fetcher):
    server.say("/a", "hello")
    started = time.time()
    fetcher().get(f"{server.url}/a")
    assert fetcher().get(f"{server.url}/a", fresh_since=started).is_from_cache
    assert server.requests["/a"] == 1


def test_threads_share_one_fetcher(server, fetcher):
    for number in range(20):
        server.say(f"/{number}", f"page {number}")
    fetch = fetcher()
    found: dict[int, bytes] = {}

    def ask(first: int) -> None:
        for number in range(first, 20, 4):
            found[number] = fetch.get(f"{server.url}/{number}").content

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: b"page %d" % number for number in range(20)}


def test_answer_tells_headers_that_matter_and_when_it_came(server, fetcher):
    link = '<https://x.example/l>; rel="license"'
    said = {"ETag": '"1"', "X-Robots-Tag": "noindex", "Link": link, "X-Y": "z"}
    server.say("/a", b"x", headers=said)
    before = datetime.now(UTC).replace(microsecond=0)
    first = fetcher().get(f"{server.url}/a")
    assert dict(first.headers) == {
        "content-type": "image/png",
        "etag": '"1"',
        "x-robots-tag": "noindex",
        "link": link,
    }
    assert before <= datetime.fromisoformat(first.fetched_at) <= datetime.now(UTC)
    again = fetcher().get(f"{server.url}/a")
    assert again.is_from_cache
    assert (again.headers, again.fetched_at) == (first.headers, first.fetched_at)


def test_fetcher_without_a_cache_leaves_nothing_on_disk(server, tmp_path):
    server.say("/a", b"x", headers={"ETag": '"1"'})
    fetch = Fetcher(FetchConfig(delay_s=0, allow_hosts=("127.0.0.1",)), None)
    for _ in range(2):
        answer = fetch.get(f"{server.url}/a")
        assert (answer.content, answer.body_path, answer.is_from_cache) == (b"x", None, False)
    assert list(tmp_path.iterdir()) == []


def test_host_that_is_down_is_asked_once_in_a_while():
    now = [0.0]
    settings = FetchConfig(delay_s=0, allow_hosts=("127.0.0.1",), timeout_s=0.1, retries=0)
    fetch = Fetcher(settings, None, clock=lambda: now[0])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(Unreachable):
        fetch.get(f"http://127.0.0.1:{port}/a")
    with socket.create_server(("127.0.0.1", port)) as listening:  # it is up again, and says nothing
        listening.setblocking(False)
        with pytest.raises(Unreachable):
            fetch.get(f"http://127.0.0.1:{port}/a")
        with pytest.raises(BlockingIOError):
            listening.accept()
        now[0] = CLOSED_S + 1
        with pytest.raises(Refused):
            fetch.get(f"http://127.0.0.1:{port}/a")
        listening.accept()[0].close()


def test_threads_that_meet_a_host_at_once_read_its_robots_once(server, fetcher):
    server.say("/robots.txt", "User-agent: *\nDisallow: /x\n", wait_s=0.1)
    server.say("/a", b"x")
    fetch = fetcher()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetch.get(f"{server.url}/a"), range(8)))
    assert server.requests == {"/robots.txt": 1, "/a": 8}


def test_kept_answer_that_lost_its_end_is_fetched_again(server, fetcher):
    server.say("/a", b"whole", headers={"ETag": '"1"'})
    path = fetcher().get(f"{server.url}/a").body_path
    assert path is not None
    path.write_bytes(b"")  # as a crash of the machine may leave it
    assert fetcher().get(f"{server.url}/a", fresh_since=0.0).content == b"whole"
