"""One chunk of the plan -> tars: a pure function of its job, for any worker that sees the folder.

A picture that fits and has the wanted format is copied byte for byte. Refuses to crop, to flatten what may
keep its alpha, and to leave half a tar.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from crest.errors import DataError
from crest.records import (
    Caption,
    Pictures,
    Record,
    content_id,
    file_hash,
    hash_of,
    read_json,
    record_of,
    write_json,
)
from scraper.config import PackConfig
from scraper.plan import NO_CAPTIONS, caption_of, lines_in, own_words, usable

if TYPE_CHECKING:
    from PIL.Image import Image

    from crest.shards import Sample

WORK_DIR: Final = "chunks"
_KINDS: Final = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
_JPEG_QUALITY: Final = 95
_TAGS: Final = (b"Exif", b"eXIf", b"EXIF", b"iCCP", b"ICCP", b"ICC_PROFILE")


@dataclass(frozen=True)
class Chunk:
    """Pictures that lie together in the order of their split."""

    folder: Path
    """the data folder"""
    name: str
    """`train-000012`; its tars are called `train-000012.000.tar` and so on until they are numbered"""
    lines_hash: str
    """of the records and captions that it reads"""
    places: Sequence[tuple[int, int, int]]
    """of each picture: where the lines of its record, of its first caption and of the record that names its
    group begin"""
    settings: PackConfig

    @property
    def key(self) -> str:
        """Changes with anything that the tars depend on."""
        return hash_of(self.name, self.lines_hash, list(self.places), self.settings.model_dump(mode="json"))

    @property
    def work_dir(self) -> Path:
        """Where its tars wait for their numbers."""
        return self.folder / "shards" / WORK_DIR


@dataclass(frozen=True)
class PackedTar:
    """A tar that a chunk became."""

    name: str
    samples: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Packed:
    """What a chunk became."""

    tars: tuple[PackedTar, ...]
    damaged: tuple[tuple[str, str], ...]
    """id and sentence of each picture that is no whole picture any more"""


def pack_chunk(chunk: Chunk) -> Packed:
    """Write a chunk's tars, unless they are there already, and its note, last.

    Raises:
        OSError: the disk is full; nothing half-written stays.
    """
    note = chunk.work_dir / f"{chunk.name}.json"
    done = _finished(note, chunk)
    if done is not None:
        return done
    note.unlink(missing_ok=True)
    tars, damaged = _write(chunk)
    packed = Packed(tuple(tars), tuple(damaged))
    if not damaged:  # what is damaged is looked at again: it may have been mended
        write_json(note, {"key": chunk.key, "tars": [vars(tar) for tar in tars]})
    return packed


def _finished(note: Path, chunk: Chunk) -> Packed | None:
    """What an interrupted run had made of this chunk; None when it has to be done."""
    try:
        noted = read_json(note)
    except DataError:
        return None
    tars = tuple(PackedTar(**tar) for tar in noted["tars"])
    if noted["key"] != chunk.key:
        return None
    for tar in tars:
        path = chunk.work_dir / tar.name
        if not path.exists() or path.stat().st_size != tar.size_bytes:
            return None
    return Packed(tars, ())


def _write(chunk: Chunk) -> tuple[list[PackedTar], list[tuple[str, str]]]:
    from crest.tars import TarPart, entry_of

    largest = chunk.settings.shard_size_mb * 1e6
    tars: list[PackedTar] = []
    damaged: list[tuple[str, str]] = []
    entries = (entry_of(sample.id, sample.members()) for sample in _samples(chunk, damaged))
    entry = next(entries, None)
    while entry is not None:
        path = chunk.work_dir / f"{chunk.name}.{len(tars):03d}.tar"
        with TarPart(path) as part:
            while entry is not None and (not part.samples or part.size_with(entry) <= largest):
                part.add(entry)
                entry = next(entries, None)
            size_bytes = part.finish()
        tars.append(PackedTar(path.name, part.samples, size_bytes, file_hash(path)))
    return tars, damaged


def _samples(chunk: Chunk, damaged: list[tuple[str, str]]) -> Iterator[Sample]:
    from crest.shards import Sample

    with contextlib.ExitStack() as open_files:
        records = _Rows(chunk.folder / "records.jsonl", open_files)
        captions = _Rows(chunk.folder / "captions.jsonl", open_files)
        pictures = open_files.enter_context(Pictures(chunk.folder))
        for record_at, caption_at, namer_at in chunk.places:
            record = _record_at(records, record_at)
            group = record.group if namer_at == record_at else _record_at(records, namer_at).group
            words = own_words(record) if caption_at == NO_CAPTIONS else _captions_at(captions, caption_at)
            words = usable(words, chunk.settings)
            try:
                image = fitted(record, pictures, chunk.settings)
            except DataError as error:
                damaged.append((record.id, str(error)))
                continue
            meta = _meta(record, group, words)
            yield Sample(record.id, image, words[0].text, meta, chunk.settings.format)


class _Rows:
    """Rows of a JSON-lines file, found by where they begin; opened when the first is asked for."""

    def __init__(self, path: Path, open_files: contextlib.ExitStack) -> None:
        self.path, self._open_files = path, open_files
        self._stream: IO[bytes] | None = None

    def at(self, start: int) -> Iterator[dict[str, Any]]:
        """The rows from this byte on."""
        if self._stream is None:
            self._stream = self._open_files.enter_context(self.path.open("rb"))
        return (row for _, _, row in lines_in(self._stream, self.path, start))


def _record_at(rows: _Rows, at: int) -> Record:
    return record_of(next(rows.at(at)), rows.path)


def _captions_at(rows: _Rows, at: int) -> list[Caption]:
    captions: list[Caption] = []
    for row in rows.at(at):
        caption = caption_of(row, rows.path)
        if captions and caption.id != captions[0].id:
            break
        captions.append(caption)
    return captions


def _meta(record: Record, group: str, captions: Sequence[Caption]) -> dict[str, Any]:
    """All that is known of a picture, as its JSON member holds it."""
    first = captions[0]
    words = [{name: value for name, value in vars(one).items() if name != "id"} for one in captions]
    return {
        **vars(record),
        "group": group,
        "source_group": record.group,
        "source_caption": record.caption,
        "caption": first.text,
        "caption_origin": {"origin": first.origin, "model": first.model},
        "captions": words,
    }


def fitted(record: Record, pictures: Pictures, settings: PackConfig) -> bytes:
    """A picture in the wanted format, its longest side at most `side_px`.

    Raises:
        DataError: its bytes are gone, changed or no whole picture.
    """
    content = pictures.read(record.image)
    where = f"{pictures.folder}/{record.image}"
    is_itself = content_id(content) == record.id
    is_fitted = not is_itself and record.image.startswith("parts/")  # by scraper/part.py
    size = (record.width_px, record.height_px)
    if not is_itself:
        size = _look_for_damage(record, content, where)
    is_ready_made = is_ready(content, settings.format) and (record.frames == 1 or is_fitted)
    longest = max(size)
    if (is_itself or is_fitted) and is_ready_made and 0 < longest <= settings.side_px:
        return content  # its bytes are those that were decoded when it was found
    from crest.images import decode, shrunk, size_within

    picture = decode(content, where)
    longest = max(picture.size)
    if longest > settings.side_px:
        fit = shrunk(picture, size_within(picture.size, settings.side_px))
        return encoded(fit, settings.format)
    return content if is_ready_made else encoded(picture, settings.format)


def is_ready(content: bytes, kind: str) -> bool:
    """Whether a picture has the wanted format and nothing that few readers heed.

    What a tag turns or a profile colours, decode() shows as it is meant; it drops both.
    """
    if _format_of(content) != kind:
        return False
    said = _beside_pixels(content) if kind == "png" else content
    return not any(tag in said for tag in _TAGS)


def _beside_pixels(content: bytes) -> bytes:
    """A PNG without what its IDAT chunks hold, which may spell anything."""
    pieces, at = [], 8
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        pieces.append(content[at : at + 8] if content[at + 4 : at + 8] == b"IDAT" else content[at:end])
        at = end
    return b"".join(pieces)


def _look_for_damage(record: Record, content: bytes, where: str) -> tuple[int, int]:
    """Width and height; refuses bytes that are not those that were scraped.

    Only a drawn SVG and what was fitted go by the id of their source.
    """
    from PIL import Image

    name = Path(record.image.partition("#")[0])
    if name.stem == record.id and name.suffix != ".png":
        raise DataError(f"{where}: is not the picture that was scraped (its bytes changed); fetch it again.")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()  # a PNG's checksums, which decoding does not look at
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: is not a whole picture ({error}); fetch it again or remove it.") from None


def _format_of(content: bytes) -> str:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else ""


def encoded(picture: Image, kind: str) -> bytes:
    """A picture as PNG or lossless WebP with its alpha, or as JPEG flattened on white; without metadata."""
    from crest.images import flatten

    # runs alone are sought: flat art becomes smaller than at level 3 with matches, in less time
    options: dict[str, Any] = {"compress_level": 1, "compress_type": zlib.Z_RLE}
    if kind == "webp":
        options = {"lossless": True, "exact": True, "method": 2}
    elif kind == "jpg":
        # colours at full size: flat art shows halved ones as fringes
        picture, options = flatten(picture), {"quality": _JPEG_QUALITY, "subsampling": 0}
    stream = io.BytesIO()
    picture.save(stream, format=_KINDS[kind], **options)
    return stream.getvalue()
