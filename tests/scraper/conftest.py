"""Drawn pictures and a scripted web server on loopback."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scraper.cache import Cache
from scraper.config import FetchConfig, ScraperConfig
from scraper.fetch import Fetcher
from tests.loopback import Loopback, Quiet


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def drawn(seed: int, side_px: int = 96, *, has_alpha: bool = False) -> Image.Image:
    """A badge of a few shapes, different for every seed."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (side_px, side_px), (0, 0, 0, 0) if has_alpha else (255, 255, 255, 255))
    pen = ImageDraw.Draw(picture)
    part = side_px / 96
    edges = (8 * part, 8 * part, 88 * part, 88 * part)
    pen.rectangle(edges, fill=(*rng.integers(0, 200, 3).tolist(), 255))
    for _ in range(4):
        left, top, wide, high = (
            float(value) * part for value in rng.integers((10, 10, 10, 10), (56, 56, 30, 30))
        )
        colour = (*rng.integers(0, 256, 3).tolist(), 255)
        pen.ellipse((left, top, left + wide, top + high), fill=colour)
    return picture if has_alpha else picture.convert("RGB")


@dataclass
class Said:
    """One scripted answer."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    more: tuple[tuple[str, str], ...] = ()
    """headers of a name that is there already"""
    cut_to: int | None = None
    wait_s: float = 0.0


class Server(Loopback):
    """Answers each path from its script; the last answer of a script repeats, unknown paths are 404."""

    def __init__(self) -> None:
        self.script: dict[str, list[Said]] = {}
        self.requests: Counter[str] = Counter()
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.unchanged_headers: dict[str, str] = {}
        """what answers 304 say besides"""
        self.callers: set[Any] = set()
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            wbufsize = 1 << 16

            def do_GET(self) -> None:
                with outer._lock:
                    outer.callers.add(self.client_address)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    self._answer()
                finally:
                    with outer._lock:
                        outer.at_once -= 1

            def _answer(self) -> None:
                said = outer._next(self.path, dict(self.headers))
                if said.wait_s:
                    threading.Event().wait(said.wait_s)
                self.send_response(said.status)
                for name, value in (*said.headers.items(), *said.more):
                    self.send_header(name, value)
                if said.status != 304:
                    self.send_header("Content-Length", str(len(said.content)))
                self.end_headers()
                if said.status != 304:
                    self.wfile.write(said.content[: said.cut_to])
                self.close_connection = said.cut_to is not None

        class Forgiving(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that hangs up is no news."""

        super().__init__(Handler, Forgiving)

    def _next(self, path: str, headers: dict[str, str]) -> Said:
        with self._lock:
            self.requests[path] += 1
            self.headers.append((path, headers))
            said = self.script.get(path)
            if not said:
                return Said(b"not found", 404)
            answer = said.pop(0) if len(said) > 1 else said[0]
        tag = answer.headers.get("ETag")
        if tag and headers.get("If-None-Match") == tag:
            return Said(status=304, headers={"ETag": tag, **self.unchanged_headers})
        return answer

    def say(self, path: str, content: bytes | str, *, status: int = 200, **rest: Any) -> None:
        """Add an answer to the script of a path."""
        body = content.encode() if isinstance(content, str) else content
        kind = "text/html" if isinstance(content, str) else "image/png"
        headers = {"Content-Type": kind, **rest.pop("headers", {})}
        self.script.setdefault(path, []).append(Said(body, status, headers, **rest))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def fetcher(tmp_path: Path) -> Callable[..., Fetcher]:
    """Makes a fetcher without delay that may ask loopback; sleeps are noted, not slept."""

    def make(slept: list[float] | None = None, **settings: Any) -> Fetcher:
        chosen = {
            "delay_s": 0,
            "allow_hosts": ["127.0.0.1", "localhost"],
            "backoff_s": 0.01,
            "timeout_s": 5,
            **settings,
        }
        sleep = {} if slept is None else {"sleep": slept.append}
        return Fetcher(FetchConfig(**chosen), Cache(tmp_path / "cache"), **sleep)

    return make


def card(name: str, title: str, text: str = "", link: str = "") -> str:
    """The markup of one card; no picture when there is no name."""
    image = f'<img src="data:," data-src="/up/{name}">' if name else ""
    words = f"<p>{text}</p>" if text else ""
    team = f'<a href="{link}">See Team Logos</a>' if link else ""
    return f'<div class="x-cell">{image}<h3>{title}</h3>{words}{team}</div>'


@dataclass
class Shelf:
    """A data folder and a config for it."""

    dir: Path
    url: str

    def config(self, **sections: dict[str, Any]) -> ScraperConfig:
        fetch = {
            "delay_s": 0,
            "allow_hosts": ["127.0.0.1", "localhost"],
            "backoff_s": 0.01,
            "timeout_s": 5,
            "retries": 1,
        }
        source = {"site": "sportslogohistory", "url": self.url, "targets": ["league-primary-logo/"]}
        values: dict[str, Any] = {
            "data": {"dir": str(self.dir)},
            "source": {**source, **sections.pop("source", {})},
            "fetch": {**fetch, **sections.pop("fetch", {})},
            **sections,
        }
        return ScraperConfig.model_validate(values)


@pytest.fixture
def shelf(server: Server, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "data", server.url)


@pytest.fixture
def as_card() -> Callable[..., str]:
    return card


@pytest.fixture
def draw() -> Callable[..., Image.Image]:
    return drawn


@pytest.fixture
def as_png() -> Callable[[Image.Image], bytes]:
    return png


@pytest.fixture
def as_records() -> Callable[..., None]:
    """Call with a folder and records: records.jsonl and its manifest, as if they had been scraped."""
    from crest.records import Manifest, Record, hash_of, write_manifest, write_records

    def write(folder: Path, records: list[Record]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / "records.jsonl", records)
        names = hash_of([(one.id, one.caption, one.further_captions) for one in records])
        write_manifest(folder, Manifest("records", names, {"kept": len(records)}))

    return write


@pytest.fixture
def league(server, as_card, draw, as_png):
    """A league page with so many logos; returns how to make it."""

    def make(count, **rest):
        cells = []
        for number in range(count):
            server.say(f"/up/club{number}_1990-1999.png", as_png(draw(number)), **rest)
            cells.append(
                as_card(f"club{number}_1990-1999.png", f"Club {number}", f"A badge of number {number}.")
            )
        server.say("/league-primary-logo/", "".join(cells))

    return make
