"""Tables of addresses and captions: CSV, JSON lines and Parquet, a file or a folder of them, gzip or not.

Millions of rows are streamed and never held. Quoting is checked before anything is fetched; a row that cannot
be read is named and counted, and the others go on. The only file that knows pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final

from crest.errors import DataError
from crest.records import hash_of
from scraper.config import SourceConfig

_CSV: Final = (".csv", ".tsv", ".txt")
_JSONL: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet", ".pq")
_SEPARATORS: Final = ",;\t|"
_BATCH: Final = 1024
_SHOWN: Final = 12
"""Columns that a sentence names at most."""
OPTIONAL: Final = ("title", "licence")
"""Columns that are kept where a table has them."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    url: str
    caption: str | None = None
    group: str = ""
    title: str = ""
    licence: str = ""
    where: str = ""
    """file and line, for messages"""
    fault: str = ""
    """why it cannot be used, as a named reason; empty when it can"""


@dataclass(frozen=True)
class Table:
    """What a first look at all of a table told."""

    files: tuple[Path, ...]
    source: SourceConfig
    rows: int
    fingerprint: str
    """changes with any byte"""

    def read(self) -> Iterator[Row]:
        """All rows, file by file in the order of their names."""
        for path in self.files:
            yield from _rows(path, self.source)

    def parts(self, size: int) -> Iterator[tuple[Row, ...]]:
        """All rows, so many at a time."""
        rows = self.read()
        while part := tuple(islice(rows, size)):
            yield part


def open_table(source: SourceConfig) -> Table:
    """Look a table over: its columns, its quoting, how many rows there are.

    Raises:
        DataError: nothing there, a column is missing, a stray quote, or not the file that its name says.
    """
    assert source.path is not None
    files = _files(source.path)
    looked = [_survey(path, source) for path in files]
    rows = sum(count for count, _ in looked)
    if not rows:
        raise DataError(f"{source.path}: has no rows, expected addresses of pictures; name another table.")
    named = [(path.name, digest) for path, (_, digest) in zip(files, looked, strict=True)]
    return Table(files, source, rows, hash_of(named))


def _kind(path: Path) -> str:
    """The suffix that tells the format."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _files(path: Path) -> tuple[Path, ...]:
    known = (*_CSV, *_JSONL, *_PARQUET)
    if path.is_dir():
        found = tuple(sorted(one for one in path.iterdir() if _kind(one) in known and one.is_file()))
    elif not path.exists():
        raise DataError(f"{path}: there is no such table; correct source.path.")
    else:
        found = (path,) if _kind(path) in known else ()
    if not found:
        raise DataError(
            f"{path}: is no table, expected {', '.join(known)} (or .gz of a text), or a folder of them; "
            "correct source.path."
        )
    return found


def _survey(path: Path, source: SourceConfig) -> tuple[int, str]:
    """How many rows a file has, and the SHA-256 of what it holds."""
    digest = hashlib.sha256()
    if _kind(path) in _PARQUET:
        count = _open_parquet(path, source).metadata.num_rows
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return count, digest.hexdigest()

    def counted() -> Iterator[bytes]:
        for line in _lines(path):
            digest.update(line)
            yield line

    if _kind(path) in _JSONL:
        count = 0
        for line in counted():
            if line.strip():
                if not count:
                    _check_first(path, line, source)
                count += 1
        return count, digest.hexdigest()
    return sum(1 for _ in _csv_rows(path, counted(), source)), digest.hexdigest()


def _rows(path: Path, source: SourceConfig) -> Iterator[Row]:
    if _kind(path) in _PARQUET:
        yield from _parquet_rows(path, source)
    elif _kind(path) in _JSONL:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield _json_row(line, source, f"{path.name}:{number}")
    else:
        yield from _csv_rows(path, _lines(path), source)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a text, unzipped where it is zipped."""
    stream: IO[bytes]
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:  # type: ignore[assignment]
        try:
            first = stream.readline().removeprefix(b"\xef\xbb\xbf")
            yield from chain([first] if first else [], stream)
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise DataError(f"{path}: is not whole gzip ({error}); fetch or pack it again.") from None


