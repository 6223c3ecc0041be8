"""Where the picture of a card really lies: behind lazy loading, renditions, and services that resize.

Reads every spelling that themes and their plugins give to it; refuses placeholders and icons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from scraper.sites.logo_names import read_file_name

if TYPE_CHECKING:
    from bs4 import Tag

RENDITION: Final = re.compile(r"-(\d{1,5})x(\d{1,5})(?:@\dx)?(?=\.\w+$)")
_LIKELY: Final = re.compile(
    r"src|lazy|orig|file|full|large|image|img|bg|background|poster|href|hi-?res", re.I
)
"""Attributes that may hold an address; `srcset` and its kin hold several."""
_ENDING: Final = r"\.(?:png|jpe?g|gif|webp|avif|svgz?|bmp)"
_IMAGE_FILE: Final = re.compile(rf"{_ENDING}$", re.I)
_BACKGROUND: Final = re.compile(r"bg|background", re.I)
_CSS_URL: Final = re.compile(r"url\(\s*['\"]?([^'\")]{1,2000})['\"]?\s*\)", re.I)
_PLACEHOLDER: Final = re.compile(
    r"placeholder|spacer|blank|lazy|loading|loader|pixel|1x1|gr[ea]y\.gif|transparent|default[-_]image|no[-_]image",
    re.I,
)
_ICON_HOSTS: Final = re.compile(r"(?:^|\.)(?:s\.w\.org|gravatar\.com)$", re.I)
_PHOTON: Final = re.compile(r"^i\d\.wp\.com$", re.I)
_CLOUDFLARE: Final = re.compile(r"/cdn-cgi/image/[^/]+/(?!https?:)", re.I)
_EMBEDDED: Final = re.compile(r"/(https?):/{1,2}(.+)$", re.I)
_SIZE_NAME: Final = re.compile(
    r"(?:w|h|width|height|size|s|resize|fit|crop|zoom|dpr|quality|q|strip|lossy|ssl|format|fm|auto|webp)$",
    re.I,
)
"""What a query says to a service that resizes or converts."""
_SERVICE_NAMES: Final = ("ssl", "url", "src", "image")
_SUFFIXES: Final = re.compile(rf"(?:-scaled|-rotated|-e\d{{9,}}|@\dx|{_ENDING})+$", re.I)


@dataclass
class _Seen:
    """One address of a picture."""

    area: int
    """pixels that it is said to have; 0 when unknown"""
    is_full: bool


def image_addresses(cell: Tag, page_url: str) -> tuple[str, ...]:
    """Addresses of the one picture of a card: full sizes first, then renditions from large to small."""
    files: dict[str, dict[str, _Seen]] = {}
    for address, area in _mentioned(cell):
        url = absolute(page_url, address)
        if url is None or _is_decoration(url):
            continue
        seen = files.setdefault(source_file(url, page_url), {})
        for full in _full_sizes(url):
            seen.setdefault(full, _Seen(0, is_full=True))
        known = seen.setdefault(url, _Seen(area, is_full=False))
        known.area = max(known.area, area or _area(url))
    named = (seen for seen in files.values() if any(read_file_name(url) for url in seen))
    chosen = next(named, None) or next(iter(files.values()), {})
    whole = [url for url, one in chosen.items() if one.is_full]
    rest = sorted((url for url, one in chosen.items() if not one.is_full), key=lambda url: -chosen[url].area)
    return (*whole, *rest)


def files_in(tag: Tag, page_url: str) -> set[str]:
    """What the pictures of a part of a page are renditions of, each once."""
    urls = (absolute(page_url, address) for address, _ in _mentioned_by(tag))
    return {source_file(url, page_url) for url in urls if url is not None and not _is_decoration(url)}


def source_file(url: str, page_url: str = "") -> str:
    """What all renditions of one file share: its place without size, suffix and query.

    The host is left out where it is that of the page.
    """
    origin = _origin(url) or url
    path = _SUFFIXES.sub("", RENDITION.sub("", unquote(urlsplit(origin).path))).lower().lstrip("/")
    host = _host(origin)
    return path if host == _host(page_url) else f"{host}/{path}"


def is_image_file(address: str) -> bool:
    """Whether the path of an address ends as a picture's file does, whatever its query says."""
    path = address.strip().partition("?")[0].partition("#")[0]
    return len(address) < 4000 and bool(_IMAGE_FILE.search(path))


