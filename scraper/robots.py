"""robots.txt by RFC 9309: the longest rule wins, `*` and `$` are wildcards; crawl-delay is read too.

Refuses to guess: an unreadable line is skipped, and a file without a group for us allows everything.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

MAX_SIZE_BYTES: Final = 500 * 1024
"""RFC 9309, 2.5."""


@dataclass(frozen=True)
class Robots:
    """What one host asks of one user agent."""

    rules: tuple[tuple[str, bool], ...] = ()
    """(path pattern, is allowed)"""
    delay_s: float = 0.0

    def allows(self, url: str) -> bool:
        """Whether the address may be fetched: the longest matching pattern decides, allow wins a tie."""
        if not self.rules:
            return True
        parts = urlsplit(url)
        path = unquote(parts.path or "/")
        if "/." in path:  # as the server will read it
            path = f"/{posixpath.normpath(path).lstrip('/')}" + "/" * path.endswith("/")
        path += f"?{unquote(parts.query)}" if parts.query else ""
        best, is_allowed = -1, True
        for pattern, allowed in self.rules:
            longer = len(pattern) > best or (len(pattern) == best and allowed)
            if longer and _matches(pattern, path):
                best, is_allowed = len(pattern), allowed
        return is_allowed


def _matches(pattern: str, path: str) -> bool:
    """Whether the path begins as the pattern says; each part is sought once, so no pattern takes long."""
    is_anchored = pattern.endswith("$")
    first, *rest = (unquote(part) for part in pattern.removesuffix("$").split("*"))
    if not path.startswith(first):
        return False
    at, last = len(first), rest.pop() if rest else None
    for part in rest:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    if last is None:
        return at == len(path) or not is_anchored
    return path.endswith(last, at) if is_anchored else path.find(last, at) >= 0


def product_token(user_agent: str) -> str:
    """The name by which robots.txt and opt-outs call a user agent, in lower case (RFC 9309, 2.2.1)."""
    return user_agent.split("/")[0].strip().lower()


def parse_robots(content: bytes | str, user_agent: str) -> Robots:
    """Read the rules that apply to us.

    Args:
        content: the file; what lies beyond its first 500 KiB does not count.
        user_agent: ours; a group that names it wins over `*`.
    """
    text = content[:MAX_SIZE_BYTES]
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    ours = product_token(user_agent)
    groups: dict[str, list[tuple[str, str]]] = {}
    names: list[str] = []
    in_rules = False
    for line in text.lstrip("\ufeff").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            names = [] if in_rules else names
            in_rules = False
            names.append(product_token(value))
            groups.setdefault(names[-1], [])
        elif key in ("allow", "disallow", "crawl-delay"):
            in_rules = True
            for name in names:
                groups[name].append((key, value))
    rules: list[tuple[str, bool]] = []
    delay_s = 0.0
    for key, value in groups.get(ours, groups.get("*", [])):
        if key == "crawl-delay":
            if re.fullmatch(r"\d+(\.\d+)?", value):
                delay_s = float(value)
        elif value:  # an empty disallow allows everything
            rules.append((value, key == "allow"))
    return Robots(tuple(rules), delay_s)
