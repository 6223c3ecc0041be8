"""The league's web site on loopback, with the markup of the real one and its mishaps; draws logos on demand.

Serves nothing but what it draws, to this machine only. `python -m demo.site` shows it in a browser.
"""

from __future__ import annotations

import hashlib
import html
import io
import multiprocessing
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol

UPLOADS: Final = "/wp-content/uploads/2018/04/"
THUMB_PX: Final = 150
PLACEHOLDER: Final = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
ROBOTS: Final = "User-agent: *\nDisallow: /wp-admin/\nDisallow: /private/\n"
_SCRIPT: Final = (
    "document.querySelectorAll('img').forEach(i=>{const s=i.dataset.src||i.dataset.lazySrc;if(s)i.src=s;"
    "if(i.dataset.srcset)i.srcset=i.dataset.srcset})"
)
_STYLE: Final = (
    "body{font:15px sans-serif;margin:2em auto;max-width:70em;padding:0 1em}"
    ".x-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(14em,1fr));gap:1.5em}"
    ".x-cell{border:1px solid #ddd;border-radius:6px;padding:1em}img{max-width:100%}h3{font-size:1em}"
)


class SiteLogo(Protocol):
    """What the site needs to know of a logo (demo.league.Logo)."""

    @property
    def file_name(self) -> str: ...  # noqa: D102
    @property
    def years(self) -> str: ...  # noqa: D102
    @property
    def caption(self) -> str: ...  # noqa: D102
    @property
    def card_text(self) -> str | None: ...  # noqa: D102
    @property
    def is_broken(self) -> bool: ...  # noqa: D102
    def draw(self, side_px: int = ...) -> Any: ...  # noqa: D102


class SiteClub(Protocol):
    """What the site needs to know of a club (demo.league.Club)."""

    @property
    def club_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def logos(self) -> Sequence[SiteLogo]: ...  # noqa: D102


class SiteLeague(Protocol):
    """What the site needs to know of a league (demo.league.League)."""

    @property
    def league_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def clubs(self) -> Sequence[SiteClub]: ...  # noqa: D102


@dataclass(frozen=True)
class Reply:
    """What goes over the wire."""

    content: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    retry_after_s: int | None = None
    is_truncated: bool = False
    """promise the whole length, send half"""


@dataclass(frozen=True)
class Mishaps:
    """Which picture goes wrong, and how."""

    missing: str
    busy: str
    truncated: str
    not_a_picture: str


