"""Which pictures are packed, in which order, into which chunk: read once, kept as columns of numbers.

Records and captions are streamed side by side and never held: about 80 bytes a picture stay in memory. A
chunk finds its lines again by where they begin.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from crest.errors import DataError
from crest.records import Caption, Record, hash_of, record_of
from crest.wording import quoted_words
from scraper.config import PackConfig
from scraper.splits import Keys, Links, Numbers, place_of

NO_CAPTIONS: Final = -1
"""Offset in captions.jsonl of a picture that has the source's own words."""


@dataclass
class Plan:
    """What can be packed, in the order of the records."""

    record_at: Numbers
    """(N,) byte of records.jsonl at which each record's line begins"""
    caption_at: Numbers
    """(N,) byte of captions.jsonl at which its first caption begins"""
    order: Keys
    """(N,) what sorts a split: drawn by seed and id"""
    links: Links
    read: int
    """records that were looked at"""
    to_encode: int
    """pictures that are too large or of another format: those that take the time"""
    dropped: dict[str, int]
    words_hash: str
    """over all captions"""
    lines_hash: str
    """over all lines of both files: what a chunk depends on"""


@dataclass
class _Columns:
    """Columns in the making."""

    record_at: array[int] = field(default_factory=lambda: array("q"))
    caption_at: array[int] = field(default_factory=lambda: array("q"))
    order: array[int] = field(default_factory=lambda: array("Q"))
    groups: array[int] = field(default_factory=lambda: array("Q"))
    places: array[float] = field(default_factory=lambda: array("d"))
    pictures: array[int] = field(default_factory=lambda: array("Q"))
    shared: dict[str, tuple[array[int], array[int]]] = field(
        default_factory=lambda: {
            kind: (array("q"), array("Q")) for kind in ("caption", "wordmark", "source_file")
        }
    )


def wordmarks(texts: list[str]) -> str:
    """All that stands in quotes in a picture's captions, as one name; "" for a single letter or nothing.

    A lone letter is what too many clubs wear to say that two logos are related.
    """
    quoted = {words.casefold() for text in texts for words in quoted_words(text)}
    return "\n".join(sorted(quoted)) if sum(map(str.isalnum, "".join(quoted))) > 1 else ""


def lines_at(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """(first byte, line, its object) of a JSON-lines file from byte `start` on.

    Raises:
        DataError: a line that is no JSON object.
    """
    with path.open("rb") as stream:
        yield from lines_in(stream, path, start)


def lines_in(stream: IO[bytes], path: Path, start: int) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """`lines_at` of a file that is open; it stays so."""
    stream.seek(start)
    at = start
    for line in stream:
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}: the line at byte {at} is not JSON ({error}); run its step again."
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: the line at byte {at} is no object; run the step again.")
            yield at, line, row
        at += len(line)


def caption_groups(path: Path, digest: Any) -> Iterator[tuple[int, list[Caption]]]:
    """(first byte, captions) of one picture after the other."""
    start, some = 0, list[Caption]()
    for at, line, row in lines_at(path):
        digest.update(line)
        caption = caption_of(row, path)
        if some and caption.id != some[0].id:
            yield start, some
            some = []
        if not some:
            start = at
        some.append(caption)
    if some:
        yield start, some


def caption_of(row: dict[str, Any], path: Path) -> Caption:
    """The caption of one row.

    Raises:
        DataError: it has other fields.
    """
    try:
        return Caption(**row)
    except TypeError as error:
        raise DataError(
            f"{path}: a line is no Caption ({error}); run python -m scraper.caption again."
        ) from None


def own_words(record: Record) -> list[Caption]:
    """The source's words, for a folder that was never captioned."""
    from scraper.own_words import own_captions

    return own_captions([record])[0]


def usable(captions: list[Caption], settings: PackConfig) -> list[Caption]:
    """The captions that the settings let through."""
    return [one for one in captions if settings.use_captions == "all" or one.origin == "human"]


