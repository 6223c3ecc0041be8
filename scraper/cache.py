"""Answers by address on disk, so that a second run asks only whether something changed.

Refuses to keep half an answer: the body is renamed into place before the line that makes it count. File names
are hashes: no name from outside becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class CachedAnswer:
    """One answer as it came over the wire, decoded of its transfer encoding."""

    url: str
    final_url: str
    headers: Mapping[str, str]
    """those that matter, lower-case name -> value"""
    fetched_at: float
    """when the body came, Unix time in seconds"""
    checked_at: float
    """when it was last found to be what the server has"""
    size_bytes: int


class Cache:
    """A folder with one body and one JSON of headers for each address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def body_path(self, url: str) -> Path:
        """Where the body of this address lies, if it is there."""
        name = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:32]
        return self._folder / name[:2] / name

    def find(self, url: str) -> CachedAnswer | None:
        """The headers of the kept answer, or None; a damaged entry counts as none."""
        body = self.body_path(url)
        try:
            found = CachedAnswer(**json.loads(body.with_suffix(".json").read_text(encoding="utf-8")))
            is_whole = found.url == url and body.stat().st_size == found.size_bytes
        except (OSError, ValueError, TypeError):
            return None
        return found if is_whole else None

    def read(self, url: str) -> bytes:
        """The kept body."""
        return self.body_path(url).read_bytes()

    def write(self, answer: CachedAnswer, content: bytes) -> None:
        """Keep an answer, body first."""
        body = self.body_path(answer.url)
        try:
            _replace(body, content)
        except FileNotFoundError:  # the first of its folder
            body.parent.mkdir(parents=True, exist_ok=True)
            _replace(body, content)
        _replace(body.with_suffix(".json"), _line(answer))

    def touch(self, answer: CachedAnswer, headers: Mapping[str, str]) -> CachedAnswer:
        """Note that the kept answer was found unchanged just now, under these headers."""
        now = replace(answer, headers={**answer.headers, **headers}, checked_at=time.time())
        _replace(self.body_path(answer.url).with_suffix(".json"), _line(now))
        return now


def _line(answer: CachedAnswer) -> bytes:
    return json.dumps(asdict(answer)).encode()


def _replace(path: Path, content: bytes) -> None:
    """Write whole or not at all; no flush to disk: a lost entry is only fetched again."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
