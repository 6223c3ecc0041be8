"""What crosses a border between rooms: records, captions, manifests, embedding shards.

Rooms meet only through these files. Every writer goes to a `.part` name and renames; a folder's manifest.json
is written last, so that its presence means done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from crest.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Record:
    """One picture that a source gave, with all that the source said about it.

    `id` is the hash of the image bytes: the only join key between rooms, never a position.
    """

    id: str
    image: str
    """where its bytes lie, relative to the data folder: a path, or `parts/000012.tar#512+20480`, a place in
    an uncompressed tar (first byte, number of bytes); `picture_bytes` reads both"""
    source: str
    """name of the site or folder that it came from"""
    caption: str | None
    """the source's own words; None when it has none"""
    group: str
    """what must not be split over train and test (a club with all its eras)"""
    page_url: str = ""
    image_url: str = ""
    title: str = ""
    kind: str = ""
    """primary, alternate or wordmark, where the source tells"""
    years: str = ""
    licence: str = ""
    width_px: int = 0
    height_px: int = 0
    further_captions: tuple[str, ...] = ()
    """the source's own words beside `caption`, where it has several"""
    written_by: str = "human"
    """who wrote the source's words: "human", "rule", or the name of a model"""
    source_file: str = ""
    """what renditions of one file share: its address without size, suffix and query; empty when unknown"""
    sha256: str = ""
    """of the bytes as the source gave them, 64 hex digits"""
    fetched_at: str = ""
    """when they were had, ISO 8601 in UTC; empty for a file of this machine"""
    headers: Mapping[str, str] = field(default_factory=dict)
    """the HTTP headers that matter, lower-case name -> value"""
    frames: int = 1
    """more than one for an animation, of which the first frame is the picture"""


@dataclass(frozen=True)
class Caption:
    """One description of one picture."""

    id: str
    text: str
    origin: str
    """who wrote it: "human", "rule" (from measurements or metadata) or "model" """
    model: str = ""
    """name of the model, as its user gave it; empty when no model wrote it"""
    revision: str = ""
    """what pins the model: hash of its weights, commit of its repository, or the API's answer"""
    prompt: str = ""
    """what the model was asked; empty for one that takes no prompt"""
    weight: float = 1.0
    """how often training should draw it, beside the others of its picture"""


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds and what it was made from."""

    kind: str
    """"records", "captions", "shards", "embeddings", "weights", "samples", ..."""
    hash: str
    """over all content, so that another folder can name it as its parent"""
    counts: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    """named reason -> how many items went no further"""
    parents: Mapping[str, str] = field(default_factory=dict)
    """what it was made from: name -> hash"""
    files: Mapping[str, int] = field(default_factory=dict)
    """file name -> size in bytes, relative to the folder"""
    details: Mapping[str, Any] = field(default_factory=dict)


def content_id(content: bytes) -> str:
    """The id of a picture: the first 16 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def hash_of(*parts: Any) -> str:
    """A stable hash of JSON-able values: the first 16 hex digits of the SHA-256 of their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]  # a file may be called so


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Pictures:
    """Reads the pictures of records; the tar that was read last stays open until the end of the `with`.

    Args:
        folder: the data folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name = ""
        self._tar: IO[bytes] | None = None

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def read(self, image: str) -> bytes:
        """The bytes of a record's picture.

        Args:
            image: `Record.image`.
        Raises:
            DataError: there is no such file or place.
        """
        name, _, place = image.partition("#")
        path = self.folder / name
        try:
            if not place:
                return path.read_bytes()
            if name != self._name or self._tar is None:
                self.__exit__()
                self._name, self._tar = name, path.open("rb", buffering=0)
        except FileNotFoundError:
            raise DataError(
                f"{path}: there is no such file; run python -m scraper (make scrape) again."
            ) from None
        first, size_bytes = (int(number) for number in place.split("+"))
        self._tar.seek(first)
        content = self._tar.read(size_bytes)
        if len(content) != size_bytes:
            raise DataError(
                f"{path}: ends before byte {first + size_bytes} (cut short?); run python -m scraper again."
            )
        return content


def picture_bytes(folder: Path, image: str) -> bytes:
    """The bytes of one record's picture; arguments and errors as those of `Pictures.read`."""
    with Pictures(folder) as pictures:
        return pictures.read(image)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written whole or not at all: `.part`, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told without a name
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line as they come, whole or not at all; returns how many."""
    count = 0
    with whole(path) as stream:
        for row in rows:
            stream.write((json.dumps(dict(row), ensure_ascii=False) + "\n").encode())
            count += 1
    return count


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; run the step that writes it first.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error}); run the step that writes it again.") from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, naming the line that is broken."""
    try:
        stream = path.open("rb")  # bytes, so that text that is no UTF-8 is refused on its own line
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; run the step that writes it first.") from None
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}:{number}: is not JSON ({error}); mend or remove that line."
                ) from None
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number}: holds a {type(value).__name__}, expected an object.")
            yield value


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records.jsonl."""
    return write_jsonl(path, (dataclasses.asdict(record) for record in records))


def read_records(path: Path) -> list[Record]:
    """Read records.jsonl."""
    return list(stream_records(path))


def stream_records(path: Path) -> Iterator[Record]:
    """Read records.jsonl one at a time."""
    for row in read_jsonl(path):
        yield record_of(row, path)


def record_of(row: dict[str, Any], path: Path) -> Record:
    """The record of one row of `path`."""
    record: Record = _typed(Record, {**row, "further_captions": tuple(row.get("further_captions", ()))}, path)
    return record


def write_captions(path: Path, captions: Iterable[Caption]) -> int:
    """Write captions.jsonl."""
    return write_jsonl(path, (dataclasses.asdict(caption) for caption in captions))


def read_captions(path: Path) -> list[Caption]:
    """Read captions.jsonl: in the order of the records, those of one picture together, the heaviest first."""
    return list(stream_captions(path))


def stream_captions(path: Path) -> Iterator[Caption]:
    """Read captions.jsonl one at a time."""
    for row in read_jsonl(path):
        caption: Caption = _typed(Caption, row, path)
        yield caption


def _typed(kind: Any, row: dict[str, Any], path: Path) -> Any:
    try:
        return kind(**row)
    except TypeError as error:
        raise DataError(
            f"{path}: a line is no {kind.__name__} ({error}); run the step that writes it again."
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json: the last act of a step."""
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))


def read_manifest(folder: Path, kind: str, made_by: str) -> Manifest:
    """Read a folder's manifest.

    Args:
        folder: what another step wrote.
        kind: what the folder must hold.
        made_by: the command that would make it, for the error.
    Raises:
        DataError: no manifest (not finished), or of another kind.
    """
    path = folder / "manifest.json"
    if not path.exists():
        state = "is not finished" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: {state} (no manifest.json); run {made_by} first.")
    manifest: Manifest = _typed(Manifest, read_json(path), path)
    if manifest.kind != kind:
        raise DataError(
            f"{folder}: holds {manifest.kind}, expected {kind}; run {made_by} or name another folder."
        )
    for name, size_bytes in manifest.files.items():
        file = folder / name
        found = file.stat().st_size if file.exists() else None
        if found != size_bytes:
            what = "is missing" if found is None else f"is {found} bytes"
            raise DataError(f"{file}: {what}, expected {size_bytes} bytes (cut short?); run {made_by} again.")
    return manifest