def make_plan(folder: Path, settings: PackConfig, has_captions: bool) -> Plan:
    """Join records and captions, keep numbers, count what has no words.

    Args:
        folder: the data folder.
        settings: of the pack.
        has_captions: whether captions.jsonl is there; else the sources' own words count.
    Raises:
        DataError: captions that are not in the order of the records.
    """
    from tqdm import tqdm

    records, path = folder / "records.jsonl", folder / "captions.jsonl"
    lines, words = hashlib.sha256(), hashlib.sha256()
    columns, dropped, read, to_encode = _Columns(), Counter[str](), 0, 0
    groups = caption_groups(path, lines) if has_captions else iter(())
    ahead = next(groups, None)
    for at, line, row in tqdm(lines_at(records), desc="plan", unit="logo", disable=None):
        lines.update(line)
        read += 1
        record = record_of(row, records)
        first, captions = NO_CAPTIONS, list[Caption]()
        if not has_captions:
            captions = own_words(record)
        elif ahead is not None and ahead[1][0].id == record.id:
            (first, captions), ahead = ahead, next(groups, None)
        for caption in captions:
            words.update(json.dumps(vars(caption), sort_keys=True).encode())
        chosen = usable(captions, settings)
        if chosen:
            to_encode += not _is_copied(record, settings)
            _note(columns, settings, record, chosen, (at, first))
        else:
            dropped["model_caption" if captions else "no_caption"] += 1
    if ahead is not None:
        raise DataError(
            f"{path}: describes {ahead[1][0].id}, expected captions in the order of records.jsonl; run "
            "python -m scraper.caption (make caption) again."
        )
    links = Links(
        _numbers(columns.groups, np.uint64),
        np.frombuffer(columns.places, np.float64),
        _numbers(columns.pictures, np.uint64),
        {
            kind: (_numbers(pictures, np.int64), _numbers(keys, np.uint64))
            for kind, (pictures, keys) in columns.shared.items()
        },
    )
    return Plan(
        _numbers(columns.record_at, np.int64),
        _numbers(columns.caption_at, np.int64),
        _numbers(columns.order, np.uint64),
        links,
        read,
        to_encode,
        dict(dropped),
        words.hexdigest()[:16],
        lines.hexdigest(),
    )


def _note(
    columns: _Columns, settings: PackConfig, record: Record, captions: list[Caption], at: tuple[int, int]
) -> None:
    """Add a picture's row; what it shares with others goes by key."""
    from scraper.screen import key_of

    number = len(columns.record_at)
    columns.record_at.append(at[0])
    columns.caption_at.append(at[1])
    columns.order.append(int(hash_of(settings.seed, record.id), 16))
    columns.groups.append(key_of(record.group))
    columns.places.append(place_of(record.group, settings.seed))
    columns.pictures.append(key_of(f"picture/{record.id}"))
    # a model says the same of many logos: only its heaviest words count, as they are what is trained on
    texts = [one.text for one in captions[:1]] + [one.text for one in captions[1:] if one.origin == "human"]
    shared = {
        "caption": {" ".join(text.casefold().split()) for text in texts},
        "wordmark": {wordmarks(texts)},
        "source_file": {record.source_file},
    }
    for kind, names in shared.items():
        for name in sorted(filter(None, names)):
            columns.shared[kind][0].append(number)
            columns.shared[kind][1].append(key_of(name))


def _is_copied(record: Record, settings: PackConfig) -> bool:
    """Whether a picture seems to be packed as it is; its bytes may say otherwise."""
    kind = record.image.partition("#")[0].rpartition(".")[2]
    fits = max(record.width_px, record.height_px) <= settings.side_px
    return fits and record.frames == 1 and kind in (settings.format, "tar")


def _numbers(column: array[int], kind: Any) -> NDArray[Any]:
    return np.frombuffer(column, kind) if len(column) else np.zeros(0, kind)
