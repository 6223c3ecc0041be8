"""A folder of pictures with metadata.jsonl, metadata.csv or a .txt beside each -> cards with paths.

Refuses names that lead out of the folder; pictures without captions are allowed and counted.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from crest.errors import DataError
from crest.records import hash_of, read_jsonl
from scraper.config import SourceConfig
from scraper.cut_text import tidy
from scraper.harvest import Drop
from scraper.sites import Card, Item
from scraper.sites import Listing as Entries

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
NAME_COLUMNS: Final = ("file_name", "filename", "filepath", "file", "image", "path")
TEXT_COLUMNS: Final = ("text", "caption", "title", "description", "prompt")
GROUP_COLUMNS: Final = ("group", "brand", "team", "club")
_SHOWN: Final = "a folder of pictures with metadata.jsonl, metadata.csv or a .txt beside each"


@dataclass(frozen=True)
class FolderCard:
    """A card and the file that it is about."""

    card: Card
    path: Path


@dataclass(frozen=True)
class Listing:
    """All that a folder offers."""

    cards: tuple[FolderCard, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    """(named reason, what): rows that lead to no picture"""
    fingerprint: str = ""
    """changes when a file comes, goes or is written again"""
    counts: Mapping[str, int] = field(default_factory=dict)


def read_folder(folder: Path) -> Listing:
    """List the pictures of a folder with their captions, in the order of the metadata, else of the names.

    Raises:
        DataError: no such folder, nothing in it, captions without a single picture, or broken metadata.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what}, expected {_SHOWN}; correct source.path.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    pictures = {
        path.relative_to(folder).as_posix(): path for path in files if path.suffix.lower() in SUFFIXES
    }
    rows = list(_rows(folder, pictures))
    if not pictures:
        found = f"holds {len(rows)} captions but no picture" if rows else "is empty"
        if not rows and files:
            found = f"holds {len(files)} files but no picture"
        raise DataError(f"{folder}: {found}, expected {_SHOWN}; correct source.path.")
    cards: dict[str, FolderCard] = {}
    dropped: list[tuple[str, str]] = []
    for row in rows:
        name = str(row.get("file_name") or "")
        path = pictures.get(Path(name).as_posix())
        if path is None:
            is_outside = name.startswith("/") or ".." in Path(name).parts
            dropped.append(("outside_folder" if is_outside else "no_image", name or "(no file name)"))
        elif name in cards:
            dropped.append(("named_twice", name))
        else:
            cards[name] = FolderCard(_card(row, name), path)
    if rows and not cards:
        raise DataError(
            f"{folder}: none of its {len(rows)} captions names one of its {len(pictures)} pictures "
            f"(the first names {rows[0].get('file_name')!r}), expected file_name to be a path in the folder; "
            "correct the metadata."
        )
    for name, path in pictures.items():
        if name not in cards:
            cards[name] = FolderCard(_card({}, name), path)
    without = sum(one.card.caption is None for one in cards.values())
    listed = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    counts = {"caption_whole": len(cards) - without, "caption_missing": without}
    return Listing(tuple(cards.values()), tuple(dropped), hash_of(listed), counts)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _rows(folder: Path, pictures: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """The rows of the folder's metadata, its columns called file_name and text."""
    if (folder / "metadata.jsonl").exists():
        yield from (_renamed(row, folder / "metadata.jsonl") for row in read_jsonl(folder / "metadata.jsonl"))
    elif (folder / "metadata.csv").exists():
        yield from _csv_rows(folder / "metadata.csv")
    else:
        for path in sorted(folder.rglob("*.txt")):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            beside = [name for name in pictures if Path(name).with_suffix("").as_posix() == stem]
            yield {"file_name": beside[0] if beside else stem, "text": _read_text(path)}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8.") from None


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a CSV; the separator is the one that makes its header name pictures, whatever captions hold."""
    text = _read_text(path)
    header = text.partition("\n")[0]
    for separator in (",", ";", "\t", "|"):
        names = next(csv.reader([header], delimiter=separator), [])
        if any(name.strip().lower() in NAME_COLUMNS for name in names):
            break
    else:
        raise DataError(
            f"{path}: its first line is {header.strip()[:60]!r}, expected a header with file_name and text; "
            "add it."
        )
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path}:{reader.line_num}: has more cells than the header, expected {len(names)}; "
                    f"quote the captions that hold a {separator!r}."
                )
            yield _renamed(row, path)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is no CSV ({error}); mend the quotes there.") from None


def _renamed(row: Mapping[str, Any], path: Path) -> dict[str, Any]:
    lowered = {str(key).strip().lower(): value for key, value in row.items()}
    name = next((lowered[key] for key in NAME_COLUMNS if lowered.get(key)), None)
    if name is None:
        shown = json.dumps(dict(row), ensure_ascii=False, default=str)[:80]
        raise DataError(f"{path}: the row {shown} names no picture, expected a file_name; add it.")
    text = next((lowered[key] for key in TEXT_COLUMNS if lowered.get(key)), None)
    return {**lowered, "file_name": str(name).removeprefix("./"), "text": text}


def _card(row: Mapping[str, Any], name: str) -> Card:
    text = row.get("text")
    caption = tidy(text if isinstance(text, str) else " ".join(map(str, text))) if text else ""
    group = next((str(row[key]) for key in GROUP_COLUMNS if row.get(key)), "")
    return Card(
        image_urls=(),
        title=str(row.get("title") or group or Path(name).stem),
        caption=caption or None,
        kind=str(row.get("kind") or ""),
        years=str(row.get("years") or ""),
        page_url=str(row.get("source_url") or row.get("page_url") or row.get("url") or ""),
        group=re.sub(r"[\W_]+", "-", (group or Path(name).with_suffix("").as_posix()).lower()).strip("-")
        or name,
        licence=str(row.get("licence") or row.get("license") or ""),
    )


class Folder:
    """A folder of pictures."""

    def open(self, source: SourceConfig) -> Entries:
        """List it; see `read_folder`."""
        assert source.path is not None
        folder, listing = source.path, read_folder(source.path)
        items = (
            Item(one.card, one.path.relative_to(folder).as_posix(), one.path.read_bytes)
            for one in listing.cards
        )
        dropped = (Drop(reason, what) for reason, what in listing.dropped)
        return Entries(chain(items, dropped), listing.fingerprint, len(listing.cards) + len(listing.dropped))
