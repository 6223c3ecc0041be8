"""What fetching refuses: other machines than the open internet's, too much, too slow, not for us."""

import contextlib
import gzip
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from crest.errors import ConfigError
from scraper.fetch import Fetcher
from scraper.refused import Refused


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server whose answers never end: one byte of the head or of the body at a time; or break off."""
    closing = threading.Event()

    def answer(client: socket.socket) -> None:
        with client:
            path = client.recv(4096).split(b" ")[1]
            ok = b"HTTP/1.1 200 OK\r\n"
            if path == b"/robots.txt":
                client.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif path == b"/chunks":
                client.sendall(ok + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe")
            elif path in (b"/digits", b"/square"):
                said = b"9" * 5000 if path == b"/digits" else b"\xb2"  # a digit to Python, and no number
                client.sendall(ok + b"Connection: close\r\nContent-Length: " + said + b"\r\n\r\nhello")
            else:
                client.sendall(ok + (b"Content-Length: 9999\r\n\r\n" if path == b"/body" else b"X-Slow: "))
                while not closing.wait(0.02):
                    client.sendall(b"a")

    def serve() -> None:
        while not closing.is_set():
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=_quietly(answer), args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        closing.set()


def _quietly(work):
    """The client hangs up, which is what is tested."""

    def done(*arguments):
        with contextlib.suppress(OSError):
            work(*arguments)

    return done


def test_large_answer_is_refused(server, fetcher):
    server.say("/a", b"x" * 300_000)
    with pytest.raises(Refused) as refused:
        fetcher(max_size_mb=0.1).get(f"{server.url}/a")
    assert refused.value.reason == "too_large"


def test_circle_of_redirects_ends(server, fetcher):
    server.say("/a", "", status=301, headers={"Location": "/a"})
    with pytest.raises(Refused) as refused:
        fetcher().get(f"{server.url}/a")
    assert refused.value.reason == "too_many_redirects"


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


def reason_of(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Refused) as refused:
        fetch.get(url)
    return refused.value.reason


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Robots-Tag": "noai"},
        {"X-Robots-Tag": "crest-scraper: noimageai"},
        {"TDM-Reservation": "1"},
    ],
)
def test_what_asks_not_to_be_used_for_training_is_refused_unread(server, fetcher, tmp_path, headers):
    server.say("/a", b"x", headers=headers)
    assert reason_of(fetcher(), f"{server.url}/a") == "opt_out_header"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert fetcher(respect_opt_out=False).get(f"{server.url}/a").content == b"x"


def test_opt_out_that_comes_later_counts_for_what_is_kept(server, fetcher):
    server.say("/a", b"x", headers={"ETag": '"1"'})
    assert fetcher().get(f"{server.url}/a").content == b"x"
    server.unchanged_headers["X-Robots-Tag"] = "noai"
    assert reason_of(fetcher(), f"{server.url}/a") == "opt_out_header"
    with pytest.raises(Refused):  # and now it stands in the cache
        fetcher().get(f"{server.url}/a", fresh_since=0.0)


def test_several_headers_of_one_name_all_count(server, fetcher):
    server.say("/a", b"x", headers={"X-Robots-Tag": "otherbot: noindex"}, more=(("X-Robots-Tag", "noai"),))
    assert reason_of(fetcher(), f"{server.url}/a") == "opt_out_header"


@pytest.mark.parametrize(
    "spelling", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0"]
)
def test_private_address_is_refused_in_any_spelling(fetcher, server, spelling):
    port = server.url.rpartition(":")[2]
    assert reason_of(fetcher(allow_hosts=()), f"http://{spelling}:{port}/a") == "private_address"
    assert server.callers == set()


def test_redirect_to_a_private_address_is_refused_before_it_is_asked(server, fetcher):
    port = server.url.rpartition(":")[2]
    server.say("/a", "", status=302, headers={"Location": f"http://127.0.0.2:{port}/secret"})
    assert reason_of(fetcher(allow_hosts=["127.0.0.1"]), f"{server.url}/a") == "private_address"
    assert "/secret" not in server.requests
    assert len(server.callers) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x/", "javascript:1"])
def test_redirect_to_another_scheme_is_refused(server, fetcher, target):
    server.say("/a", "", status=302, headers={"Location": target})
    assert reason_of(fetcher(), f"{server.url}/a") == "bad_scheme"


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http:///a"]
)
def test_malformed_addresses_are_refused(fetcher, url):
    assert reason_of(fetcher(), url) in ("bad_url", "bad_scheme")
    assert fetcher().delay_s(url) == 0.0


def test_name_is_resolved_once_and_connected_to_as_it_was_checked(server, fetcher, monkeypatch):
    """A name that is public when it is checked and private when it is connected to gains nothing."""
    port = int(server.url.rpartition(":")[2])
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host, *rest, **more):
        if host != "rebind.example":
            return real(host, *rest, **more)
        asked.append(host)
        return real("198.51.100.7" if len(asked) == 1 else "127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert reason_of(fetcher(allow_hosts=()), f"http://rebind.example:{port}/a") == "private_address"
    assert server.callers == set()


def test_limit_of_redirects_is_the_configs(server, fetcher):
    for number in range(3):
        server.say(f"/{number}", "", status=302, headers={"Location": f"/{number + 1}"})
    server.say("/3", b"there")
    assert reason_of(fetcher(max_redirects=2), f"{server.url}/0") == "too_many_redirects"
    assert fetcher(max_redirects=3).get(f"{server.url}/0").content == b"there"


def test_server_that_lets_bytes_drip_is_cut_off_in_body_and_head(dripping, fetcher):
    """Each byte comes in time, so that only a limit on the whole ends it."""
    for path in ("/body", "/head"):
        started = time.monotonic()
        fetch = fetcher(timeout_s=0.05, retries=0)  # 15 times that in all
        with pytest.raises(Refused) as refused:
            fetch.get(f"{dripping}{path}")
        assert refused.value.reason == "timeout"
        assert time.monotonic() - started < 4


def test_compressed_bomb_is_refused_without_being_unpacked(server, fetcher):
    bomb = gzip.compress(bytes(50_000_000), compresslevel=1)
    server.say("/a", bomb, headers={"Content-Encoding": "gzip"})
    fetch = fetcher(max_size_mb=2)
    tracemalloc.start()
    try:
        assert reason_of(fetch, f"{server.url}/a") == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_chunked_answer_that_breaks_off_is_truncated(dripping, fetcher):
    assert reason_of(fetcher(retries=0), f"{dripping}/chunks") == "truncated"


def test_sizes_and_waits_that_are_no_numbers_end_no_run(dripping, server, fetcher):
    assert reason_of(fetcher(), f"{dripping}/digits") == "too_large"
    assert fetcher().get(f"{dripping}/square").content == b"hello"
    for said in ("9" * 5000, "\u00b2", "Mon, 01 Jan 0001 00:00:00 -0000"):
        server.say("/a", b"", status=503, headers={"Retry-After": said})
    assert reason_of(fetcher(retries=2), f"{server.url}/a") == "http_503"


def test_contact_that_cannot_be_sent_is_told_at_once(fetcher):
    for contact in ("me\r\nX-Evil: 1", "mé@example.org"):
        with pytest.raises(ConfigError, match=r"fetch\.contact"):
            fetcher(contact=contact)


def test_names_of_kept_answers_are_hashes(server, fetcher, tmp_path):
    server.say("/etc/passwd", b"x")
    answer = fetcher().get(f"{server.url}/../../etc/passwd")
    assert answer.body_path is not None
    name = answer.body_path.relative_to(tmp_path / "cache").as_posix()
    assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{32}", name)


def test_proxy_of_the_environment_is_used_and_resolves_names_itself(server, fetcher, monkeypatch):
    """It may be a machine of this network; what is spelled as a private address is refused all the same."""
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.say("http://far.invalid/a", b"by proxy")
    fetch = fetcher(allow_hosts=())
    assert fetch.get("http://far.invalid/a").content == b"by proxy"
    assert server.requests == {"http://far.invalid/robots.txt": 1, "http://far.invalid/a": 1}
    for spelling in ("169.254.169.254", "2852039166", "[::1]"):
        assert reason_of(fetch, f"http://{spelling}/a") == "private_address"


def test_host_that_speaks_no_tls_is_not_asked_in_the_clear(fetcher):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        threading.Thread(target=_answer_in_the_clear, args=(listening,), daemon=True).start()
        assert reason_of(fetcher(retries=0), f"https://127.0.0.1:{port}/a") == "robots"


def _answer_in_the_clear(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client, _ = listening.accept()
        with client:
            client.recv(4096)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
