"""One part of a table -> a tar of fitted pictures, their records and their looks: a pure function of its job.

Its .json comes last, so that its presence means done. Tar and looks depend on what the addresses gave alone:
no times, whoever fetched them in whatever order. Refuses to hold more than a few pictures in memory.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from crest.errors import DataError, FetchError
from crest.records import (
    Record,
    file_hash,
    hash_of,
    picture_bytes,
    read_json,
    stream_records,
    whole,
    write_json,
)
from crest.tars import TarPart, entry_of
from scraper.config import FetchConfig
from scraper.harvest import Drop
from scraper.likeness import LOOK_DTYPE, pack_looks
from scraper.opt_out import linked_licence
from scraper.screen import key_of
from scraper.sites.image_addresses import source_file
from scraper.sites.url_table import Row
from scraper.turns import ask_all, host_of

if TYPE_CHECKING:
    from scraper.fetch import Answer, Fetcher
    from scraper.pictures import Checked, Examined

PARTS: Final = "parts"
PLAIN: Final = (
    ("row", "<u4"),
    ("content", "<u8"),
    ("group", "<u8"),
    ("source_file", "<u8"),
    ("width_px", "<i4"),
    ("height_px", "<i4"),
    ("is_described", "?"),
)
"""A record as screening sees it: its row within the part, and columns of `screen.Candidates`."""
COLUMNS: Final = np.dtype([*PLAIN, ("look", LOOK_DTYPE)])
"""The same with its look."""
_HELD_BYTES: Final = 8 << 20
"""Fitted pictures of a part that are held in memory until their turn in the tar; more go to a file."""
_FEW_HOSTS: Final = 3
"""When no address of more hosts than this answers, it is the network that is gone."""


@dataclass(frozen=True)
class PartJob:
    """Rows of a table, and what is to be made of them."""

    folder: Path
    """the data folder"""
    number: int
    rows: tuple[Row, ...]
    source: str
    """name of the table"""
    licence: str
    written_by: str
    fetch: FetchConfig
    side_px: int
    format: str
    is_looked_at: bool
    """whether screening compares pixels"""
    workers: int
    """processes that ask the same hosts"""

    @property
    def key(self) -> str:
        """Changes with anything that a finished part depends on."""
        rows = [(row.url, row.caption, row.group, row.title, row.licence, row.fault) for row in self.rows]
        made = (self.source, self.licence, self.written_by, self.side_px, self.format, self.is_looked_at)
        return hash_of(rows, made)

    @property
    def columns(self) -> np.dtype[np.void]:
        """What a row of the part's looks holds."""
        return COLUMNS if self.is_looked_at else np.dtype([*PLAIN])

    def path(self, suffix: str) -> Path:
        """One of the part's files."""
        return part_path(self.folder, self.number, suffix)


@dataclass(frozen=True)
class PartDone:
    """What a part became."""

    number: int
    rows: int
    records: int
    repeated_addresses: int
    dropped: Mapping[str, int]


def part_path(folder: Path, number: int, suffix: str) -> Path:
    """A file of the part of this number: suffix "tar", "jsonl", "looks.npy" or "json"."""
    return folder / PARTS / f"{number:06d}.{suffix}"


def read_note(folder: Path, number: int) -> dict[str, Any] | None:
    """The note of a finished part whose files are as long as they were; None when it is not finished."""
    try:
        note: dict[str, Any] = read_json(part_path(folder, number, "json"))
    except DataError:
        return None
    for suffix, file in note["files"].items():
        path = part_path(folder, number, suffix)
        if not path.exists() or path.stat().st_size != file["size_bytes"]:
            return None
    return note


def drops_of(note: Mapping[str, Any]) -> Iterator[Drop]:
    """The rows of a finished part that led to no picture."""
    return (Drop(reason, what) for _, reason, what in note["dropped"])


def fetch_part(job: PartJob) -> PartDone:
    """Fetch, fit and look at the pictures of a part, where that is not done yet; of a finished part only what
    failed, if `fetch.retry_failed` asks for it.

    Raises:
        FetchError: none of many hosts answers.
        OSError: the disk is full; nothing half-written stays.
    """
    note = read_note(job.folder, job.number)
    if note is not None and note["key"] != job.key:
        note = None
    failed = [row for row, _, _ in note["dropped"] if not job.rows[row].fault] if note else []
    if note is None or (failed and job.fetch.retry_failed):
        note = _make(job, note)
    return PartDone(
        job.number,
        len(job.rows),
        note["records"],
        note["repeated_addresses"],
        Counter(reason for _, reason, _ in note["dropped"]),
    )


