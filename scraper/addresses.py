"""Which network addresses are public; names are resolved here and nowhere else.

An IPv6 address that stands for an IPv4 one (mapped, compatible, NAT64, 6to4) is judged by the one behind it.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

_COVERS: Final = tuple(
    (IPv6Network(network), shift)
    for network, shift in (
        ("::/96", 0),  # compatible, as good as unused
        ("::ffff:0:0/96", 0),  # mapped
        ("::ffff:0:0:0/96", 0),  # translated
        ("64:ff9b::/96", 0),  # NAT64
        ("2002::/16", 80),  # 6to4
    )
)
"""(network, bits to the right of the IPv4 address in it)"""
_MORE_PRIVATE: Final = tuple(
    ip_network(network)
    for network in ("64:ff9b:1::/48", "100::/64", "2001::/32", "fec0::/10", "3fff::/20", "5f00::/16")
)
"""Not public either, whatever this version of Python thinks."""


def is_public(text: str) -> bool:
    """Whether an address, as the resolver spells it, may belong to a host of the open internet."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        return _is_public(_behind(address) or address)
    return _is_public(address)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address.version == network.version and address in network for network in _MORE_PRIVATE)


def _behind(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    for network, shift in _COVERS:
        if address in network:
            return IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return None


def resolve(host: str, port: int, *, asks: bool = True) -> list[str]:
    """The addresses of a name, in the resolver's order; 0x7f.1 and 2130706433 are spellings of 127.0.0.1.

    Args:
        host: name or address.
        port: of the connection that is to be made.
        asks: ask for names; otherwise a name is no such name.
    Raises:
        OSError: there is no such name.
        UnicodeError: it cannot be a name.
    """
    flags = 0 if asks else socket.AI_NUMERICHOST
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
