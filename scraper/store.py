"""Where the pictures of a data folder lie: a file each in images/, or many in the tars of parts/.

Bytes are stored as they were checked, alpha included. Refuses to leave half a file: a `.part` name first.
"""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from crest.tars import HEADER_BYTES, TarPart, entry_of
from scraper.pictures import MAX_MEGAPIXELS, SVG_SIDE_PX, Checked, check_picture

if TYPE_CHECKING:
    from scraper.likeness import Look

IMAGES: Final = "images"
PARTS: Final = "parts"
TAR_BYTES: Final = 256 << 20
"""A tar of pictures is full at this size."""


@dataclass(frozen=True)
class Kept:
    """A picture that lies in images/."""

    id: str
    image: str
    """path relative to the data folder"""
    width_px: int
    height_px: int
    look: Look | None
    """None where nobody asked for it"""
    sha256: str
    frames: int


def keep_picture(
    content: bytes,
    where: str,
    data_dir: Path,
    body_path: Path | None = None,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    svg_side_px: int = SVG_SIDE_PX,
    is_looked_at: bool = True,
) -> Kept:
    """Check a picture and put its bytes into images/, once for each content.

    Args:
        content: bytes as they came.
        where: what to name when it is refused.
        data_dir: folder that holds images/.
        body_path: a file that already holds these bytes; linked rather than copied where the disk can.
        max_megapixels: a larger picture is refused by its header.
        svg_side_px: longest side that an SVG is drawn at.
        is_looked_at: False trusts a file whose bytes show that it is whole, and decodes no other way.
    Raises:
        Refused: as `scraper.pictures.examine` says.
    """
    found = check_picture(
        content, where, max_megapixels=max_megapixels, svg_side_px=svg_side_px, is_looked_at=is_looked_at
    )
    return Kept(
        id=found.id,
        image=_store(found, data_dir, body_path if found.stored is content else None),
        width_px=found.width_px,
        height_px=found.height_px,
        look=found.look,
        sha256=found.sha256,
        frames=found.frames,
    )


class Store(Protocol):
    """Takes checked pictures."""

    def prepare(self, found: Checked) -> None:
        """What may be done beside other pictures, in any order."""
        ...

    def place(self, found: Checked) -> str:
        """Put a picture away; returns `Record.image`. Called in the order of the source."""
        ...

    def finish(self) -> None:
        """All are there: what was stored takes the place of what was before."""
        ...

    def give_up(self) -> None:
        """Leave nothing half-written."""
        ...


class FileStore:
    """A file a picture: one can look at them."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def prepare(self, found: Checked) -> None:
        """Write the file, unless it is there."""
        _store(found, self._data_dir, None)

    def place(self, found: Checked) -> str:
        """The file's name."""
        return f"{IMAGES}/{found.id}.{found.suffix}"

    def finish(self) -> None:
        """The tars of a time when the source was larger serve nobody."""
        shutil.rmtree(self._data_dir / PARTS, ignore_errors=True)

    def give_up(self) -> None:
        """Files are whole or not there."""


class TarStore:
    """Tars of pictures: making a file costs more than writing its bytes, and nobody looks into a million.

    Args:
        data_dir: the data folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir, self._making = data_dir, data_dir / f"{PARTS}.new"
        shutil.rmtree(self._making, ignore_errors=True)
        self._tar: TarPart | None = None
        self._count = 0
        self._places: dict[str, str] = {}

    def prepare(self, found: Checked) -> None:
        """Nothing: a tar is written in order."""

    def place(self, found: Checked) -> str:
        """Append to the tar, once for each content."""
        name = f"{found.id}.{found.suffix}"
        if name not in self._places:
            entry = entry_of(found.id, {found.suffix: found.stored})
            if self._tar is not None and self._tar.size_with(entry) > TAR_BYTES:
                self._close()
            if self._tar is None:
                self._making.mkdir(parents=True, exist_ok=True)
                self._tar = TarPart(self._making / f"{self._count:06d}.tar")
            first = self._tar.add(entry) + HEADER_BYTES
            self._places[name] = f"{PARTS}/{self._tar.path.name}#{first}+{len(found.stored)}"
        return self._places[name]

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.finish()
            self._tar, self._count = None, self._count + 1

    def finish(self) -> None:
        """Give the tars their folder's name; what was stored before serves nobody now."""
        self._close()
        shutil.rmtree(self._data_dir / PARTS, ignore_errors=True)
        shutil.rmtree(self._data_dir / IMAGES, ignore_errors=True)
        if self._making.exists():
            self._making.replace(self._data_dir / PARTS)

    def give_up(self) -> None:
        """Remove the tars."""
        if self._tar is not None:
            self._tar.__exit__(None, None, None)
        shutil.rmtree(self._making, ignore_errors=True)


def _store(found: Checked, data_dir: Path, body_path: Path | None) -> str:
    """Put a picture into images/, unless it is there; returns its path relative to the data folder."""
    name, content = f"{found.id}.{found.suffix}", found.stored
    path = data_dir / "images" / name
    try:
        is_there = path.stat().st_size == len(content)
    except FileNotFoundError:
        is_there = False
    if not is_there:
        try:
            _put(path, content, body_path)
        except FileNotFoundError:  # the first of its folder
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, content, body_path)
    return f"images/{name}"


def _put(path: Path, content: bytes, body_path: Path | None) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    is_linked = body_path is not None and _link(body_path, part)
    try:
        if not is_linked:
            part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if is_linked:
        part.unlink(missing_ok=True)  # a link that is renamed onto itself stays


def _link(body_path: Path, part: Path) -> bool:
    """Whether a second name for the kept answer could be made; not every disk can."""
    try:
        os.link(body_path, part)
    except OSError:
        return False
    return True
