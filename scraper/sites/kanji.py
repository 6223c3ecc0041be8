"""KANJIDIC2 and KanjiVG -> entries: the strokes of each kanji drawn as an SVG, captions from its meanings.

Only English meanings are read. The small numbers that KanjiVG puts at the strokes are never drawn. A kanji
that one of the two lacks is counted.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast
from xml.etree import ElementTree
from xml.parsers import expat

from crest.errors import DataError
from crest.records import hash_of
from scraper.config import SourceConfig
from scraper.cut_text import tidy
from scraper.harvest import Drop
from scraper.refused import Refused
from scraper.sites import Card, Item, Listing, writable

LICENCE: Final = "KanjiVG by Ulrich Apel, CC BY-SA 3.0; KANJIDIC2 by EDRDG, CC BY-SA 4.0"
STROKE_WIDTH: Final = 4.5
"""Of 109 units: KanjiVG's own 3 is a hairline at 64 pixels."""
_DRAWING: Final = re.compile(r"[0-9a-f]{5,6}")
"""Name of a drawing: its code point; variants ("04e0e-Kaisho") are other pictures of the same kanji."""
_PROJECTS: Final = (
    "KANJIDIC2 is kanjidic2.xml of the EDRDG (Electronic Dictionary Research and Development Group), KanjiVG "
    "is the folder kanji/ of the KanjiVG project"
)
_SVG: Final = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Entry:
    """What the dictionary says of one kanji."""

    literal: str
    meanings: tuple[str, ...]


class Kanji:
    """The kanji of a dictionary, with their strokes."""

    def open(self, source: SourceConfig) -> Listing:
        """List the kanji in the order of the dictionary, then what has no entry.

        Raises:
            DataError: the dictionary or the drawings are missing or of another make.
        """
        assert source.path is not None
        assert source.drawings is not None
        dictionary = _dictionary(source.path)
        drawings = _drawings(source.drawings)
        _check(dictionary)
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in drawings.values()]
        stats.append((dictionary.name, dictionary.stat().st_size, dictionary.stat().st_mtime_ns))
        return Listing(writable(_entries(dictionary, drawings)), hash_of(stats), pictures=len(drawings))


def caption_of(meanings: tuple[str, ...]) -> str:
    """One caption with all meanings."""
    return f"kanji meaning {', '.join(meanings)}"


def _dictionary(path: Path) -> Path:
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if re.match(r"kanjidic2.*\.xml(\.gz)?$", one.name, re.I))
        if found:
            return found[0]
    if not path.is_file():
        state = "holds no kanjidic2.xml" if path.is_dir() else "there is no such file"
        raise DataError(
            f"{path}: {state}, expected KANJIDIC2's XML, gzip or not; fetch it ({_PROJECTS}) and name it in "
            "source.path."
        )
    return path


def _drawings(folder: Path) -> dict[int, Path]:
    """Drawings by code point."""
    found = {}
    if folder.is_dir():
        names = sorted(path for path in folder.rglob("*.svg") if _DRAWING.fullmatch(path.stem.lower()))
        found = {int(path.stem, 16): path for path in reversed(names)}
    if not found:
        state = "holds no drawing of a kanji" if folder.is_dir() else "there is no such folder"
        raise DataError(
            f"{folder}: {state}, expected KanjiVG's SVG files, one a code point (04e00.svg); fetch them "
            f"({_PROJECTS}) and name them in source.drawings."
        )
    return dict(sorted(found.items()))


def _check(path: Path) -> None:
    """Read up to the first kanji, so that another file is told before anything is written."""
    if next(_read(path), None) is None:
        raise DataError(
            f"{path}: holds no kanji, expected KANJIDIC2's XML ({_PROJECTS}); correct source.path."
        )


def _read(path: Path) -> Iterator[Entry]:
    """The dictionary, one kanji at a time; its own DTD declares no entities, and none is put in."""
    parser = expat.ParserCreate()
    builder: ElementTree.TreeBuilder | None = None
    done: list[Entry] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal builder
        if name == "character":
            builder = ElementTree.TreeBuilder()
        if builder is not None:
            builder.start(name, attributes)

    def data(text: str) -> None:
        if builder is not None:
            builder.data(text)

    def end(name: str) -> None:
        nonlocal builder
        if builder is None:
            return
        builder.end(name)
        if name == "character":
            done.append(_entry(builder.close()))
            builder = None

    def entity(name: str, *_: object) -> None:
        raise DataError(f"{path}: declares the entity {name!r}, expected plain XML; fetch KANJIDIC2 again.")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = data, entity
    try:
        with _opened(path) as stream:
            while block := stream.read(1 << 16):
                parser.Parse(block)
                yield from done
                done.clear()
            parser.Parse(b"", True)
    except (expat.ExpatError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: is no whole XML ({error}); fetch KANJIDIC2 again.") from None


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        is_zipped = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if is_zipped else path.open("rb")


def _entry(character: ElementTree.Element) -> Entry:
    found = (one.text or "" for one in character.iter("meaning") if one.get("m_lang", "en") == "en")
    meanings = tuple(dict.fromkeys(text for text in map(tidy, found) if text))
    return Entry(character.findtext("literal", ""), meanings)


def _entries(dictionary: Path, drawings: dict[int, Path]) -> Iterator[Item | Drop]:
    left = dict(drawings)
    for entry in _read(dictionary):
        if len(entry.literal) != 1:
            yield Drop("no_literal", f"{dictionary.name}: {entry.literal!r}")
            continue
        path = left.pop(ord(entry.literal), None)
        if path is None:
            yield Drop("no_drawing", entry.literal)
        elif not entry.meanings:
            yield Drop("no_meaning", entry.literal)
        else:
            yield Item(_card(entry), path.name, _drawing(path))
    for code_point, path in left.items():
        yield Drop("no_meaning", f"{chr(code_point)} ({path.name})")


def _card(entry: Entry) -> Card:
    single = (caption_of((meaning,)) for meaning in entry.meanings)
    return Card(
        image_urls=(),
        title=entry.literal,
        caption=caption_of(entry.meanings),
        further_captions=tuple(single) if len(entry.meanings) > 1 else (),
        written_by="rule",
        kind="kanji",
        source="kanji",
        group=entry.literal,
        licence=LICENCE,
        source_file=f"{ord(entry.literal):05x}",
    )


def _drawing(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return strokes(path.read_bytes(), path.name)
        except OSError as error:
            raise Refused(
                "unreadable", f"{path}: can't be read ({error.strerror}); mend or remove it."
            ) from None

    return read


def strokes(content: bytes, where: str) -> bytes:
    """The strokes of a drawing as an SVG of their own: black on nothing, without numbers.

    Raises:
        Refused: "broken_svg", or "no_strokes".
    """
    from scraper.svg import read_svg

    root = read_svg(content, where)
    paths = [one.get("d", "") for one in root.iter(f"{_SVG}path")]
    if not any(paths):
        raise Refused("no_strokes", f"{where}: holds no path, expected KanjiVG's strokes; fetch it again.")
    drawn = ElementTree.Element("svg", {"xmlns": _SVG[1:-1], "viewBox": root.get("viewBox", "0 0 109 109")})
    style = {"fill": "none", "stroke": "#000", "stroke-width": str(STROKE_WIDTH)}
    style |= {"stroke-linecap": "round", "stroke-linejoin": "round"}
    group = ElementTree.SubElement(drawn, "g", style)
    for path in paths:
        ElementTree.SubElement(group, "path", {"d": path})
    return ElementTree.tostring(drawn)
