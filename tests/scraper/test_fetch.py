import gzip
import threading
import time

import pytest

from crest.errors import FetchError
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


def test_large_answer_is_refused(server, fetcher):
    server.say("/a", b"x" * 300_000)
    with pytest.raises(Refused) as refused:
        fetcher(max_size_mb=0.1).get(f"{server.url}/a")
    assert refused.value.reason == "too_large"


def test_compressed_bomb_is_refused(server, fetcher):
    server.say("/a", gzip.compress(bytes(5_000_000)), headers={"Content-Encoding": "gzip"})
    with pytest.raises(Refused) as refused:
        fetcher(max_size_mb=0.1).get(f"{server.url}/a")
    assert refused.value.reason == "too_large"


def test_circle_of_redirects_ends(server, fetcher):
    server.say("/a", "", status=301, headers={"Location": "/a"})
    with pytest.raises(Refused) as refused:
        fetcher().get(f"{server.url}/a")
    assert refused.value.reason == "too_many_redirects"


def test_redirect_is_followed_and_told(server, fetcher):
    server.say("/a", "", status=301, headers={"Location": "/b"})
    server.say("/b", "hello")
    assert fetcher().get(f"{server.url}/a").final_url == f"{server.url}/b"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x.example/a", "data:text/plain,a", "/a"])
def test_other_schemes_are_refused(fetcher, url):
    with pytest.raises(Refused) as refused:
        fetcher().get(url)
    assert refused.value.reason == "bad_scheme"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_private_addresses_are_refused_unless_allowed(fetcher, host):
    with pytest.raises(Refused) as refused:
        fetcher(allow_hosts=()).get(f"http://{host}:9/a")
    assert refused.value.reason == "private_address"


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
    assert len(server.callers) <= 2  # robots.txt is missing: that answer is not read to its end


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
