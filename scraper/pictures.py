"""Picture bytes -> images/<id>.<ext>, checked to be a whole picture; alpha and original bytes stay untouched.

Types are read from the bytes, never from names or headers; a picture is decoded once, its look taken then.
Sizes are read from the header before a pixel is decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from PIL import Image

from crest.errors import DataError
from crest.images import BROKEN, decode
from scraper.likeness import Look, look_at
from scraper.refused import Refused

MAX_MEGAPIXELS: Final = 64.0
SVG_SIDE_PX: Final = 256
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
)
_PNG_KINDS: Final = frozenset(
    (depth, colour)
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
)
"""Bits a sample and colour types that a PNG may have (ISO 15948, table 11.1)."""
_GZIP: Final = b"\x1f\x8b"
_OTHER_MAGIC: Final = (
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"\x00\x00\x02\x00", "cur"),
    (b"8BPS", "psd"),
    (b"%PDF", "pdf"),
    (b"%!PS", "eps"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL ", "jxl"),
    (b"\x00\x00\x00\x0cjP  ", "jp2"),
    (_GZIP, "gzip, and no SVG in it"),
)
"""Pictures that Crest knows and does not read."""
_OF_PAGES: Final = frozenset(
    (b"html", b"head", b"body", b"title", b"meta", b"link", b"script", b"style", b"div")
)
"""Elements that a web page begins with."""
_SHOWN_BYTES: Final = 24
_PROLOG_BYTES: Final = 1 << 16
"""Comments and declarations before the root element of an SVG may be so long."""
_ANIMATED: Final = frozenset({"png", "gif", "webp", "avif"})
"""A JPEG may hold several pictures too (a phone's), but never an animation."""


@dataclass(frozen=True)
class Checked:
    """A whole picture and the bytes to keep of it, before anything is written."""

    id: str
    """of the source's own bytes"""
    sha256: str
    """of the source's own bytes, 64 hex digits"""
    suffix: str
    """file suffix of `stored`"""
    stored: bytes
    """what is kept: the source's own bytes, or the PNG that an SVG was drawn as"""
    look: Look | None
    """None where nobody asked for it"""
    frames: int
    width_px: int
    """of `stored`, like the height"""
    height_px: int


@dataclass(frozen=True)
class Examined:
    """A picture that was checked, and decoded for that."""

    checked: Checked
    picture: Image.Image
    """RGB or RGBA, shrunk where that was asked for; of an animation the first frame"""


def picture_type(content: bytes) -> str | None:
    """The file suffix that belongs to these bytes, or None when they are no picture that Crest reads."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    for magic, suffix in _MAGIC:
        if content.startswith(magic):
            return suffix
    if _brands(content) & {b"avif", b"avis"}:
        return "avif"
    return "svg" if _root_element(content) == b"svg" else None


def _brands(content: bytes) -> set[bytes]:
    """What a file of the ISO base media format says that it is; empty for any other."""
    if content[4:8] != b"ftyp":
        return set()
    box = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
    return {box[at : at + 4] for at in range(0, len(box) - 3, 4)}


def _text_start(content: bytes) -> bytes:
    """The first kilobytes of what may be text, unzipped, in one byte a letter."""
    start = content[:_PROLOG_BYTES]
    if start.startswith(_GZIP):
        with contextlib.suppress(zlib.error):
            start = zlib.decompressobj(31).decompress(start, _PROLOG_BYTES)
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if start.startswith(mark):
            return start[2:].decode(encoding, errors="replace").encode("ascii", errors="replace")
    return start.removeprefix(b"\xef\xbb\xbf")


def _root_element(content: bytes) -> bytes:
    """Local name of the first element, behind declarations and comments; empty when there is none."""
    text = _text_start(content)
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        if text.startswith(b"<!--", at):
            end, closing = text.find(b"-->", at + 4), 3
        elif text.startswith(b"<?", at):
            end, closing = text.find(b"?>", at), 2
        elif text[at : at + 9].lower() == b"<!doctype":
            bracket, plain = text.find(b"[", at), text.find(b">", at)
            has_subset = -1 < bracket < plain
            end, closing = (text.find(b"]", at), 1) if has_subset else (plain, 1)
            if has_subset and end >= 0:
                end = text.find(b">", end)
        else:
            break
        if end < 0:
            return b""
        at = end + closing
    if text[at : at + 1] != b"<":
        return b""
    name = bytearray()
    for letter in text[at + 1 : at + 64]:
        if not (chr(letter).isalnum() or letter in b":_-."):
            break
        name.append(letter)
    return bytes(name).rpartition(b":")[2]


def examine(
    content: bytes,
    where: str,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    svg_side_px: int = SVG_SIDE_PX,
    within_px: int | None = None,
    is_looked_at: bool = True,
) -> Examined:
    """Check a picture, decode it and look at it; writes nothing.

    Args:
        content: bytes as they came.
        where: what to name when it is refused.
        max_megapixels: a larger picture is refused by its header.
        svg_side_px: longest side that an SVG is drawn at.
        within_px: longest side that the decoded picture is shrunk to.
        is_looked_at: whether its look is wanted.
    Raises:
        Refused: "not_an_image", "html_not_image", "unsupported_type", "too_many_pixels", "broken", or what
            scraper/svg.py refuses.
    """
    suffix = picture_type(content)
    if suffix is None:
        raise _no_picture(content, where)
    digest = hashlib.sha256(content).hexdigest()
    stored, frames = content, 1
    if suffix == "svg":
        from scraper.svg import render_svg

        stored, suffix = render_svg(content, where, svg_side_px), "png"
        _, size = _frames_and_size(stored, where, suffix, max_megapixels)
    else:
        frames, size = _frames_and_size(content, where, suffix, max_megapixels)
    try:
        picture = decode(stored, where, within_px)
    except DataError as error:
        raise Refused("broken", str(error)) from None
    if (picture.width < picture.height) != (size[0] < size[1]):  # decode() sets upright what a camera turned
        size = size[::-1]
    look = look_at(picture) if is_looked_at else None
    return Examined(Checked(digest[:16], digest, suffix, stored, look, frames, *size), picture)


def _no_picture(content: bytes, where: str) -> Refused:
    start = _text_start(content).lstrip()[:16].lower()
    if start.startswith(b"<!doctype html") or _root_element(content).lower() in _OF_PAGES:
        return Refused("html_not_image", f"{where}: is a web page, expected a picture; leave it out.")
    other = next((name for magic, name in _OTHER_MAGIC if content.startswith(magic)), None)
    if other is None and _brands(content):
        other = b"/".join(sorted(_brands(content))).decode("latin-1")
    if other is not None:
        return Refused(
            "unsupported_type",
            f"{where}: is {other}, expected PNG, JPEG, GIF, WebP, AVIF, BMP or SVG; "
            "convert it or leave it out.",
        )
    shown = content[:_SHOWN_BYTES].decode("latin-1").strip()
    return Refused("not_an_image", f"{where}: begins with {shown!r}, expected a picture; leave it out.")


def _frames_and_size(
    content: bytes, where: str, suffix: str, max_megapixels: float
) -> tuple[int, tuple[int, int]]:
    """How many frames a picture has and how large it is, after a look at its header alone.

    Raises:
        Refused: "too_many_pixels", or "broken" when there is no header.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            megapixels = picture.width * picture.height / 1e6
            if megapixels <= max_megapixels:
                frames = int(getattr(picture, "n_frames", 1)) if suffix in _ANIMATED else 1
                return frames, picture.size
    except Image.DecompressionBombError:
        megapixels = float("inf")
    except BROKEN as error:
        raise Refused(
            "broken", f"{where}: is not a whole picture ({error}); fetch it again or remove it."
        ) from None
    raise Refused(
        "too_many_pixels",
        f"{where}: is larger than {max_megapixels:g} megapixels; leave it out or raise fetch.max_megapixels.",
    )


def check_picture(
    content: bytes,
    where: str,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    svg_side_px: int = SVG_SIDE_PX,
    is_looked_at: bool = True,
) -> Checked:
    """Check a picture; writes nothing.

    Args:
        content: bytes as they came.
        where: what to name when it is refused.
        max_megapixels: a larger picture is refused by its header.
        svg_side_px: longest side that an SVG is drawn at.
        is_looked_at: False trusts a file whose bytes show that it is whole, and decodes no other way.
    Raises:
        Refused: as `examine` says.
    """
    suffix = None if is_looked_at else whole_type(content)
    if suffix is not None:
        size = _plain_png_size(content) if suffix == "png" else None
        if size is not None and size[0] * size[1] <= max_megapixels * 1e6:
            frames = 1
        else:
            frames, size = _frames_and_size(content, where, suffix, max_megapixels)
        digest = hashlib.sha256(content).hexdigest()
        return Checked(digest[:16], digest, suffix, content, None, frames, *size)
    return examine(
        content, where, max_megapixels=max_megapixels, svg_side_px=svg_side_px, is_looked_at=is_looked_at
    ).checked


def _plain_png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a whole PNG that is a single picture of a known kind, else None.

    Pillow needs ten times as long to say the same.
    """
    if content[12:16] != b"IHDR" or b"acTL" in content or b"IDAT" not in content:
        return None
    width, height, *kind = struct.unpack_from(">IIBBBBB", content, 16)
    is_known = tuple(kind[:2]) in _PNG_KINDS and not any(kind[2:4]) and kind[4] < 2
    return (width, height) if width and height and is_known else None


def whole_type(content: bytes) -> str | None:
    """The file suffix of a picture whose bytes show without decoding that nothing is missing, else None.

    A PNG is whole when all its chunks have the checksum that they say, up to its end. A JPEG says nothing of
    the kind, but one that was cut short does not end with its mark.
    """
    if content.startswith(_MAGIC[0][0]):
        at = len(_MAGIC[0][0])
        while at + 12 <= len(content):
            end = at + 8 + int.from_bytes(content[at : at + 4], "big")
            if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                return None
            if content[at + 4 : at + 8] == b"IEND":
                return "png"
            at = end + 4
        return None
    return "jpg" if content.startswith(_MAGIC[1][0]) and content.endswith(b"\xff\xd9") else None
