"""A folder of pictures -> entries: captions from metadata, from any other table, or from a .txt beside each.

A picture that is named twice keeps the captions of both. Refuses names that lead out of the folder; pictures
without captions are allowed.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from crest.errors import DataError
from crest.records import hash_of, read_jsonl
from scraper.config import SourceConfig
from scraper.cut_text import tidy
from scraper.harvest import Drop
from scraper.refused import Refused
from scraper.sites import Card, Item, Listing, writable
from scraper.sites.caption_rows import PICTURE_SUFFIXES, Row, read_table, read_text, row_of

GROUP_COLUMNS: Final = ("group", "brand", "team", "club")
PAGE_COLUMNS: Final = ("source_url", "page_url", "url")
METADATA: Final = ("metadata.jsonl", "metadata.csv")
TABLE_SUFFIXES: Final = (".csv", ".tsv")
TEXT_SUFFIXES: Final = (".txt", ".caption")
_Stat = tuple[int, int]
"""Size and time of a file."""
_SHOWN: Final = "a folder of pictures with metadata.jsonl, metadata.csv, a table or a .txt beside each"


class Folder:
    """A folder of pictures."""

    def open(self, source: SourceConfig) -> Listing:
        """List the pictures in the order of their captions, then those without by name.

        Raises:
            DataError: no such folder, nothing in it, captions without a single picture, or a broken table.
        """
        assert source.path is not None
        folder = source.path
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "there is no such folder"
            raise DataError(f"{folder}: {what}, expected {_SHOWN}; correct source.path.")
        files = _files(folder)
        shelf = _Shelf(folder, files)
        tables = _tables(folder, files, source.captions)
        for table in tables:
            shelf.add_all(_rows(table, shelf.is_picture), table)
        shelf.add_texts(is_all=not tables)
        if not shelf.pictures:
            found = f"holds {shelf.row_count} captions but no picture" if shelf.row_count else "is empty"
            if not shelf.row_count and files:
                found = f"holds {len(files)} files but no picture"
            raise DataError(f"{folder}: {found}, expected {_SHOWN}; correct source.path.")
        prompt = tidy(source.prompt or "")
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in tables]
        return Listing(
            entries=writable(_entries(shelf, prompt)),
            fingerprint=hash_of(files, stats),
            size=len(shelf.pictures) + len(shelf.dropped),
            pictures=len(shelf.pictures),
        )


def _entries(shelf: _Shelf, prompt: str) -> Iterator[Item | Drop]:
    for name in shelf.in_order():
        yield Item(shelf.card(name, prompt), name, reading(shelf.path(name)))
    yield from shelf.dropped


def reading(path: Path) -> Callable[[], bytes]:
    """What reads a picture of this machine when it is its turn."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise Refused(
                "unreadable", f"{path}: can't be read ({error.strerror}); mend or remove it."
            ) from None

    return read


def _files(folder: Path) -> dict[str, _Stat]:
    """Every file by its name within the folder, in order; hidden ones are none."""
    found: dict[str, _Stat] = {}
    unread = [""]
    while unread:
        below = unread.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = f"{below}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    unread.append(f"{name}/")
                elif entry.is_file():
                    stat = entry.stat()
                    found[name] = (stat.st_size, stat.st_mtime_ns)
    return dict(sorted(found.items()))


def _composed(name: str) -> str:
    """One spelling of accents: disks differ in it, and tables are written on other machines."""
    return unicodedata.normalize("NFC", name)


def _tables(folder: Path, files: Iterable[str], captions: Path | None) -> list[Path]:
    """Where captions stand: the table that is named, else the metadata, else any table."""
    if captions is not None:
        if not captions.is_file():
            raise DataError(f"{captions}: there is no such file, expected a table; correct source.captions.")
        return [captions]
    metadata = [name for name in files if posixpath.basename(name) in METADATA]
    return [folder / name for name in metadata or (one for one in files if _suffix(one) in TABLE_SUFFIXES)]


def _rows(table: Path, is_picture: Callable[[str], bool]) -> Iterator[Row]:
    if table.suffix.lower() in (".jsonl", ".ndjson"):
        for number, row in enumerate(read_jsonl(table), start=1):
            yield row_of(row, f"{table}: row {number}")
    else:
        yield from read_table(table, is_picture)


@dataclass
class _Said:
    """All that is said of one picture."""

    texts: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)


