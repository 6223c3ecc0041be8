"""One file from an address, whole and verified or not at all; what came of it stays for the next attempt.

Knows HTTP and nothing of hubs. A server that can't be reached is told within two seconds. Asks no more than
HTTP(S): other schemes are refused, and so is plain HTTP where nothing is known to verify what comes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from tqdm import tqdm

from crest.errors import DeviceError, FetchError, WeightsError
from crest.records import file_hash, read_json, write_json

PATIENCE_S: Final = 1.5
"""To be connected with; HF_HUB_ETAG_TIMEOUT is another."""
SILENCE_S: Final = 10.0
"""Between two pieces of a file; HF_HUB_DOWNLOAD_TIMEOUT is another."""
ATTEMPTS: Final = 5
"""In a row without a byte."""
_BLOCK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AGAIN: Final = (408, 429, 500, 502, 503, 504)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it comes."""

    size_bytes: int | None = None
    sha256: str | None = None
    """64 hex digits"""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks to leave the network alone."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


def unreachable(url: str) -> str | None:
    """Why the server of an address can't be connected with, found out in PATIENCE_S; None where it can."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    proxy = _proxy_of(parts)
    if proxy is not None:
        host, port = proxy
    found: list[str | None] = []

    def knock() -> None:
        try:
            socket.create_connection(
                (host, port), timeout=_seconds("HF_HUB_ETAG_TIMEOUT", PATIENCE_S)
            ).close()
            found.append(None)
        except socket.gaierror as error:
            found.append(f"the name {host} does not resolve: {error.strerror or error}")
        except (OSError, ValueError, UnicodeError) as error:
            found.append(f"{host}:{port}: {getattr(error, 'strerror', None) or error}")

    # a resolver without a network may think for half a minute, and can't be interrupted
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_seconds("HF_HUB_ETAG_TIMEOUT", PATIENCE_S))
    return found[0] if found else f"{host}:{port} does not answer"


def _proxy_of(parts: SplitResult) -> tuple[str, int] | None:
    place = urllib.request.getproxies().get(parts.scheme)
    if not place or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(place if "//" in place else f"//{place}")
    return (proxy.hostname, proxy.port or 8080) if proxy.hostname else None


def _seconds(name: str, default: float) -> float:
    try:
        return float(os.environ.get(name) or default)
    except ValueError:
        return default


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to where it is at least as safe as before."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https://"):
            raise FetchError(f"{req.full_url}: sends on to {newurl}, expected https; name another address.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return None


def _request(url: str, headers: Mapping[str, str], secret: Mapping[str, str], method: str = "GET") -> Any:
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    for name, value in secret.items():
        request.add_unredirected_header(name, value)  # a redirect leads to a host that must not know it
    return request


def head(url: str, secret: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
    """Status and headers (lower-case names) of the first answer that does not lead on within its own host.

    Raises:
        FetchError: no answer.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    for _ in range(5):
        request = _request(url, {"User-Agent": "crest", "Accept-Encoding": "identity"}, secret, "HEAD")
        try:
            with opener.open(request, timeout=SILENCE_S) as answer:
                return int(answer.status), _lower(answer.headers)
        except urllib.error.HTTPError as error:
            error.close()
            headers = _lower(error.headers)
            target = urljoin(url, headers.get("location", ""))
            # a renamed repository leads on; a large file's answer says what it is, and where it lies
            is_renamed = 300 <= error.code < 400 and urlsplit(target).netloc == urlsplit(url).netloc
            if not is_renamed or "x-linked-etag" in headers:
                return error.code, headers
            url = target
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{url}: could not be asked ({_why(error)}); connect and try again.") from None
    raise FetchError(f"{url}: leads on and on; name another address.")


def _lower(headers: Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}


