"""One file over a bad line: resumed, verified, never half-written; full disks and odd servers are told."""

import errno
import hashlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crest import downloads
from crest.downloads import Expected, download, unreachable
from crest.errors import DeviceError, FetchError, WeightsError
from tests.crest.hub_server import HubServer

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHOLE = Expected(len(CONTENT), SHA256)
NOTHING = Expected()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file.pth").write_bytes(CONTENT)
    with HubServer({"club/prior": folder}) as server:
        yield server


def bring(server: HubServer, path: Path, expected: Expected = WHOLE) -> str:
    return download(f"{server.url}/elsewhere/club/prior/file.pth", path, expected, sleep=lambda _: None)


def only(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other.suffix != ".lock")


@pytest.mark.parametrize("expected", [WHOLE, NOTHING, Expected(len(CONTENT)), Expected(None, SHA256.upper())])
def test_a_file_comes_whole(server: HubServer, tmp_path: Path, expected: Expected) -> None:
    path = tmp_path / "got" / "file.pth"
    assert bring(server, path, expected) == SHA256
    assert path.read_bytes() == CONTENT
    assert only(path) == ["file.pth"]


@pytest.mark.parametrize("expected", [WHOLE, NOTHING])
def test_a_line_that_breaks_is_taken_up_where_it_broke(
    server: HubServer, tmp_path: Path, expected: Expected
) -> None:
    server.cuts = [1_000_000, 700_000, 0]
    path = tmp_path / "got" / "file.pth"
    assert bring(server, path, expected) == SHA256
    assert path.read_bytes() == CONTENT
    asked = [headers.get("range") for _, headers in server.asked]
    assert asked == [None, "bytes=1000000-", "bytes=1700000-", "bytes=1700000-"]


def test_another_run_goes_on_where_the_first_one_stopped(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "got" / "file.pth"
    server.cuts = [2_000_000] + [0] * (downloads.ATTEMPTS - 1)
    with pytest.raises(
        FetchError, match=r"stopped answering \(.*\); run the same command again, what came is"
    ):
        bring(server, path)
    assert only(path) == ["file.pth.part", "file.pth.part.json"]
    server.asked.clear()
    assert bring(server, path) == SHA256
    assert [headers["range"] for _, headers in server.asked] == ["bytes=2000000-"]
    assert only(path) == ["file.pth"]


@pytest.mark.parametrize("expected", [WHOLE, NOTHING])
def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(
    server: HubServer, tmp_path: Path, expected: Expected
) -> None:
    path = tmp_path / "got" / "file.pth"
    server.cuts = [2_000_000] + [0] * (downloads.ATTEMPTS - 1)
    with pytest.raises(FetchError):
        bring(server, path, expected)
    changed = bytes(reversed(CONTENT))
    (server.repositories["club/prior"] / "file.pth").write_bytes(changed)
    if expected is NOTHING:
        bring(server, path, expected)
        assert path.read_bytes() == changed
    else:
        with pytest.raises(WeightsError, match=rf"has the SHA-256 \w+, expected {SHA256}; .* was removed"):
            bring(server, path, expected)
        assert only(path) == []


def test_a_server_without_parts_gives_the_whole_again(server: HubServer, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000_000]
    path = tmp_path / "got" / "file.pth"
    assert bring(server, path) == SHA256
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_dropped(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "got" / "file.pth"
    server.cuts = [2_000_000] + [0] * (downloads.ATTEMPTS - 1)
    with pytest.raises(FetchError):
        bring(server, path, Expected(None, SHA256))
    with path.with_name("file.pth.part").open("ab") as stream:
        stream.write(bytes(2_000_000))
    assert bring(server, path, Expected(None, SHA256)) == SHA256


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: HubServer, tmp_path: Path, status: int) -> None:
    server.statuses = [status, status]
    assert bring(server, tmp_path / "got" / "file.pth") == SHA256


@pytest.mark.parametrize(
    ("status", "says"), [(404, "check the name"), (403, "HF_TOKEN"), (401, "HF_TOKEN"), (410, "try later")]
)
def test_a_refusal_is_told_at_once(server: HubServer, tmp_path: Path, status: int, says: str) -> None:
    server.statuses = [status] * 9
    with pytest.raises(FetchError, match=rf"file\.pth: found status {status}, expected the file; .*{says}"):
        bring(server, tmp_path / "got" / "file.pth")
    assert len(server.asked) == 1


def test_another_size_or_content_is_refused_and_nothing_is_left(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "got" / "file.pth"
    with pytest.raises(WeightsError, match=r"is 3000000 bytes, expected 5; it is another file"):
        bring(server, path, Expected(5, None))
    with pytest.raises(WeightsError, match=rf"has the SHA-256 {SHA256}, expected {'0' * 64}"):
        bring(server, path, Expected(None, "0" * 64))
    assert only(path) == []


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """What a full disk does to a writer: part of the file is there, then the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_told_and_what_came_is_kept(server: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "got" / "file.pth"
    with (
        files_no_larger_than(2_500_000),
        pytest.raises(DeviceError, match=r"file\.pth\.part: the disk is full after .*what came is kept"),
    ):
        bring(server, path)
    assert not path.exists()
    server.asked.clear()
    assert bring(server, path) == SHA256
    assert server.asked[0][1]["range"] == "bytes=2500000-"
    assert errno.EFBIG in downloads._FULL


def test_a_disk_without_room_is_told_before_it_is_filled(tmp_path: Path, server: HubServer) -> None:
    class Huge(HubServer):
        def part(self, path: str, told: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            return 206, {"Content-Range": f"bytes 0-9/{1 << 60}"}, bytes(10)

    with (
        Huge(server.repositories) as huge,
        pytest.raises(DeviceError, match=r"GB free, file\.pth needs .* GB"),
    ):
        bring(huge, tmp_path / "got" / "file.pth", Expected(None, SHA256))


def test_only_https_is_asked_without_a_hash(tmp_path: Path) -> None:
    for url in ("http://example.invalid/x", "file:///etc/passwd", "ftp://example.invalid/x"):
        with pytest.raises(FetchError, match=r"expected https \(or a sha256"):
            download(url, tmp_path / "x", NOTHING)
    with pytest.raises(FetchError, match="expected https"):
        download("file:///etc/passwd", tmp_path / "x", WHOLE)


def test_what_can_not_be_reached_is_told_in_two_seconds(server: HubServer) -> None:
    assert unreachable(server.url) is None
    for url, says in (
        ("http://127.0.0.1:9/x", "refused"),
        ("https://hub.invalid/x", "hub.invalid"),
    ):
        started = time.monotonic()
        why = unreachable(url)
        assert time.monotonic() - started < 2
        assert why is not None, url
        assert says in why


def test_a_resolver_that_thinks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(4) or [])
    started = time.monotonic()
    assert unreachable("https://hub.example/x") == "hub.example:443 does not answer"
    assert time.monotonic() - started < 2


def test_a_proxy_is_knocked_at_in_the_place_of_the_server(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", server.url)
    assert unreachable("https://hub.invalid/x") is None