class _Shelf:
    """The pictures of a folder and what is said of each."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._folder = folder
        self._files = {_composed(name): name for name in files}
        self.pictures = {name for name in self._files if _suffix(name) in PICTURE_SUFFIXES}
        self._said: dict[str, _Said] = {}
        self._used: set[str] = set()
        self.dropped: list[Drop] = []
        self.row_count = 0

    def is_picture(self, name: str) -> bool:
        """Whether a word can only be the name of a picture."""
        return _suffix(name) in PICTURE_SUFFIXES or name in self._files

    def path(self, name: str) -> Path:
        """Where a picture lies."""
        return self._folder / self._files[name]

    def add_all(self, rows: Iterator[Row], table: Path) -> None:
        """Note what a table says.

        Raises:
            DataError: not one of its rows names a picture of the folder.
        """
        listed = list(rows)
        self.row_count += len(listed)
        beside = os.path.relpath(table.parent, self._folder)
        places = [self._place(row.name, beside) for row in listed]
        if listed and self.pictures and not any(places):
            stripped = self._written_elsewhere([row.name for row in listed])
            if stripped is None:
                raise DataError(
                    f"{table}: none of its {len(listed)} captions names one of the {len(self.pictures)} "
                    f"pictures in {self._folder} (the first names {listed[0].name!r}), expected file_name to "
                    "be a path in the folder; correct the metadata."
                )
            places = [name if name in self._files else None for name in stripped]
        for row, name in zip(listed, places, strict=True):
            if name is None:
                is_outside = _is_absolute(row.name) or ".." in _parts(row.name)
                reason = "outside_folder" if is_outside else "no_image"
                self.dropped.append(Drop(reason, row.name or f"{row.where}: no file name"))
            else:
                self._add(name, [self._unfolded(text, beside) for text in row.texts], row.others)

    def add_texts(self, *, is_all: bool) -> None:
        """Note the files of words that lie beside pictures.

        Args:
            is_all: count those that lie beside none.
        """
        texts = [name for name in self._files if _suffix(name) in TEXT_SUFFIXES and name not in self._used]
        by_stem: dict[str, list[str]] = {}
        for name in sorted(self.pictures) if texts else ():
            by_stem.setdefault(_stem(name), []).append(name)
            by_stem.setdefault(name, []).append(name)  # a.png.txt
        for text in texts:
            beside = by_stem.get(_stem(text), [])
            for name in beside:
                self._add(name, [read_text(self.path(text))], {})
            if beside or is_all:
                self.row_count += 1
            if not beside and is_all:
                self.dropped.append(Drop("no_image", text))

    def in_order(self) -> list[str]:
        """The pictures, those with words first and in the order of these."""
        return [*self._said, *sorted(self.pictures - self._said.keys())]

    def card(self, name: str, prompt: str) -> Card:
        """What a picture's card says; `prompt` where nobody wrote anything."""
        said = self._said.get(name, _Said())
        others = said.others
        texts = said.texts or ([prompt] if prompt else [])
        group = _first(others, GROUP_COLUMNS)
        stem = _stem(name)
        return Card(
            image_urls=(),
            title=_first(others, ("title",)) or group or posixpath.basename(stem),
            caption=texts[0] if texts else None,
            further_captions=tuple(texts[1:]),
            kind=_first(others, ("kind",)),
            years=_first(others, ("years",)),
            page_url=_first(others, PAGE_COLUMNS),
            group=group_name(group or stem) or name,
            licence=_first(others, ("licence", "license")),
            written_by=_first(others, ("written_by",)),
            source_file=stem.lower(),
        )

    def _add(self, name: str, texts: Sequence[str], others: Mapping[str, Any]) -> None:
        said = self._said.setdefault(name, _Said())
        self.pictures.add(name)
        for text in map(tidy, texts):
            if text in said.texts:
                self.dropped.append(Drop("repeated_caption", name))
            elif text:
                said.texts.append(text)
        for key, value in others.items():
            if value and not said.others.get(key):
                said.others[key] = value

    def _place(self, name: str, beside: str) -> str | None:
        """The file that a name means, relative to the table's folder or to the source's."""
        if not name:
            return None
        if _is_absolute(name):
            name = os.path.relpath(name, self._folder)
        for spelling in (name, name.replace("\\", "/")):
            for start in (beside, "."):
                found = posixpath.normpath(posixpath.join(start, spelling))
                if found.startswith(".."):  # it may come back in by the folder's own name
                    found = os.path.relpath(self._folder / found, self._folder)
                found = _composed(found)
                if found in self._files:
                    return found
        return None

    def _written_elsewhere(self, names: Sequence[str]) -> list[str] | None:
        """Names without the folders above ours, where the table was written with other ones."""
        deepest = max(len(_parts(name)) for name in names)
        for above in range(1, deepest):
            stripped = [_composed("/".join(_parts(name)[above:])) for name in names]
            if any(name in self._files for name in stripped):
                return stripped
        return None

    def _unfolded(self, text: str, beside: str) -> str:
        """The words themselves where a table names the file that holds them."""
        if not text.strip().lower().endswith(TEXT_SUFFIXES) or "\n" in text.strip():
            return text
        found = self._place(text.strip(), beside)
        if found is None and len(text.split()) == 1:
            self.dropped.append(Drop("no_caption_file", text.strip()))
            return ""
        if found is None:
            return text
        self._used.add(found)
        return read_text(self.path(found))


def group_name(text: str) -> str:
    """A group's name out of any words."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "."))


def _is_absolute(name: str) -> bool:
    return re.match(r"[/\\]|[A-Za-z]:", name) is not None


def _first(columns: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((str(columns[name]) for name in names if columns.get(name)), "")