@dataclass
class _Making:
    """A part in the making: pictures in the order in which they come, found again by row."""

    job: PartJob
    spool: tempfile.SpooledTemporaryFile[bytes]
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    """row -> first byte and size in the spool"""
    records: dict[int, Record] = field(default_factory=dict)
    columns: dict[int, NDArray[np.void]] = field(default_factory=dict)
    dropped: dict[int, Drop] = field(default_factory=dict)
    _at: int = 0

    def keep(self, row: int, content: bytes, record: Record, columns: NDArray[np.void]) -> None:
        """A row became a record."""
        self.spool.write(content)
        self.places[row] = self._at, len(content)
        self._at += len(content)
        self.records[row], self.columns[row] = record, columns

    def content(self, row: int) -> bytes:
        """The picture of a row."""
        first, size_bytes = self.places[row]
        self.spool.seek(first)
        return self.spool.read(size_bytes)


def _make(job: PartJob, before: dict[str, Any] | None) -> dict[str, Any]:
    job.path("json").parent.mkdir(parents=True, exist_ok=True)
    with tempfile.SpooledTemporaryFile(_HELD_BYTES, dir=str(job.folder / PARTS)) as spool:
        making = _Making(job, spool)
        if before is not None:
            _take_over(making)
        first_row: dict[str, int] = {}
        for number, row in enumerate(job.rows):
            if row.fault:
                making.dropped[number] = Drop(row.fault, row.where)
            else:
                first_row.setdefault(row.url, number)
        wanted = [(row, url) for url, row in first_row.items() if row not in making.records]
        for number, outcome in _outcomes(job, wanted):
            row = job.rows[number]
            if isinstance(outcome, Drop):
                making.dropped[number] = outcome
            else:
                answer, found = outcome
                making.keep(number, _stored(found, job), *_described(found.checked, answer, row, job))
        _repeat(making, first_row)
        if wanted and len({host_of(url) for _, url in wanted}) > _FEW_HOSTS and not making.records:
            _check_network(making)
        return _write(making, sum(not row.fault for row in job.rows) - len(first_row))


def _take_over(making: _Making) -> None:
    """What an earlier attempt at this part had."""
    job = making.job
    columns = np.load(job.path("looks.npy"))
    for record, row in zip(stream_records(job.path("jsonl")), columns, strict=True):
        number = int(row["row"])
        making.keep(number, picture_bytes(job.folder, record.image), record, row)


def _outcomes(
    job: PartJob, wanted: list[tuple[int, str]]
) -> Iterator[tuple[int, Drop | tuple[Answer, Examined]]]:
    """What became of each address, in the order in which they answer."""
    from scraper.pictures import examine
    from scraper.refused import Refused

    fetcher = _fetcher(job.fetch.model_copy(update={"retry_failed": False}).model_dump_json(), job.workers)
    for number, answer in ask_all(fetcher, wanted, job.fetch.connections):
        url = job.rows[number].url
        try:
            if isinstance(answer, Exception):
                raise answer
            found = examine(
                answer.content,
                url,
                max_megapixels=job.fetch.max_megapixels,
                svg_side_px=job.side_px,
                within_px=job.side_px,
                is_looked_at=job.is_looked_at,
            )
        except Refused as refusal:
            yield number, Drop(refusal.reason, url)
        else:
            yield number, (answer, found)


@lru_cache(maxsize=1)
def _fetcher(settings: str, workers: int) -> Fetcher:
    """The fetcher of this process: hosts are met once, whatever parts they are in."""
    from scraper.fetch import Fetcher

    return Fetcher(FetchConfig.model_validate_json(settings), None, workers=workers)


def _stored(found: Examined, job: PartJob) -> bytes:
    """A picture as it is packed: its own bytes where they fit, else fitted."""
    from scraper.chunks import encoded, is_ready

    one = found.checked
    fits = max(one.width_px, one.height_px) <= job.side_px
    if fits and one.frames == 1 and is_ready(one.stored, job.format):
        return one.stored
    return encoded(found.picture, job.format)


