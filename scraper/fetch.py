"""Polite HTTP: robots.txt, one host at a time, retries, a cache; the only file that knows requests.

Refuses other schemes than http and https, and addresses of this machine and its network unless the config
allows them. Names are checked when a host is first met and again at the open connection.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from crest.errors import FetchError
from scraper.cache import Cache, CachedAnswer
from scraper.config import FetchConfig
from scraper.robots import Robots, parse_robots

MAX_REDIRECTS: Final = 5
MAX_WAIT_S: Final = 300.0
"""A Retry-After beyond this is a no."""
MAX_SILENCES: Final = 15
"""An answer may take so many times timeout_s in all."""
RETRIED_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Refused(FetchError):  # noqa: N818 - counted, seldom reported
    """One address was not had, for a reason that is counted; the run goes on."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Unreachable(Refused):
    """A host did not even answer: no network, no such name, nobody listening."""

    def __init__(self, url: str, why: str) -> None:
        host = urlsplit(url).netloc
        super().__init__(
            "unreachable",
            f"{host}: did not answer ({why}), expected a web site; "
            "check the network, then run the same command again.",
        )


class _Again(Exception):  # noqa: N818 - not an error but a plan
    """Worth another attempt, after `wait_s` if the server said so."""

    def __init__(self, refusal: Refused, wait_s: float | None = None) -> None:
        super().__init__(str(refusal))
        self.refusal, self.wait_s = refusal, wait_s


@dataclass(frozen=True)
class Answer:
    """What an address gave."""

    url: str
    final_url: str
    content: bytes
    content_type: str
    body_path: Path
    """the kept body"""
    is_from_cache: bool


