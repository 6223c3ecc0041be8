"""A table of addresses -> parts/ -> records.jsonl: fetched and fitted part by part, screened all at once.

An interrupted run goes on with the parts that are not finished, and a table that grew fetches what is new.
Refuses to hold more of a record than a few numbers.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crest.errors import DataError
from crest.records import Record, hash_of, stream_records
from scraper.collect import (
    check_owner,
    claim,
    is_done,
    say_up_to_date,
    write_dropped,
    write_kept,
    write_report,
)
from scraper.config import ScraperConfig
from scraper.executor import run_jobs, worker_count
from scraper.harvest import Drop, told
from scraper.likeness import LOOK_DTYPE
from scraper.part import COLUMNS, PARTS, PartDone, PartJob, drops_of, fetch_part, part_path, read_note
from scraper.screen import Candidates, Verdicts, judge
from scraper.sites.url_table import Table, open_table

_OPEN_FILES: Final = 64
_LOOK_COLUMNS: Final = ("pixels", "bits", "mirrored", "aspect", "flags")


def collect_table(config: ScraperConfig) -> None:
    """Do what `python -m scraper` does for a table; a finished folder is left as it is.

    Raises:
        DataError: the table cannot be read, or no picture passed.
        FetchError: nobody answers.
    """
    started = time.monotonic()
    check_owner(config)
    table = open_table(config.source)
    fingerprint = hash_of(table.fingerprint, config.pack.side_px, config.pack.format)
    was_finished = is_done(config, fingerprint)
    if was_finished and not (config.fetch.retry_failed or config.fetch.refresh):
        say_up_to_date(config)
        return
    claim(config)
    folder = config.data.dir
    if was_finished and config.fetch.refresh:
        for note in (folder / PARTS).glob("*.json"):
            note.unlink()
    done = _fetch(config, table)
    counts = {
        "cards": sum(part.rows for part in done),
        "pictures": sum(part.records for part in done),
        "repeated_addresses": sum(part.repeated_addresses for part in done),
    }
    dropped = sum((Counter(part.dropped) for part in done), Counter[str]())
    if not counts["pictures"]:
        raise DataError(
            f"{config.source.path}: none of {counts['cards']:,} rows led to a picture ({told(dropped)}); "
            "look at the addresses, or at the section fetch."
        )
    parts = _Parts(folder, [part.records for part in done])
    candidates = parts.candidates(config.screen.pixels)
    verdicts = judge(candidates, config.screen)
    if not (verdicts.reason == 0).any():
        raise DataError(
            f"{folder}: none of {counts['pictures']:,} pictures passed; look at the section screen."
        )
    write_report(
        config,
        write_kept(folder, _kept(parts, verdicts), config.screen.wide_aspect),
        write_dropped(folder, _dropped(parts, verdicts, candidates.content)),
        counts=counts,
        fingerprint=fingerprint,
        seconds=time.monotonic() - started,
    )


def _fetch(config: ScraperConfig, table: Table) -> list[PartDone]:
    """Have all parts fetched that are not there yet."""
    from tqdm import tqdm

    size = config.work.rows_per_part
    count = -(-table.rows // size)
    done: list[PartDone] = []
    with tqdm(total=table.rows, desc="fetch", unit="url", disable=None) as bar:
        for part in run_jobs(fetch_part, _jobs(config, table), config.work, size=count):
            done.append(part)
            bar.update(part.rows)
    folder = config.data.dir / PARTS
    for path in folder.iterdir():  # of a longer table, or of a killed worker
        number = path.name.partition(".")[0]
        if not number.isdigit() or int(number) >= count or path.suffix == ".part":
            path.unlink()
    return done


def _jobs(config: ScraperConfig, table: Table) -> Iterator[PartJob]:
    source = config.source
    assert source.path is not None
    for number, rows in enumerate(table.parts(config.work.rows_per_part)):
        yield PartJob(
            folder=config.data.dir.resolve(),
            number=number,
            rows=rows,
            source=source.path.name,
            licence=source.licence,
            written_by=source.written_by,
            fetch=config.fetch,
            side_px=config.pack.side_px,
            format=config.pack.format,
            is_looked_at=config.screen.pixels,
            workers=worker_count(config.work),
        )


class _Parts:
    """The records of all parts by number, read from the disk where they are needed."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.folder = folder
        self.first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        """number of each part's first record, and of all records"""
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """part -> descriptor of its looks and where its rows begin, the latest last"""

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(self.first) - 1

    def records(self) -> Iterator[Record]:
        """All records, in the order of the table."""
        for part in range(self.count):
            yield from stream_records(part_path(self.folder, part, "jsonl"))

    def candidates(self, are_looked_at: bool) -> Candidates:
        """The columns of all records; without looks, equal pixels are equal bytes."""
        names = ("content", "group", "source_file", "width_px", "height_px", "is_described")
        plain = {name: np.empty(len(self), dtype=COLUMNS[name]) for name in names}
        looks = {name: np.zeros(len(self), dtype=LOOK_DTYPE[name]) for name in _LOOK_COLUMNS}
        for part in range(self.count):
            rows = np.load(part_path(self.folder, part, "looks.npy"))
            place = slice(self.first[part], self.first[part + 1])
            for name, column in plain.items():
                column[place] = rows[name]
            for name, column in looks.items() if are_looked_at else ():
                column[place] = rows["look"][name]
        if not are_looked_at:
            looks["pixels"] = plain["content"]
        kind = np.full(len(self), -1, dtype=np.int16)
        return Candidates(**plain, **looks, kind=kind, kinds=(), thumbs=self.thumbs)

    def thumbs(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The thumbs of these records, (n, …) as `LOOK_DTYPE` shapes them."""
        size_bytes = LOOK_DTYPE["thumb"].itemsize
        offset = COLUMNS.fields["look"][1] + LOOK_DTYPE.fields["thumb"][1]  # type: ignore[index]
        thumbs = np.empty((len(numbers), size_bytes), dtype=np.uint8)
        parts = np.searchsorted(self.first, numbers, side="right") - 1
        rows = numbers - self.first[parts]
        for index in np.argsort(parts, kind="stable").tolist():
            descriptor, start = self._looks(int(parts[index]))
            at = start + int(rows[index]) * COLUMNS.itemsize + offset
            thumbs[index] = np.frombuffer(os.pread(descriptor, size_bytes, at), dtype=np.uint8)
        return thumbs.reshape(len(numbers), *LOOK_DTYPE["thumb"].shape)

    def _looks(self, part: int) -> tuple[int, int]:
        known = self._open.get(part)
        if known is None:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1][0])
            path = part_path(self.folder, part, "looks.npy")
            records = int(self.first[part + 1] - self.first[part])
            known = os.open(path, os.O_RDONLY), path.stat().st_size - records * COLUMNS.itemsize
            self._open[part] = known
        return known

    def groups_of(self, numbers: NDArray[np.int64]) -> dict[int, str]:
        """The source's groups of these records."""
        found: dict[int, str] = {}
        parts = np.searchsorted(self.first, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            wanted = set(numbers[parts == part].tolist())
            records = stream_records(part_path(self.folder, part, "jsonl"))
            for number, record in enumerate(records, start=int(self.first[part])):
                if number in wanted:
                    found[number] = record.group
        return found


def _kept(parts: _Parts, verdicts: Verdicts) -> Iterator[Record]:
    """The records that passed, under the names of their merged groups."""
    is_led = (verdicts.reason == 0) & (verdicts.group != np.arange(len(parts)))
    names = parts.groups_of(np.unique(verdicts.group[is_led]))
    for number, record in enumerate(parts.records()):
        if verdicts.reason[number] == 0:
            group = names[int(verdicts.group[number])] if is_led[number] else record.group
            yield dataclasses.replace(record, group=group)


def _dropped(parts: _Parts, verdicts: Verdicts, content: NDArray[np.uint64]) -> Iterator[Drop]:
    """What led to no picture and what did not pass, part by part."""
    has_twin = verdicts.twin >= 0
    for part in range(parts.count):
        note = read_note(parts.folder, part)
        assert note is not None, f"part {part} is finished"
        yield from drops_of(note)
        records = stream_records(part_path(parts.folder, part, "jsonl"))
        for number, record in enumerate(records, start=int(parts.first[part])):
            if verdicts.reason[number]:
                like = f"{int(content[verdicts.twin[number]]):016x}" if has_twin[number] else ""
                yield Drop(verdicts.reason_name(number), record.image_url, record.image, like)