class LeagueSite:
    """Serves a world of leagues; use it in a `with`, or start() and stop()."""

    def __init__(self, world: Sequence[SiteLeague], port: int = 0, *, draw_ahead: bool = False) -> None:
        """Prepare to serve.

        Args:
            world: the leagues.
            port: port on 127.0.0.1; 0 takes a free one.
            draw_ahead: let a second process draw too, while this one answers (and perhaps reads).
        """
        self._draws_ahead = draw_ahead
        self._ahead: threading.Thread | None = None
        self._stopping = threading.Event()
        self._leagues = {league.league_id: league for league in world}
        self._clubs = {club.club_id: club for league in world for club in league.clubs}
        logos = [logo for club in self._clubs.values() for logo in club.logos]
        self._logos = {logo.file_name: logo for logo in logos}
        self._drawn: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._busy_seen = False
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.site = self
        self._thread: threading.Thread | None = None
        self.requests: Counter[str] = Counter()
        """how often each path was asked for"""
        self.sent: Counter[str] = Counter()
        """how often each path was answered with a body, not with 304"""
        whole = [logo.file_name for logo in logos if not logo.is_broken]
        picked = [whole[(index * len(whole)) // 4] for index in range(4)] if len(whole) >= 4 else [""] * 4
        self.mishaps = Mishaps(*picked)

    @property
    def url(self) -> str:
        """Root address, with its closing slash."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def start(self) -> LeagueSite:
        """Serve from threads of this process until stop()."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        if self._draws_ahead:
            self._ahead = threading.Thread(target=self._draw_ahead, daemon=True)
            self._ahead.start()
        return self

    def _draw_ahead(self) -> None:
        """Keep a second process drawing from the last page on, to meet the reader in the middle."""
        with ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,  # Ctrl+C reaches every process of a terminal; stop() ends this one
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool:
            drawing: deque[tuple[str, Future[bytes]]] = deque()
            for name, logo in reversed(self._logos.items()):
                if self._stopping.is_set():
                    break
                if name not in self._drawn and not logo.is_broken:
                    drawing.append((name, pool.submit(_drawn_png, logo)))
                if len(drawing) > 4:
                    first, png = drawing.popleft()
                    self._drawn[first] = png.result()
            for first, png in drawing:
                self._drawn[first] = png.result()

    def stop(self) -> None:
        """Close the port."""
        self._stopping.set()
        if self._ahead is not None:
            self._ahead.join()
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> LeagueSite:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reply(self, path: str) -> Reply:
        """What the site answers to a path."""
        parts = [part for part in path.partition("?")[0].split("/") if part]
        if path.startswith(UPLOADS):
            return self._picture(parts[-1])
        if not parts:
            return Reply(self._index().encode())
        if parts == ["robots.txt"]:
            return Reply(ROBOTS.encode(), "text/plain")
        name = parts[0]
        league = self._leagues.get(name.removesuffix("-primary-logo"))
        if league is not None and name.endswith("-primary-logo"):
            return Reply(self._league_page(league).encode())
        club = self._clubs.get(name.removesuffix("-logos"))
        if club is not None and name.endswith("-logos") and len(parts) == 1:
            return Reply(_team_page(club).encode())
        return Reply(b"<h1>Not found</h1>", status=HTTPStatus.NOT_FOUND)

    def _picture(self, name: str) -> Reply:
        full = name.replace(f"-{THUMB_PX}x{THUMB_PX}", "")
        logo = self._logos.get(full)
        if logo is None or full == self.mishaps.missing:
            return Reply(b"<h1>Not found</h1>", status=HTTPStatus.NOT_FOUND)
        if full == self.mishaps.not_a_picture:
            return Reply(b"<!DOCTYPE html><html><body>Please log in.</body></html>", "image/png")
        if full == self.mishaps.busy:
            with self._lock:
                is_first, self._busy_seen = not self._busy_seen, True
            if is_first:
                return Reply(b"slow down", status=HTTPStatus.TOO_MANY_REQUESTS, retry_after_s=1)
        if name not in self._drawn:
            self._drawn[name] = _png(logo.draw() if name == full else logo.draw(THUMB_PX))
        return Reply(self._drawn[name], "image/png", is_truncated=full == self.mishaps.truncated)

    def _index(self) -> str:
        links = "".join(
            f'<li><a href="/{league.league_id}-primary-logo/">{html.escape(league.name)}</a></li>'
            for league in self._leagues.values()
        )
        return _page("League Logo History", f"<ul>{links}</ul><p><a href='/private/'>Members</a></p>")

    def _league_page(self, league: SiteLeague) -> str:
        cells = "".join(
            _card(club, logo, number)
            for number, (club, logo) in enumerate(
                (club, logo) for club in league.clubs for logo in club.logos
            )
        )
        return _page(f"{league.name} Primary Logos", f'<div class="x-grid e12-3">{cells}</div>')


def _page(title: str, body: str) -> str:
    name = html.escape(title)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head><body><header><a href='/'>Home</a><h1>{name}</h1></header>"
        f"<main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _card(club: SiteClub, logo: SiteLogo, number: int) -> str:
    picture = "" if logo.is_broken else _picture_markup(logo.file_name, club.name, number)
    text = f'<p class="x-text">{html.escape(logo.card_text)}</p>' if logo.card_text else ""
    return (
        f'<div class="x-cell e12-{number} m1-5"><div class="x-div">{picture}'
        f'<h3 class="x-text-headline">{html.escape(club.name)}</h3>{text}'
        f'<p><a href="/{club.club_id}-logos/">See Team Logos</a></p></div></div>\n'
    )


def _picture_markup(file_name: str, name: str, number: int) -> str:
    """An `img` in one of the spellings that themes give to lazy loading; every fifth has a thumbnail only."""
    full, alt = UPLOADS + file_name, html.escape(name, quote=True)
    thumb = full.removesuffix(".png") + f"-{THUMB_PX}x{THUMB_PX}.png"
    start = f'<img class="lazyload" alt="{alt}" src="{PLACEHOLDER}"'
    match number % 5:
        case 0:
            return f'{start} data-src="{thumb}">'
        case 1:
            return f'{start} data-lazy-src="{full}"><noscript><img src="{full}" alt="{alt}"></noscript>'
        case 2:
            return f'{start} data-src="{full}" data-srcset="{full} 320w, {thumb} 150w">'
        case 3:
            return f'<picture><source srcset="{full} 320w, {thumb} 150w" type="image/png">{start}></picture>'
        case _:
            return f'{start} data-src="{full}">'


def _team_page(club: SiteClub) -> str:
    """All logos of a club with their whole texts; one without text on its card has none here either."""
    cells = []
    for logo in club.logos:
        picture = "" if logo.is_broken else _picture_markup(logo.file_name, club.name, 4)
        text = f"<p>{html.escape(logo.caption)}</p>" if logo.card_text else ""
        cells.append(
            f'<section class="x-section"><div class="x-cell">{picture}'
            f"<h4>{html.escape(logo.years)}</h4>{text}</div></section>\n"
        )
    return _page(f"{club.name} Logo History", "".join(cells))


def _drawn_png(logo: SiteLogo) -> bytes:
    return _png(logo.draw())


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    site: LeagueSite

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body leave in one packet: two small ones would wait for each other 40 ms
    disable_nagle_algorithm = True
    timeout = 30

    def do_GET(self) -> None:
        site = self.server.site  # type: ignore[attr-defined]
        site.requests[self.path] += 1
        reply: Reply = site.reply(self.path)
        tag = f'"{hashlib.sha256(reply.content).hexdigest()[:16]}"'
        is_known = reply.status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if is_known else reply.status)
        if reply.status == HTTPStatus.OK:
            self.send_header("ETag", tag)
        if reply.retry_after_s is not None:
            self.send_header("Retry-After", str(reply.retry_after_s))
        if is_known:
            self.end_headers()
            return
        site.sent[self.path] += 1
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content[: len(reply.content) // 2] if reply.is_truncated else reply.content)
        self.close_connection = self.close_connection or reply.is_truncated

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives
        """The crawl has its own progress."""


def pages(world: Sequence[SiteLeague]) -> Iterator[str]:
    """Every page address of the site, for whoever wants to look at all of them."""
    yield "/"
    for league in world:
        yield f"/{league.league_id}-primary-logo/"
        for club in league.clubs:
            yield f"/{club.club_id}-logos/"


def main() -> int:
    """Serve the demo's world until interrupted."""
    from demo.league import LEAGUES, league

    with LeagueSite([league(0, index) for index in range(LEAGUES)], port=8417) as site:
        print(f"{site.url} (Ctrl+C ends it)")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