@dataclass
class _Host:
    """What is known about one host; `lock` guards its turn."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    robots: Robots | None = None
    proxies: dict[str, str] | None = None
    is_proxied: bool = False


class Fetcher:
    """Fetches one address at a time for each thread that asks; safe to share between threads."""

    def __init__(
        self,
        settings: FetchConfig,
        cache: Cache,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._cache = settings, cache
        self._sleep, self._clock = sleep, clock
        self._hosts: dict[str, _Host] = {}
        self._hosts_lock = threading.Lock()
        self._sessions = threading.local()
        contact = f" (+{settings.contact})" if settings.contact else ""
        self._user_agent = settings.user_agent + contact

    def delay_s(self, url: str) -> float:
        """Seconds between two requests to the host of `url`, as far as known."""
        robots = self._host(url).robots
        return max(self._settings.delay_s, robots.delay_s if robots else 0.0)

    def get(self, url: str, *, fresh_since: float | None = None) -> Answer:
        """Fetch one address.

        Args:
            url: http or https.
            fresh_since: Unix time; an answer kept since then is taken without asking.
        Raises:
            Refused: with the reason to count; Unreachable when the host did not answer at all.
        """
        kept = self._cache.find(url)
        if kept and fresh_since is not None and kept.fetched_at >= fresh_since:
            return self._kept(kept)
        return self._with_retries(url, lambda: self._follow(url, kept))

    def _host(self, url: str) -> _Host:
        parts = urlsplit(url)
        with self._hosts_lock:
            return self._hosts.setdefault(f"{parts.scheme}://{parts.netloc}", _Host())

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            session.trust_env = False  # proxies are looked up once a host; netrc is never sent
            session.mount("http://", HTTPAdapter(max_retries=0))
            session.mount("https://", HTTPAdapter(max_retries=0))
            session.headers.update({"User-Agent": self._user_agent, "Accept-Encoding": "gzip, deflate"})
        return session

    def _kept(self, kept: CachedAnswer) -> Answer:
        content, path = self._cache.read(kept.url), self._cache.body_path(kept.url)
        return Answer(kept.url, kept.final_url, content, kept.content_type, path, is_from_cache=True)

    def _with_retries(self, url: str, attempt: Callable[[], Answer]) -> Answer:
        for number in range(self._settings.retries + 1):
            try:
                return attempt()
            except _Again as again:
                if number == self._settings.retries or (again.wait_s or 0.0) > MAX_WAIT_S:
                    raise again.refusal from None
                jitter = random.uniform(0.75, 1.25)
                wait_s = (
                    self._settings.backoff_s * 2**number * jitter if again.wait_s is None else again.wait_s
                )
                if again.wait_s is not None:  # the host asked everybody to wait
                    host = self._host(url)
                    host.next_at = max(host.next_at, self._clock() + wait_s)
                else:
                    self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _follow(self, url: str, kept: CachedAnswer | None) -> Answer:
        headers = {}
        if kept and kept.etag:
            headers["If-None-Match"] = kept.etag
        if kept and kept.last_modified:
            headers["If-Modified-Since"] = kept.last_modified
        here = url
        for _ in range(MAX_REDIRECTS + 1):
            host = self.meet(here)
            if host.robots and not host.robots.allows(here):
                raise Refused("robots", f"{here}: robots.txt asks us to stay away; leave it out.")
            response = self._request(here, host, headers)
            with contextlib.closing(response):
                if response.is_redirect:
                    here = urljoin(here, response.headers["Location"])
                    continue
                if response.status_code == 304 and kept:
                    _ = response.content  # read to its end, or the connection could not be used again
                    self._cache.touch(kept)
                    return self._kept(kept)
                content = self._body(here, response)
            answer = CachedAnswer(
                url=url,
                final_url=here,
                content_type=response.headers.get("Content-Type", ""),
                etag=response.headers.get("ETag", ""),
                last_modified=response.headers.get("Last-Modified", ""),
                fetched_at=time.time(),
            )
            self._cache.write(answer, content)
            path = self._cache.body_path(url)
            return Answer(url, here, content, answer.content_type, path, is_from_cache=False)
        raise Refused("too_many_redirects", f"{url}: more than {MAX_REDIRECTS} redirects; leave it out.")

    def meet(self, url: str) -> _Host:
        """The host of `url`, allowed and with its robots.txt read; asks only at the first meeting."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused("bad_scheme", f"{url}: is no http or https address; leave it out.")
        host = self._host(url)
        with host.lock:
            if host.proxies is None:
                proxies = requests.utils.get_environ_proxies(url)
                host.is_proxied = bool(requests.utils.select_proxy(url, proxies))
                self._check_name(url, host)
                host.proxies = proxies
        if host.robots is None:
            host.robots = self._robots(f"{parts.scheme}://{parts.netloc}/robots.txt", host)
        return host

    def _check_name(self, url: str, host: _Host) -> None:
        parts = urlsplit(url)
        name = parts.hostname or ""
        if host.is_proxied:  # the proxy resolves names; plain addresses are still ours to check
            with contextlib.suppress(ValueError):
                self._check_address(url, str(ipaddress.ip_address(name)))
            return
        try:
            found = socket.getaddrinfo(name, parts.port or 80, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreachable(url, getattr(error, "strerror", None) or str(error)) from None
        for *_, address in found:
            self._check_address(url, str(address[0]))

    def _check_address(self, url: str, text: str) -> None:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        is_allowed = urlsplit(url).hostname in self._settings.allow_hosts
        if is_allowed or (address.is_global and not address.is_multicast):
            return
        raise Refused(
            "private_address",
            f"{url}: leads to the private address {address}, expected a public one; "
            "leave it out or add its host to fetch.allow_hosts.",
        )

    def _robots(self, url: str, host: _Host) -> Robots:
        def attempt() -> Answer:
            here = url
            for _ in range(MAX_REDIRECTS + 1):
                response = self._request(here, host, {})
                with contextlib.closing(response):
                    if not response.is_redirect:
                        return Answer(url, here, self._body(here, response), "", Path(), is_from_cache=False)
                    here = urljoin(here, response.headers["Location"])
                    if urlsplit(here).netloc != urlsplit(url).netloc:
                        self._check_name(here, host)
            raise Refused("http_404", f"{url}: goes round in circles.")

        try:
            answer = self._with_retries(url, attempt)
        except Unreachable:
            raise
        except Refused as refusal:
            if refusal.reason.startswith("http_4") and refusal.reason != "http_429":
                return Robots()  # RFC 9309, 2.3.1.3: no such file, no rules
            raise Refused(
                "robots", f"{url}: could not be read ({refusal.reason}), so nothing there may be; try later."
            ) from None
        return parse_robots(answer.content.decode("utf-8", errors="replace"), self._settings.user_agent)

    def _request(self, url: str, host: _Host, headers: dict[str, str]) -> requests.Response:
        """One request in the host's turn, its status checked; the body is still to be read."""
        settings = self._settings
        with host.lock:
            wait_s = host.next_at - self._clock()
            if wait_s > 0:
                self._sleep(wait_s)
            host.next_at = self._clock() + self.delay_s(url)
        try:
            response = self._session().get(
                url,
                headers=headers,
                timeout=settings.timeout_s,
                stream=True,
                allow_redirects=False,
                proxies=host.proxies,
            )
        except requests.exceptions.ConnectTimeout as error:
            raise Unreachable(url, f"no connection in {settings.timeout_s:g} s") from error
        except requests.exceptions.Timeout:
            raise _Again(_timeout(url, settings.timeout_s)) from None
        except requests.exceptions.ConnectionError as error:
            if "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error):
                raise Unreachable(url, _root_cause(error)) from None
            raise _Again(Refused("connection_lost", f"{url}: the connection broke off; try later.")) from None
        except (requests.exceptions.RequestException, UnicodeError) as error:
            raise Refused("bad_url", f"{url}: cannot be asked for ({error}); leave it out.") from None
        sock = getattr(getattr(response.raw, "connection", None), "sock", None)
        if sock is not None and not host.is_proxied:
            try:
                self._check_address(url, str(sock.getpeername()[0]))
            except Refused:
                response.close()
                raise
        status = response.status_code
        if status < 400:
            return response
        response.close()
        refusal = Refused(f"http_{status}", f"{url}: answered {status}; leave it out or try later.")
        if status in RETRIED_STATUSES:
            raise _Again(refusal, _retry_after_s(response.headers.get("Retry-After")))
        raise refusal

    def _body(self, url: str, response: requests.Response) -> bytes:
        limit = int(self._settings.max_size_mb * 1e6)
        deadline = self._clock() + self._settings.timeout_s * MAX_SILENCES
        blocks: list[bytes] = []
        size_bytes = 0
        try:
            for block in response.iter_content(1 << 16):
                size_bytes += len(block)
                if size_bytes > limit:
                    raise Refused(
                        "too_large", f"{url}: is larger than {limit} bytes; raise fetch.max_size_mb."
                    )
                if self._clock() > deadline:
                    raise _timeout(url, self._settings.timeout_s * MAX_SILENCES)
                blocks.append(block)
        except requests.exceptions.ConnectionError as error:
            if "timed out" in str(error).lower():
                raise _Again(_timeout(url, self._settings.timeout_s)) from None
            raise _Again(_truncated(url, size_bytes, response)) from None
        except requests.exceptions.RequestException:
            raise _Again(_truncated(url, size_bytes, response)) from None
        said = response.headers.get("Content-Length", "")
        is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if is_plain and said.isdigit() and int(said) != size_bytes:
            raise _Again(_truncated(url, size_bytes, response))
        return b"".join(blocks)


def _timeout(url: str, seconds: float) -> Refused:
    return Refused("timeout", f"{url}: took longer than {seconds:g} s; try later or raise fetch.timeout_s.")


def _truncated(url: str, size_bytes: int, response: requests.Response) -> Refused:
    said = response.headers.get("Content-Length", "more")
    return Refused("truncated", f"{url}: gave {size_bytes} bytes, expected {said}; try later.")


def _root_cause(error: Exception) -> str:
    text = str(error)
    for end in (
        "Connection refused",
        "Network is unreachable",
        "No route to host",
        "Name or service not known",
    ):
        if end in text:
            return end.lower()
    return "no connection"


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