def _described(found: Checked, answer: Answer, row: Row, job: PartJob) -> tuple[Record, NDArray[np.void]]:
    """The record of a picture, but for its place in the tar, and what screening needs of it."""
    record = Record(
        id=found.id,
        image="",
        source=job.source,
        caption=row.caption,
        group=row.group or found.id,
        image_url=row.url,
        title=row.title,
        licence=_licence(row, answer.headers, job),
        width_px=found.width_px,
        height_px=found.height_px,
        written_by=job.written_by,
        source_file=_source_file(row.url),
        sha256=found.sha256,
        fetched_at=answer.fetched_at,
        headers=dict(answer.headers),
        frames=found.frames,
    )
    columns = np.zeros((), dtype=job.columns)
    columns["content"] = int(found.id, 16)
    columns["width_px"], columns["height_px"] = found.width_px, found.height_px
    if found.look is not None:
        columns["look"] = pack_looks([found.look])[0]
    return record, columns


def _licence(row: Row, headers: Mapping[str, str], job: PartJob) -> str:
    return row.licence or linked_licence(headers) or job.licence


def _source_file(url: str) -> str:
    """What renditions of one file share; unknown where the query may be what tells files apart."""
    return "" if "?" in url else source_file(url)


def _repeat(making: _Making, first_row: Mapping[str, int]) -> None:
    """Rows of an address that was asked for already share its outcome, with words of their own."""
    for number, row in enumerate(making.job.rows):
        first = first_row.get(row.url, number)
        if first == number or row.fault or number in making.records:
            continue
        known = making.records.get(first)
        if known is None:
            making.dropped[number] = making.dropped[first]
            continue
        making.records[number] = dataclasses.replace(
            known,
            caption=row.caption,
            group=row.group or known.id,
            title=row.title,
            licence=_licence(row, known.headers, making.job),
        )
        making.columns[number] = making.columns[first].copy()


def _check_network(making: _Making) -> None:
    """Raise when nobody at all answered."""
    if all(drop.reason == "unreachable" for row, drop in making.dropped.items() if making.job.rows[row].url):
        raise FetchError(
            f"{making.job.rows[0].where}: none of the hosts from here on answered, expected web sites; check "
            "the network, then run the same command again: what is finished is kept."
        )


def _write(making: _Making, repeated: int) -> dict[str, Any]:
    """Write the part's files, its note last."""
    job = making.job
    job.path("json").unlink(missing_ok=True)
    rows = sorted(making.records)
    place_of: dict[str, str] = {}
    columns = np.zeros(len(rows), dtype=job.columns)
    with TarPart(job.path("tar")) as tar, whole(job.path("jsonl")) as lines:
        at = 0
        for index, row in enumerate(rows):
            record = making.records[row]
            if record.id not in place_of:
                content = making.content(row)
                entry = entry_of(record.id, {job.format: content})
                tar.add(entry)
                place_of[record.id] = f"{PARTS}/{tar.path.name}#{at + tarfile.BLOCKSIZE}+{len(content)}"
                at += len(entry)
            record = dataclasses.replace(record, image=place_of[record.id])
            lines.write((json.dumps(vars(record), ensure_ascii=False) + "\n").encode())
            columns[index] = making.columns[row]
            columns[index]["row"] = row
            columns[index]["group"] = key_of(record.group)
            columns[index]["source_file"] = key_of(record.source_file) if record.source_file else 0
            columns[index]["is_described"] = record.caption is not None
        tar.finish()
    with whole(job.path("looks.npy")) as stream:
        np.save(stream, columns)
    files = {
        suffix: {"size_bytes": job.path(suffix).stat().st_size, "sha256": file_hash(job.path(suffix))}
        for suffix in ("tar", "jsonl", "looks.npy")
    }
    note = {
        "key": job.key,
        "rows": len(job.rows),
        "records": len(rows),
        "repeated_addresses": repeated,
        "dropped": [[row, drop.reason, drop.what] for row, drop in sorted(making.dropped.items())],
        "files": files,
    }
    write_json(job.path("json"), note)
    return note