def download(
    url: str,
    path: Path,
    expected: Expected,
    *,
    secret: Mapping[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Bring the file of an address to a path, going on where an earlier attempt stopped.

    What is not whole lies beside it as `.part`, with what is needed to go on as `.part.json`.

    Args:
        secret: headers that only the address's own host may see.
    Returns:
        its SHA-256, 64 hex digits.
    Raises:
        FetchError: the server does not give it.
        WeightsError: it gave something else than was expected.
        DeviceError: the disk is full.
    """
    parts = urlsplit(url)
    safe = parts.scheme == "https" or parts.hostname in _LOOPBACK or expected.sha256 is not None
    if parts.scheme not in ("http", "https") or not safe:
        raise FetchError(
            f"{url}: found {parts.scheme}, expected https (or a sha256 to verify it by); change it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.exists():  # another process was faster
            return file_hash(path)
        one = _Download(url, path, expected, secret or {})
        failures = 0
        while True:
            before = one.have
            try:
                if one.attempt():
                    return one.finish()
                reason = f"it ended after {one.have} bytes"
            except _BrokenError as error:
                reason = str(error)
            failures = 1 if one.have > before else failures + 1
            if failures >= ATTEMPTS:
                raise FetchError(
                    f"{url}: stopped answering ({reason}); run the same command again, what came is kept."
                )
            sleep(0.25 * 2**failures)


class _BrokenError(Exception):
    """The connection ended; another one may do."""


class _Download:
    """One file on its way."""

    def __init__(self, url: str, path: Path, expected: Expected, secret: Mapping[str, str]) -> None:
        self.url, self.path, self.expected, self._secret = url, path, expected, secret
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        self.have, self._total, self._validator = 0, expected.size_bytes, ""
        if self._part.exists() and self._note.exists():
            note = read_json(self._note)
            self._validator = note.get("validator", "")
            if note.get("url") == url and (self._validator or expected.sha256):
                self.have = self._part.stat().st_size
        self._digest, self.have = _hash(self._part, self.have)

    def attempt(self) -> bool:
        """Ask for what is missing; True when all is there."""
        if self._total is not None and self.have == self._total and self.have:
            return True
        headers = {"User-Agent": "crest", "Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if self.expected.sha256 is None:
                headers["If-Range"] = self._validator  # with a hash, the hash decides
        opener = urllib.request.build_opener(_Redirects)
        try:
            silence_s = _seconds("HF_HUB_DOWNLOAD_TIMEOUT", SILENCE_S)
            answer = opener.open(_request(self.url, headers, self._secret), timeout=silence_s)
        except urllib.error.HTTPError as error:
            error.close()
            return self._refused(error.code)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_why(error)) from None
        with answer:
            self._begin(answer)
            self._take(answer)
        return self._total is None or self.have == self._total

    def _refused(self, status: int) -> bool:
        if status == 416 and self.have:  # what is there is not a beginning of what the server has
            self._restart()
            raise _BrokenError("it has no such part")
        if status in _AGAIN:
            raise _BrokenError(f"status {status}")
        hints = {401: "set HF_TOKEN", 403: "accept its terms and set HF_TOKEN", 404: "check the name"}
        raise FetchError(
            f"{self.url}: found status {status}, expected the file; {hints.get(status, 'try later')}."
        )

    def _begin(self, answer: Any) -> None:
        length = answer.headers.get("Content-Length")
        first, total = 0, int(length) if length and length.isdigit() else None
        if answer.status == 206:
            _, _, told = answer.headers.get("Content-Range", "").partition(" ")
            reach, _, whole = told.partition("/")
            start = reach.partition("-")[0]
            first = int(start) if start.isdigit() else -1
            total = int(whole) if whole.isdigit() else None
        if first != self.have:
            if first:
                self._restart()
                raise _BrokenError("it gave another part than was asked for")
            self._restart()
        expected = self.expected.size_bytes
        if total is not None and expected is not None and total != expected:
            raise WeightsError(
                f"{self.url}: is {total} bytes, expected {expected}; it is another file or was "
                "changed: check the address."
            )
        self._total = total if total is not None else expected
        validator = answer.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified", "")
        if not self.have:
            self._validator = validator
        write_json(self._note, {"url": self.url, "validator": self._validator, "size_bytes": self._total})
        self._require_room()

    def _require_room(self) -> None:
        missing = (self._total or 0) - self.have
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise DeviceError(
                f"{self.path.parent}: has {free / 1e9:.2f} GB free, {self.path.name} needs "
                f"{missing / 1e9:.2f} GB more; free some space or set HF_HOME to a larger disk."
            )

    def _take(self, answer: Any) -> None:
        shown = tqdm(
            total=self._total, initial=self.have, desc=self.path.name, unit="B", unit_scale=True, disable=None
        )
        try:
            with self._part.open("ab", buffering=0) as stream, shown:
                while block := _read(answer):
                    _write(stream, block)
                    self._digest.update(block)
                    self.have += len(block)
                    shown.update(len(block))
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DeviceError(
                f"{self._part}: the disk is full after {self.have / 1e9:.2f} GB; free some space or set "
                "HF_HOME to a larger disk, and run the same command again: what came is kept."
            ) from None

    def _restart(self) -> None:
        self._part.unlink(missing_ok=True)
        self.have, self._digest = 0, hashlib.sha256()

    def finish(self) -> str:
        """Verify and rename."""
        found: str = self._digest.hexdigest()
        wanted = self.expected.sha256
        if self.expected.size_bytes not in (None, self.have):
            self._forget()
            raise WeightsError(
                f"{self.url}: is {self.have} bytes, expected {self.expected.size_bytes}; try again."
            )
        if wanted is not None and found != wanted.lower():
            self._forget()
            raise WeightsError(
                f"{self.url}: has the SHA-256 {found}, expected {wanted}; it is another file, or was changed "
                "on its way: what came was removed, check the address and the hash."
            )
        self._part.replace(self.path)
        self._note.unlink(missing_ok=True)
        return found

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _read(answer: Any) -> bytes:
    try:
        block: bytes = answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_why(error)) from None
    return block


def _write(stream: IO[bytes], block: bytes) -> None:
    view = memoryview(block)
    while view:  # an unbuffered file may take a part
        view = view[stream.write(view) :]


def _hash(path: Path, size_bytes: int) -> tuple[Any, int]:
    """The digest of the first bytes of a file, and how many those are."""
    digest, have = hashlib.sha256(), 0
    if size_bytes:
        with path.open("rb") as stream:
            while have < size_bytes and (block := stream.read(min(_BLOCK, size_bytes - have))):
                digest.update(block)
                have += len(block)
    return digest, have


def _why(error: BaseException) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from the same file, where the system can."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.with_name(path.name + ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
