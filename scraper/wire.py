"""One request over the wire and its body, within the limits of time and size; knows nothing of manners."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from scraper.config import FetchConfig
from scraper.refused import Refused, Unreachable

MAX_SILENCES: Final = 15
"""An answer may take so many times timeout_s in all."""
RETRIED_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_BLOCK: Final = 1 << 16


class Again(Exception):  # noqa: N818 - not an error but a plan
    """Worth another attempt, after `wait_s` if the server said so."""

    def __init__(self, refusal: Refused, wait_s: float | None = None) -> None:
        super().__init__(str(refusal))
        self.refusal, self.wait_s = refusal, wait_s


@dataclass(frozen=True)
class Reply:
    """The head of an answer; its body is still to be read, or to be closed."""

    url: str
    response: urllib3.BaseHTTPResponse
    started: float
    """when it was asked for, by the clock of the wire"""

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.response.status

    @property
    def headers(self) -> urllib3.HTTPHeaderDict:
        """All headers of the answer."""
        return self.response.headers

    def close(self) -> None:
        """Give up the body, and with it the connection."""
        self.response.close()


class Wire:
    """Sends requests and reads bodies; safe to share between threads."""

    def __init__(self, settings: FetchConfig, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._timeout_s = settings.timeout_s
        self._timeout = urllib3.Timeout(connect=settings.timeout_s, read=settings.timeout_s)
        self._limit = int(settings.max_size_mb * 1e6)
        self.total_s = settings.timeout_s * MAX_SILENCES
        """Seconds that one answer may take in all."""

    def send(self, manager: urllib3.PoolManager, url: str, headers: Mapping[str, str]) -> Reply:
        """Ask once.

        Raises:
            Again: worth another attempt.
            Refused: not worth one; Unreachable when nobody answers.
        """
        started = self._clock()
        try:
            response = manager.urlopen(
                "GET",
                url,
                headers=headers,
                timeout=self._timeout,
                redirect=False,
                retries=False,
                preload_content=False,
            )
        except Refused:  # by the connection itself
            raise
        except ReadTimeoutError:
            raise Again(timed_out(url, self._timeout_s)) from None
        except SSLError as error:
            raise Refused(
                "bad_certificate", f"{url}: is not to be trusted ({error}); leave it out."
            ) from None
        except (ProxyError, ConnectTimeoutError, NewConnectionError) as error:
            raise Unreachable(url, f"no connection: {error}") from None
        except ProtocolError:
            if self._clock() - started > self.total_s:
                raise timed_out(url, self.total_s) from None
            raise Again(Refused("connection_lost", f"{url}: the connection broke off; try later.")) from None
        except (HTTPError, ValueError) as error:
            raise bad_url(url, str(error)) from None
        reply = Reply(url, response, started)
        if self._clock() - started > self.total_s:  # cut off in mid-head, which looks like its end
            reply.close()
            raise timed_out(url, self.total_s)
        if reply.status < 400:
            return reply
        self.spare(reply)
        refusal = bad_status(url, reply.status)
        if reply.status in RETRIED_STATUSES:
            raise Again(refusal, _retry_after_s(reply.headers.get("Retry-After")))
        raise refusal

    def spare(self, reply: Reply) -> None:
        """Read a short body that nobody needs, so that its connection can be used again."""
        said = reply.headers.get("Content-Length", "")
        try:
            if reply.status == 304 or (said.isdecimal() and float(said) <= _BLOCK):
                self.body(reply)
                return
        except (Refused, Again):
            pass
        reply.close()

    def body(self, reply: Reply) -> bytes:
        """The whole body, read in blocks as they come, so that no single read takes long.

        Raises:
            Again: it came cut short, or stopped coming.
            Refused: it is too large, unpacked as well, or takes too long in all.
        """
        try:
            return self._body(reply)
        except BaseException:
            reply.close()
            raise

    def _body(self, reply: Reply) -> bytes:
        url, said = reply.url, reply.headers.get("Content-Length", "")
        blocks: list[bytes] = []
        is_large = said.isdecimal() and float(said) > self._limit  # float: thousands of digits are no error
        size_bytes = self._limit + 1 if is_large else 0
        try:
            while size_bytes <= self._limit and (block := reply.response.read1(_BLOCK, decode_content=True)):
                size_bytes += len(block)
                if self._clock() - reply.started > self.total_s:
                    raise timed_out(url, self.total_s)
                blocks.append(block)
        except ReadTimeoutError:
            raise Again(timed_out(url, self._timeout_s)) from None
        except HTTPError:
            sentence = f"{url}: gave {size_bytes} bytes, expected {said or 'more'}; try later."
            raise Again(Refused("truncated", sentence)) from None
        if size_bytes > self._limit:
            sentence = f"{url}: is larger than {self._limit} bytes; leave it out or raise fetch.max_size_mb."
            raise Refused("too_large", sentence)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def parts_of(url: str) -> SplitResult:
    """The parts of an address of the web.

    Raises:
        Refused: it is none.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise bad_url(url, str(error)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused("bad_scheme", f"{url}: is no http or https address; leave it out.")
    return parts


def bad_url(url: str, why: str) -> Refused:
    """An address that cannot be asked for."""
    return Refused("bad_url", f"{url}: cannot be asked for ({why}); leave it out.")


def bad_status(url: str, status: int) -> Refused:
    """An answer that is no success."""
    return Refused(f"http_{status}", f"{url}: answered {status}; leave it out or try later.")


def timed_out(url: str, seconds: float) -> Refused:
    """An answer that did not come in time."""
    return Refused("timeout", f"{url}: took longer than {seconds:g} s; try later or raise fetch.timeout_s.")


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
