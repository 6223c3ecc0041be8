"""What kind of page came: one to read, none, a login, a wall; and where it is kept to be looked at.

Reads bytes and words, not markup: the markup is the site's own affair (scraper/sites/).
"""

from __future__ import annotations

import codecs
import hashlib
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from crest.records import write_bytes
from scraper.fetch import Answer
from scraper.refused import Refused

MAX_SIZE_BYTES: Final = 5_000_000
_LOOKED_AT: Final = 200_000
SHORT: Final = 1500
"""Letters; a login page or a wall says no more."""
LOGIN_PATH: Final = re.compile(r"/(?:wp-login\.php|log-?in|sign-?in|auth)(?:/|$)", re.I)
_PASSWORD: Final = re.compile(r"<input\b[^<>]{0,500}\btype\s*=\s*[\"']?password", re.I)
_WALL: Final = re.compile(
    r"(?:enable|requires?|turn on|activate)\W+(?:\w+\W+){0,3}(?:javascript|cookies)|checking your browser|"
    r"just a moment|verify (?:that )?you are (?:a )?human|captcha|"
    r"(?:accept|consent)\W+(?:\w+\W+){0,4}cookies|before you continue|access denied",
    re.I,
)
_UNSEEN: Final = (("<!--", "-->"), ("<script", "</script"), ("<style", "</style"), ("<", ">"))
_CHARSET: Final = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.I)
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def page_text(answer: Answer) -> str:
    """The markup of a page, in the encoding that its bytes, header or meta element name.

    Raises:
        Refused: "not_html" or "too_large".
    """
    if len(answer.content) > MAX_SIZE_BYTES:
        raise Refused("too_large", f"{answer.url}: is a page of {len(answer.content)} bytes; leave it out.")
    start = answer.content[: 1 << 12]
    mark = next(((mark, encoding) for mark, encoding in _MARKS if start.startswith(mark)), None)
    if mark is not None:
        return answer.content[len(mark[0]) :].decode(mark[1], errors="replace")
    if b"\0" in start or b"<" not in answer.content:
        shown = start[:24].decode("latin-1").strip()
        raise Refused("not_html", f"{answer.url}: begins with {shown!r}, expected a page; leave it out.")
    named = _CHARSET.search(answer.content_type.encode()) or _CHARSET.search(start)
    encoding = named[1].decode() if named else "utf-8"
    try:
        return answer.content.decode(encoding, errors="replace")
    except (LookupError, ValueError):  # no such encoding, or one that is none of text
        return answer.content.decode("utf-8", errors="replace")


def refusal_of_empty(answer: Answer, html: str, expected: str) -> Refused:
    """Why a page held nothing of what the site's reader looks for.

    Args:
        answer: where the page was found in the end.
        html: its markup.
        expected: what the reader looks for.
    """
    words = visible_words(html[:_LOOKED_AT])
    is_short = len(words) < SHORT
    if is_login(answer) or (is_short and _PASSWORD.search(html[:_LOOKED_AT])):
        return Refused("login_page", f"{answer.url}: asks to log in, expected {expected}; leave it out.")
    if is_short and _WALL.search(words):
        return Refused(
            "wall_page",
            f"{answer.url}: shows nothing without JavaScript or consent ({words[:60]!r}), "
            f"expected {expected}; Crest runs no scripts: leave it out.",
        )
    return Refused(
        "nothing_found", f"{answer.url}: holds no {expected}; look whether the site changed, then try again."
    )


def visible_words(html: str) -> str:
    """What a page shows, roughly: no comments, scripts, styles and tags, one space between words."""
    for opening, closing in _UNSEEN:
        kept, at = [], 0
        lower = html.lower()
        while (start := lower.find(opening, at)) >= 0:
            kept.append(html[at:start])
            end = lower.find(closing, start + len(opening))
            at = len(html) if end < 0 else end + len(closing)
        html = " ".join((*kept, html[at:]))
    return " ".join(html.split())


def is_login(answer: Answer) -> bool:
    """Whether the server led us to the place where one logs in."""
    return answer.final_url != answer.url and bool(LOGIN_PATH.search(urlsplit(answer.final_url).path))


def keep_for_inspection(content: bytes, url: str, data_dir: Path) -> Path:
    """Write a page where a person can look at it; its name is made of harmless letters only."""
    words = re.sub(r"[^a-z0-9]+", "-", unquote(urlsplit(url).path).lower()).strip("-")[:40].strip("-")
    key = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:8]
    path = data_dir / "inspect" / f"{words or 'page'}-{key}.html"
    write_bytes(path, content)
    return path
