"""Tables of picture and caption -> rows: any separator, with or without a header, quoted or not.

What a plain CSV reader would break at or lose is read where only one reading is left: an unquoted caption
that holds the separator, a stray quote. Where two readings are left the line is named, nothing is guessed.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crest.errors import DataError

NAME_COLUMNS: Final = (
    *("file_name", "filename", "filepath", "file_path", "file", "image_path", "image_file", "image_name"),
    *("image", "img", "path"),
)
TEXT_COLUMNS: Final = ("text", "texts", "caption", "captions", "description", "prompt")
TITLE_COLUMN: Final = "title"
"""A caption where there is no column of captions: open_clip's own examples call it so."""
PICTURE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".svg", ".svgz"}
    | {".tif", ".tiff", ".ico", ".heic", ".jxl"}
)
"""The last ones can't be read; they are listed so that they are counted."""
_SEPARATORS: Final = ("\t", ",", ";", "|")
_PICTURE_THEN: Final = re.compile(
    r"""\s*(?P<quote>["']?)(?P<name>.+?(?:"""
    + "|".join(re.escape(suffix) for suffix in sorted(PICTURE_SUFFIXES))
    + r"))(?P=quote)(?P<between>[ ]*[\t,;|][\s,;|]*|[ ]+)",
    re.IGNORECASE,
)
"""A row without a header: the name of a picture, and what stands between it and the caption."""
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """One row of a table, or of JSON lines."""

    where: str
    """file and line"""
    name: str
    """what it calls its picture"""
    texts: tuple[str, ...]
    others: Mapping[str, Any]
    """further columns by lower-case name"""


@dataclass(frozen=True)
class _Shape:
    separator: str
    columns: tuple[str, ...]
    has_header: bool

    @property
    def is_pair(self) -> bool:
        """Whether there is a picture and one thing more: the rest of a line can only be its caption."""
        return len(self.columns) == 2


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        DataError: in another encoding.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
        if "\0" in text:
            raise DataError(f"{path}: holds zero bytes (UTF-16 without its mark?); save it as UTF-8.")
        return text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8 (byte {content[error.start]:#04x}; Latin-1 perhaps); "
            "save it as UTF-8."
        ) from None


def row_of(columns: Mapping[str, Any], where: str) -> Row:
    """A row by its columns' names.

    Raises:
        DataError: there is no column for the picture's name.
    """
    others = {str(key).strip().lower(): value for key, value in columns.items()}
    named = [others.pop(key) for key in NAME_COLUMNS if key in others]
    if not named:
        shown = ", ".join(map(str, columns)) or "nothing"
        raise DataError(f"{where}: names no picture (it has {shown}), expected a file_name; add it.")
    name = next((str(one) for one in named if one), "")
    used = [key for key in TEXT_COLUMNS if others.get(key)] or [TITLE_COLUMN]
    texts = [one for key in used for one in _listed(others.pop(key, None))]
    return Row(where, name, tuple(texts), others)


def _listed(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [str(one) for one in found if one]


def read_table(path: Path, is_picture: Callable[[str], bool]) -> Iterator[Row]:
    """The rows of a CSV of any kind, in order.

    Args:
        path: the table.
        is_picture: whether a name is that of a picture; tells a new row from the rest of a quoted caption.
    Raises:
        DataError: the encoding is unknown, no column names pictures, or a row can be read in two ways.
    """
    lines = re.split(r"\r\n|\n|\r", read_text(path))
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: is empty, expected rows of picture and caption; correct or remove it.")
    shape = _shape(lines, first, path, is_picture)
    at = first + shape.has_header
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        cells, after = _record(lines, at, shape, path, is_picture)
        columns = dict(zip(shape.columns, cells, strict=False))
        yield row_of(columns, f"{path}:{at + 1}")
        at = after


def _shape(lines: list[str], first: int, path: Path, is_picture: Callable[[str], bool]) -> _Shape:
    headers = [_header(lines[first], separator) for separator in (*_SEPARATORS, " ")]
    found = max((one for one in headers if one), key=lambda one: len(one.columns), default=None)
    if found:
        return found
    for line in lines[first:]:
        row = _PICTURE_THEN.match(line)
        if row:
            return _Shape(row["between"].strip(" ")[:1] or " ", ("file_name", "text"), has_header=False)
        if not is_picture(_bare(line)):
            break
    if is_picture(_bare(lines[first])):
        return _Shape("\t", ("file_name",), has_header=False)
    raise DataError(
        f"{path}:{first + 1}: begins with {lines[first].strip()[:60]!r}, expected a header with file_name "
        "and text, or the name of a picture and its caption; add a header, or name the right table in "
        "source.captions."
    )


def _header(line: str, separator: str) -> _Shape | None:
    columns = tuple(_bare(cell).lower() for cell in line.split(separator))
    if not set(columns) & set(NAME_COLUMNS) or any(Path(cell).suffix in PICTURE_SUFFIXES for cell in columns):
        return None
    if separator == " " and not set(columns) <= {*NAME_COLUMNS, *TEXT_COLUMNS, TITLE_COLUMN}:
        return None  # a sentence that speaks of an image
    return _Shape(separator, columns, has_header=True)


def _bare(cell: str) -> str:
    return cell.strip().strip("\"'")


def _record(
    lines: list[str], at: int, shape: _Shape, path: Path, is_picture: Callable[[str], bool]
) -> tuple[list[str], int]:
    """The cells of the record that begins at a line, and the line after it."""
    after = at + 1
    while True:
        cells = _quoted("\n".join(lines[at:after]), shape.separator)
        if cells is not None or after == len(lines) or _begins_row(lines[after], shape, is_picture):
            break
        after += 1
    if cells is not None and len(cells) <= len(shape.columns) and (len(cells) > 1 or len(shape.columns) == 1):
        return [cell.strip() for cell in cells], after
    if cells is None and after > at + 1:  # its quote may end anywhere
        raise DataError(
            f"{path}:{at + 1}: opens a quote that is never closed, expected quotes in pairs; mend that line."
        )
    if shape.is_pair:
        return _pair("\n".join(lines[at:after]), shape), after
    if cells is None:
        raise DataError(
            f"{path}:{at + 1}: has a stray quote, expected quotes in pairs around a cell; mend that line."
        )
    if len(cells) > len(shape.columns):
        raise DataError(
            f"{path}:{at + 1}: has {len(cells)} cells, expected {len(shape.columns)}; quote the captions "
            f"that hold a {shape.separator!r}."
        )
    return [cell.strip() for cell in cells], after


def _quoted(record: str, separator: str) -> list[str] | None:
    """The cells of a record by the rules of CSV, or None when its quotes do not add up."""
    stream = io.StringIO(record, newline="")
    try:
        rows = list(csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _begins_row(line: str, shape: _Shape, is_picture: Callable[[str], bool]) -> bool:
    """Whether a line starts with the name of a picture, and so is no part of a quoted caption."""
    return is_picture(_bare(line.partition(shape.separator)[0]))


def _pair(line: str, shape: _Shape) -> list[str]:
    """The two cells of a line whose caption stands as it is, with separators and quotes."""
    separator = shape.separator
    if shape.columns[0] not in NAME_COLUMNS:
        text, _, name = line.rpartition(separator)
        return [text.rstrip(f"{separator} \t").strip(), _bare(name)]
    found = re.match(r"""\s*(["'])(.+?)\1\s*""", line)
    if found and line[found.end() : found.end() + 1] == separator:
        name, text = found[2], line[found.end() :]
    else:
        name, _, text = line.partition(separator)
    return [name.strip(), text.lstrip(f"{separator} \t").strip()]
