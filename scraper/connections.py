"""The connections that fetch.py makes itself: to public addresses only, for so long only.

A name is resolved once and the connection is made to what was checked, so that a name cannot change its mind
in between. Connections to a proxy are not made here: a proxy may be a machine of this network.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse
from urllib3.util.connection import create_connection

from scraper.addresses import is_public, resolve
from scraper.deadlines import Deadlines
from scraper.refused import Refused, Unreachable

_MOST_ADDRESSES: Final = 4
"""Of one name that are tried."""


def guarded_pools(allow_hosts: Collection[str], total_s: float) -> dict[str, type[HTTPConnectionPool]]:
    """The pools of a PoolManager that makes checked connections.

    Args:
        allow_hosts: names that may lead to addresses that are not public.
        total_s: seconds within which the head of an answer must have come.
    """
    allowed = _named(allow_hosts)
    deadlines = Deadlines()

    class Guarded(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, allowed)

        def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3 has it
            with deadlines.over(self.sock, total_s):
                return super().getresponse()

    class GuardedTls(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, allowed)

        def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3 has it
            with deadlines.over(self.sock, total_s):
                return super().getresponse()

    class Pool(HTTPConnectionPool):
        ConnectionCls = Guarded

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = GuardedTls

    return {"http": Pool, "https": TlsPool}


def refuse_private_spelling(url: str, allow_hosts: Collection[str]) -> None:
    """Check an address that a proxy will connect to, as far as that can be done without resolving its name.

    Raises:
        Refused: "private_address".
    """
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(OSError, UnicodeError):
        _refuse_private(url, host, resolve(host, 80, asks=False), _named(allow_hosts))


def _named(allow_hosts: Collection[str]) -> frozenset[str]:
    return frozenset(host.lower().strip("[]") for host in allow_hosts)


def _refuse_private(shown: str, host: str, found: Iterable[str], allowed: Collection[str]) -> None:
    private = [] if host.lower() in allowed else [address for address in found if not is_public(address)]
    if private:
        raise Refused(
            "private_address",
            f"{shown}: leads to the private address {private[0]}, expected a public one; "
            "leave it out or add its host to fetch.allow_hosts.",
        )


def _connected(connection: HTTPConnection, allowed: Collection[str]) -> socket.socket:
    """A socket to the first address of the connection's host that answers, once all of them were checked."""
    host, port = connection.host.strip("[]"), connection.port
    shown = f"[{host}]" if ":" in host else host
    url = f"//{shown}" if port == connection.default_port else f"//{shown}:{port}"
    try:
        found = resolve(host, port)[:_MOST_ADDRESSES]
    except (OSError, UnicodeError) as error:
        raise Unreachable(url, getattr(error, "strerror", None) or str(error)) from None
    _refuse_private(url[2:], host, found, allowed)
    why = "no address"
    for address in found:
        try:
            return create_connection(
                (address, port),
                connection.timeout,
                source_address=connection.source_address,
                socket_options=connection.socket_options,
            )
        except TimeoutError:
            why = f"no connection in {connection.timeout:g} s"
        except OSError as error:
            why = (error.strerror or str(error)).lower()
    raise Unreachable(url, why)