def absolute(page_url: str, address: str) -> str | None:
    """An address of a page as one of the web; None when it is none (data:, javascript:, malformed)."""
    try:
        url = urljoin(page_url, address.strip())
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return url.partition("#")[0] if is_web else None


def _host(url: str) -> str:
    return (urlsplit(url).netloc.rpartition("@")[2]).lower().removeprefix("www.")


def _mentioned(cell: Tag) -> Iterator[tuple[str, int]]:
    for tag in (cell, *cell.find_all(True)):
        yield from _mentioned_by(tag)


def _mentioned_by(tag: Tag) -> Iterator[tuple[str, int]]:
    """Addresses in the attributes of one element, with the area that is said of them."""
    lazy_first = sorted(tag.attrs, key=lambda name: name in ("src", "href", "srcset"))
    for name in lazy_first:
        value: object = tag.attrs[name]
        text = " ".join(value) if isinstance(value, list) else str(value or "")
        if "srcset" in name:
            yield from _candidates(text)
            continue
        if name == "style" or _BACKGROUND.search(name):
            yield from ((found, 0) for found in _CSS_URL.findall(text))
        is_source = tag.name in ("img", "amp-img") and (name == "src" or name.endswith("-src"))
        if is_source or (_LIKELY.search(name) and is_image_file(text)):
            yield text, 0


def _candidates(text: str) -> Iterator[tuple[str, int]]:
    """The candidates of a srcset; a comma ends one only behind a space or a descriptor."""
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] == ",":
            at += 1
            continue
        end = at
        while end < len(text) and not text[end].isspace():
            end += 1
        address, at = text[at:end], end
        width = 0
        if not address.endswith(","):
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            said = re.search(r"(\d+)w|([\d.]+)x", text[at:end])
            if said:
                width = int(said[1] or 0) or int(100 * float(said[2].strip(".") or 0))
            at = end
        yield address.rstrip(","), width * width


def _is_decoration(url: str) -> bool:
    parts = urlsplit(_origin(url) or url)
    name = unquote(parts.path).rsplit("/", 1)[-1]
    if not name or _ICON_HOSTS.search(parts.hostname or ""):
        return True
    return bool(_PLACEHOLDER.search(name)) and read_file_name(url) is None


def _origin(url: str) -> str | None:
    """The address that a resizing service stands before, or None when there is none, or a malformed one."""
    said = _said_origin(url)
    return None if said is None else absolute(url, said)


def _said_origin(url: str) -> str | None:
    parts = urlsplit(url)
    if _PHOTON.match(parts.hostname or ""):
        scheme = "https" if dict(parse_qsl(parts.query)).get("ssl") == "1" else "http"
        return f"{scheme}:/{parts.path}"
    if (parts.hostname or "").lower() == "cdn.statically.io" and parts.path.startswith("/img/"):
        return f"https://{parts.path.removeprefix('/img/')}"
    if _CLOUDFLARE.match(parts.path):
        return "/" + _CLOUDFLARE.sub("", parts.path)
    embedded = _EMBEDDED.search(parts.path)
    if embedded:
        return f"{embedded[1].lower()}://{embedded[2]}"
    for name, value in parse_qsl(parts.query):
        if name in _SERVICE_NAMES[1:] and is_image_file(value):
            return value
    return None


def _full_sizes(url: str) -> Iterator[str]:
    """What is likely to be the whole picture, best first: without a service, rendition and size."""
    origin = _origin(url)
    if origin is not None:
        yield _whole(origin)
        yield _whole(url, of_service=True)
    else:
        yield _whole(url)


def _whole(url: str, *, of_service: bool = False) -> str:
    """The address without rendition and size; of a service's query only what names the picture stays."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept = [
        (name, value)
        for name, value in query
        if (name in _SERVICE_NAMES if of_service else not _SIZE_NAME.match(name))
    ]
    changed = urlencode(kept) if len(kept) != len(query) else parts.query
    return urlunsplit((parts.scheme, parts.netloc, RENDITION.sub("", parts.path), changed, ""))


def _area(url: str) -> int:
    """Pixels of a rendition, from its name or its query."""
    parts = urlsplit(url)
    size = RENDITION.search(parts.path)
    if size:
        return int(size[1]) * int(size[2])
    numbers = re.findall(r"\d+", " ".join(v for n, v in parse_qsl(parts.query) if _SIZE_NAME.match(n)))
    return int(numbers[0]) ** 2 if numbers and len(numbers[0]) < 6 else 0