def _row(values: Mapping[str, Any], source: SourceConfig, where: str) -> Row:
    """A row from its columns by name."""

    def text(column: str | None) -> str:
        value = values.get(column) if column else None
        return "" if value is None else str(value).strip()

    url = text(source.url_column)
    caption, group = text(source.caption_column) or None, text(source.group_column)
    title, licence = text("title"), text("licence")
    fault = "" if url else "no_address"
    try:
        "".join((url, caption or "", group, title, licence)).encode()
    except UnicodeEncodeError:
        fault = "not_utf8"
    if fault:
        return Row(url="", where=where, fault=fault)
    return Row(url, caption, group, title, licence, where)


def _need(columns: Sequence[str], source: SourceConfig, path: Path) -> None:
    """Raise when a column that the config names is not there."""
    for setting in ("url_column", "caption_column", "group_column"):
        name = getattr(source, setting)
        if name is not None and name not in columns:
            shown = ", ".join(columns[:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
            what = " (null when there is none)" if setting != "url_column" else ""
            raise DataError(
                f"{path}: has the columns {shown or 'of nothing'}, expected {name}; "
                f"name the right one in source.{setting}{what}."
            )


def _csv_rows(path: Path, lines: Iterator[bytes], source: SourceConfig) -> Iterator[Row]:
    try:
        header = next(lines, b"").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: is not UTF-8 ({error}); save the table as UTF-8.") from None
    separator, columns = _header(header, source)
    _need(columns, source, path)
    text = (line.decode("utf-8", errors="surrogateescape") for line in lines)
    reader = csv.reader(text, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 2
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: the row that begins here has a stray quote ({error}), expected quotes in "
                "pairs around a whole field; mend that row."
            ) from None
        where = f"{path.name}:{line}"
        if len(fields) == len(columns):
            yield _row(dict(zip(columns, fields, strict=True)), source, where)
        elif fields:
            yield Row(url="", where=where, fault="wrong_column_count")


def _header(line: str, source: SourceConfig) -> tuple[str, list[str]]:
    """The separator and the columns that it parts the first line into."""
    others = sorted({letter for letter in line if not letter.isalnum() and letter not in '"_-\r\n'})
    wanted = {source.url_column, source.caption_column, source.group_column} - {None}
    best: tuple[tuple[int, int], str, list[str]] | None = None
    for separator in dict.fromkeys([*_SEPARATORS, *others]):
        try:
            columns = [column.strip() for column in next(csv.reader([line], delimiter=separator), [])]
        except (csv.Error, ValueError, TypeError):
            continue
        found = (len(wanted.intersection(columns)), len(columns) if separator in _SEPARATORS else 0)
        if best is None or found > best[0]:
            best = found, separator, columns
    assert best is not None
    return best[1], best[2]


def _check_first(path: Path, line: bytes, source: SourceConfig) -> None:
    """Raise when the first row of JSON lines has not what the config names."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: begins with a line that is not JSON ({error}); expected an object a line."
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: begins with a {type(value).__name__}, expected an object a line.")
    if source.url_column not in value:
        _need(list(value), source, path)


def _json_row(line: bytes, source: SourceConfig, where: str) -> Row:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Row(url="", where=where, fault="not_utf8")
    except (ValueError, RecursionError):
        return Row(url="", where=where, fault="broken_line")
    if not isinstance(value, dict):
        return Row(url="", where=where, fault="broken_line")
    return _row(value, source, where)


def _open_parquet(path: Path, source: SourceConfig) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise _not_whole(path, error) from None
    _need(opened.schema_arrow.names, source, path)
    return opened


def _not_whole(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(f"{path}: is not a whole Parquet file ({reason}); fetch it again.")


def _parquet_rows(path: Path, source: SourceConfig) -> Iterator[Row]:
    import pyarrow

    opened = _open_parquet(path, source)
    named = (source.url_column, source.caption_column, source.group_column, *OPTIONAL)
    columns = [name for name in dict.fromkeys(named) if name in opened.schema_arrow.names]
    batches = opened.iter_batches(_BATCH, columns=columns, use_threads=False)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise _not_whole(path, error) from None
        if batch is None:
            return
        values = [column.to_pylist() for column in batch.columns]
        for fields in zip(*values, strict=True):
            number += 1
            where = f"{path.name}, row {number}"
            yield _row(dict(zip(batch.schema.names, fields, strict=True)), source, where)
