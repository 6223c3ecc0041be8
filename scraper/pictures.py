"""Picture bytes -> images/<id>.<ext>, checked to be a whole picture; alpha and original bytes stay untouched.

Types are read from the bytes, never from names or headers; a picture is decoded once, its look taken then.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crest.errors import DataError
from crest.images import decode
from crest.records import content_id
from scraper.fetch import Refused
from scraper.likeness import Look, look_at

_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
)


@dataclass(frozen=True)
class Kept:
    """A picture that lies in images/."""

    id: str
    image: str
    """path relative to the data folder"""
    width_px: int
    height_px: int
    look: Look


def picture_type(content: bytes) -> str | None:
    """The file suffix that belongs to these bytes, or None when they are no picture that Crest reads."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)


def keep_picture(content: bytes, where: str, data_dir: Path, body_path: Path | None = None) -> Kept:
    """Check a picture and put its bytes into images/, once for each content.

    Args:
        content: bytes as they came.
        where: what to name when it is refused.
        data_dir: folder that holds images/.
        body_path: a file that already holds these bytes; linked rather than copied where the disk can.
    Raises:
        Refused: "not_an_image" or "broken".
    """
    suffix = picture_type(content)
    if suffix is None:
        shown = content[:24].decode("latin-1").strip()
        raise Refused("not_an_image", f"{where}: begins with {shown!r}, expected a picture; leave it out.")
    try:
        picture = decode(content, where)
    except DataError as error:
        raise Refused("broken", str(error)) from None
    name = content_id(content)
    path = data_dir / "images" / f"{name}.{suffix}"
    if not path.exists() or path.stat().st_size != len(content):
        _put(path, content, body_path)
    return Kept(name, f"images/{path.name}", picture.width, picture.height, look_at(picture))


def _put(path: Path, content: bytes, body_path: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        if body_path is None or not _link(body_path, part):
            part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # a link that is renamed onto itself stays


def _link(body_path: Path, part: Path) -> bool:
    """Whether a second name for the kept answer could be made; not every disk can."""
    try:
        os.link(body_path, part)
    except OSError:
        return False
    return True
