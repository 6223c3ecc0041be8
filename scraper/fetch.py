"""Polite HTTP: robots.txt, one host at a time, retries, a cache; the only file that knows requests.

Refuses other schemes than http and https, addresses of this machine and its network unless the config allows
them (scraper/connections.py), and what asks not to be used for training. requests is used for its pools,
proxies and certificates; a request itself goes to urllib3 below it, at less than half the processor time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter

from crest.errors import ConfigError
from scraper.cache import Cache, CachedAnswer
from scraper.config import FetchConfig
from scraper.connections import guarded_pools, refuse_private_spelling
from scraper.opt_out import header_opt_out
from scraper.refused import Refused, Unreachable
from scraper.robots import Robots, parse_robots, product_token
from scraper.turns import host_of
from scraper.wire import Again, Reply, Wire, bad_status, bad_url, parts_of

MAX_WAIT_S: Final = 300.0
"""A Retry-After beyond this is a no."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
CLOSED_S: Final = 60.0
"""A host that did not answer, or whose robots.txt could not be read, is left alone for so long."""
HEADERS: Final = ("content-type", "etag", "last-modified", "x-robots-tag", "tdm-reservation", "tdm-policy")
"""Those that matter, beside a Link to a licence."""
_CONDITIONS: Final = (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
_TLS: Final[dict[str, Any]] = {
    "cert_reqs": "CERT_REQUIRED",
    "ca_certs": requests.utils.DEFAULT_CA_BUNDLE_PATH,
}
_MAX_HOSTS: Final = 10_000
_POOL_SIZE: Final = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What an address gave."""

    url: str
    final_url: str
    content: bytes
    headers: Mapping[str, str]
    """those that matter, lower-case name -> value"""
    fetched_at: str
    """when the content came over the wire, ISO 8601 in UTC"""
    body_path: Path | None
    """the kept body; None without a cache"""
    is_from_cache: bool
    status: int = 200

    @property
    def content_type(self) -> str:
        """The header of that name; never believed where bytes can tell."""
        return self.headers.get("content-type", "")


@dataclass
class _Host:
    """What is known about one host."""

    root: str
    """scheme, name and port, as in an address"""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """guards next_at"""
    meeting: threading.Lock = field(default_factory=threading.Lock)
    """guards the first meeting"""
    next_at: float = 0.0
    robots: Robots | None = None
    manager: urllib3.PoolManager | None = None
    closed: Refused | None = None
    closed_until: float = 0.0


class Fetcher:
    """Fetches one address at a time for each thread that asks; safe to share between threads."""

    def __init__(
        self,
        settings: FetchConfig,
        cache: Cache | None,
        *,
        workers: int = 1,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to fetch.

        Args:
            settings: manners and limits.
            cache: where answers are kept; None keeps nothing.
            workers: processes that ask the same hosts; each waits so many times a host's delay.
            sleep: waits.
            clock: seconds that only grow.
        """
        self._settings, self._cache, self._workers = settings, cache, workers
        self._sleep, self._clock = sleep, clock
        self._hosts: dict[str, _Host] = {}
        self._hosts_lock = threading.Lock()
        self._agent = product_token(settings.user_agent)
        user_agent = settings.user_agent + (f" (+{settings.contact})" if settings.contact else "")
        if not (user_agent.isascii() and user_agent.isprintable()):
            raise ConfigError(
                f"fetch.contact: {user_agent!r} cannot be sent as a header, expected ASCII on one line; "
                "name an e-mail address or a page."
            )
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "gzip, deflate"}
        self._wire = Wire(settings, clock)
        self._adapter = HTTPAdapter(_POOL_SIZE, _POOL_SIZE)
        self._adapter.init_poolmanager(_POOL_SIZE, _POOL_SIZE, **_TLS)
        self._manager: urllib3.PoolManager = self._adapter.poolmanager
        self._manager.pool_classes_by_scheme = guarded_pools(settings.allow_hosts, self._wire.total_s)

    def delay_s(self, url: str) -> float:
        """Seconds between two requests to the host of `url`, as far as known; 0 for what is no address."""
        try:
            return self._delay_s(self._host(parts_of(url)))
        except Refused:
            return 0.0

    def _delay_s(self, host: _Host) -> float:
        return self._workers * max(self._settings.delay_s, host.robots.delay_s if host.robots else 0.0)

    def wait_s(self, url: str) -> float:
        """Seconds until the host of `url` may be asked again; 0 for what is no address."""
        try:
            return max(0.0, self._host(parts_of(url)).next_at - self._clock())
        except Refused:
            return 0.0

    def get(self, url: str, *, fresh_since: float | None = None) -> Answer:
        """Fetch one address.

        Args:
            url: http or https.
            fresh_since: Unix time; what was known to be the server's since then is taken without asking.
        Raises:
            Refused: with the reason to count; Unreachable when the host did not answer at all.
        """
        kept = self._cache.find(url) if self._cache else None
        if kept and fresh_since is not None and kept.checked_at >= fresh_since:
            return self._kept(kept)
        return self._with_retries(url, lambda: self._ask(url, kept))

    def meet(self, url: str) -> None:
        """Read the robots.txt of the host of `url`, which must be one that may be asked.

        Raises:
            Refused: it may not, or its robots.txt cannot be read; Unreachable when it does not answer.
        """
        self._met(parts_of(url))

    def _host(self, parts: SplitResult) -> _Host:
        root = host_of(parts.geturl())
        host = self._hosts.get(root)
        if host is not None:
            return host
        with self._hosts_lock:
            if len(self._hosts) >= _MAX_HOSTS:  # the older half goes, but for those whose turn is taken
                now = self._clock()
                for old in list(self._hosts)[: _MAX_HOSTS // 2]:
                    if self._hosts[old].next_at < now:
                        del self._hosts[old]
            return self._hosts.setdefault(root, _Host(root))

    def _met(self, parts: SplitResult) -> _Host:
        """The host, its robots.txt read; asks only at the first meeting, however many meet it at once."""
        host = self._host(parts)
        if host.robots is None:
            with host.meeting:
                if host.robots is None:
                    if host.closed is not None and self._clock() < host.closed_until:
                        raise copy(host.closed)
                    try:
                        host.robots = self._robots(f"{host.root}/robots.txt")
                    except Refused as refusal:
                        host.closed, host.closed_until = refusal, self._clock() + CLOSED_S
                        raise
        return host

    def _robots(self, url: str) -> Robots:
        def attempt() -> bytes:
            return self._wire.body(self._hops(url, self._headers, self._host))

        try:
            text = self._with_retries(url, attempt)
        except Unreachable:
            raise
        except Refused as refusal:
            if refusal.reason == "private_address":
                raise
            if refusal.reason.startswith("http_4") and refusal.reason != "http_429":
                return Robots()  # RFC 9309, 2.3.1.3: no such file, no rules
            raise Refused(
                "robots", f"{url}: could not be read ({refusal.reason}), so nothing there may be; try later."
            ) from None
        return parse_robots(text, self._agent)

    def _with_retries(self, url: str, attempt: Callable[[], T]) -> T:
        for number in range(self._settings.retries + 1):
            try:
                return attempt()
            except Again as again:
                if number == self._settings.retries or (again.wait_s or 0.0) > MAX_WAIT_S:
                    raise again.refusal from None
                if again.wait_s is not None:  # the host asked everybody to wait
                    host = self._host(parts_of(url))
                    host.next_at = max(host.next_at, self._clock() + again.wait_s)
                else:
                    self._sleep(self._settings.backoff_s * 2**number * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")

    def _ask(self, url: str, kept: CachedAnswer | None) -> Answer:
        headers = self._headers
        if kept:
            known = {name: kept.headers.get(of, "") for name, of in _CONDITIONS}
            headers = {**headers, **{name: value for name, value in known.items() if value}}
        reply = self._hops(url, headers, self._allowing)
        found = _that_matter(reply.headers)
        if reply.status == 304 and kept and self._cache:
            self._wire.spare(reply)
            return self._kept(self._cache.touch(kept, found))
        try:
            if reply.status not in (200, 203):
                raise bad_status(reply.url, reply.status)
            self._heed(reply.url, found)
        except Refused:
            reply.close()
            raise
        content, here = self._wire.body(reply), reply.url
        now = time.time()
        path = None
        if self._cache:
            self._cache.write(CachedAnswer(url, here, found, now, now, len(content)), content)
            path = self._cache.body_path(url)
        return Answer(url, here, content, found, _iso(now), path, is_from_cache=False)

    def _kept(self, kept: CachedAnswer) -> Answer:
        assert self._cache is not None
        self._heed(kept.url, kept.headers)
        content, path = self._cache.read(kept.url), self._cache.body_path(kept.url)
        when = _iso(kept.fetched_at)
        return Answer(kept.url, kept.final_url, content, kept.headers, when, path, is_from_cache=True)

    def _heed(self, url: str, headers: Mapping[str, str]) -> None:
        said = self._settings.respect_opt_out and header_opt_out(headers, self._agent)
        if said:
            raise Refused(
                "opt_out_header", f"{url}: asks not to be used for training ({said}); leave it out."
            )

    def _allowing(self, parts: SplitResult) -> _Host:
        """The host of an address that its robots.txt allows."""
        host = self._met(parts)
        if host.robots and not host.robots.allows(parts.geturl()):
            raise Refused("robots", f"{parts.geturl()}: robots.txt asks us to stay away; leave it out.")
        return host

    def _hops(self, url: str, headers: dict[str, str], met_host: Callable[[SplitResult], _Host]) -> Reply:
        """The answer at the end of all redirects, each hop as strictly checked as the first."""
        here = url
        for _ in range(self._settings.max_redirects + 1):
            reply = self._send(here, met_host(parts_of(here)), headers)
            target = reply.headers.get("Location") if reply.status in REDIRECTS else None
            if target is None:
                return reply
            self._wire.spare(reply)
            try:
                here = urljoin(here, _as_sent(target))
            except ValueError as error:
                raise bad_url(target, str(error)) from None
        raise Refused(
            "too_many_redirects",
            f"{url}: more than {self._settings.max_redirects} redirects; raise fetch.max_redirects.",
        )

    def _manager_of(self, host: _Host) -> urllib3.PoolManager:
        """Ours, which checks addresses, or that of the proxy which the environment names."""
        if host.manager is None:
            proxies = requests.utils.get_environ_proxies(host.root)
            proxy = requests.utils.select_proxy(host.root, proxies)
            if proxy:  # it resolves names; what is spelled as an address is still ours to check
                refuse_private_spelling(host.root, self._settings.allow_hosts)
            host.manager = self._adapter.proxy_manager_for(proxy, **_TLS) if proxy else self._manager
        return host.manager

    def _send(self, url: str, host: _Host, headers: dict[str, str]) -> Reply:
        """One request in the host's turn."""
        with host.turn:
            wait_s = host.next_at - self._clock()
            if wait_s > 0:
                self._sleep(wait_s)
            host.next_at = self._clock() + self._delay_s(host)
        return self._wire.send(self._manager_of(host), url, headers)


def _that_matter(headers: urllib3.HTTPHeaderDict) -> dict[str, str]:
    found = {name: "\n".join(headers.getlist(name)) for name in HEADERS if name in headers}
    licences = [value for value in headers.getlist("link") if "license" in value.lower()]
    return {**found, "link": ", ".join(licences)} if licences else found


def _as_sent(header: str) -> str:
    """A header in UTF-8 where that is what came; the library reads every one as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _iso(unix_time: float) -> str:
    return datetime.fromtimestamp(unix_time, UTC).isoformat(timespec="seconds")
