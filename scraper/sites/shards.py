"""WebDataset tars -> entries: Crest's own, those of img2dataset, and any with a picture and words a sample.

Read as a stream, so that no tar is ever held in memory. Refuses to take a damaged tar for a short one: it is
named and counted, what stood before the damage is kept, and the next one is read.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

from crest.errors import DataError
from crest.records import hash_of
from scraper.config import SourceConfig
from scraper.cut_text import tidy
from scraper.harvest import Drop
from scraper.sites import Card, Item, Listing, writable
from scraper.sites.folder import group_name
from scraper.sites.image_addresses import is_image_file, source_file

SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
PICTURE_KINDS: Final = ("png", "webp", "jpg", "jpeg", "avif", "gif", "bmp", "svg", "svgz")
"""Best first: where a sample holds the same picture twice, the lossless one is taken."""
TEXT_KINDS: Final = ("txt", "text", "caption", "cap")
TEXT_COLUMNS: Final = ("caption", "text", "title", "description", "prompt")
MAX_MEMBER_BYTES: Final = 256_000_000
_SUCCESS: Final = "success"
"""What img2dataset calls a sample that was had."""


class Shards:
    """A folder of tars, or one tar."""

    def open(self, source: SourceConfig) -> Listing:
        """List the samples in the order of the tars' names.

        Raises:
            DataError: no such folder or file, or no tar in it.
        """
        assert source.path is not None
        paths = _tars(source.path)
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return Listing(writable(_entries(paths, source.path)), hash_of(stats))


def _tars(path: Path) -> list[Path]:
    if path.is_file() and path.name.lower().endswith(SUFFIXES):
        return [path]
    found = []
    if path.is_dir():
        found = sorted(
            one for one in path.rglob("*") if one.name.lower().endswith(SUFFIXES) and one.is_file()
        )
    if not found:
        state = "holds no tar" if path.is_dir() else "is no tar" if path.exists() else "there is no such file"
        raise DataError(
            f"{path}: {state}, expected {', '.join(SUFFIXES)} files as WebDataset writes them; correct "
            "source.path."
        )
    return found


def _entries(paths: list[Path], root: Path) -> Iterator[Item | Drop]:
    for path in paths:
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        try:
            yield from _samples(path, name)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Drop("damaged_tar", f"{name}: {error}")


def _samples(path: Path, name: str) -> Iterator[Item | Drop]:
    """The samples of one tar; members that share what stands before the first dot are one sample."""
    members: dict[str, bytes] = {}
    key = ""
    with _opened(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        for info in archive:
            parts = [part for part in info.name.split("/") if part not in ("", ".", "..")]
            base = parts[-1] if parts else "."
            if not info.isfile() or base.startswith("."):
                continue
            stem, _, kind = base.partition(".")
            owner = "/".join([*parts[:-1], stem])
            if owner != key or kind in members:
                yield from _sample(members, key, name)
                members, key = {}, owner
            if info.size > MAX_MEMBER_BYTES:
                yield Drop("too_large", f"{name}#{base}")
                continue
            member = archive.extractfile(info)
            assert member is not None
            members[kind] = member.read()
    yield from _sample(members, key, name)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        is_zipped = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if is_zipped else path.open("rb")


class _Header(tarfile.TarInfo):
    """A tar's header; tarfile takes one that is damaged or cut off for the end of the tar."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if str(error) == "end of file header":
                raise  # the two empty blocks that end a tar
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


def _sample(members: Mapping[str, bytes], key: str, tar: str) -> Iterator[Item | Drop]:
    if not members:
        return
    where = f"{tar}#{key}"
    try:
        meta = _meta(members)
    except (ValueError, RecursionError) as error:
        yield Drop("broken_json", f"{where}: {error}")
        return
    pictures = sorted(
        (kind for kind in members if _last(kind) in PICTURE_KINDS),
        key=lambda kind: (kind.count("."), PICTURE_KINDS.index(_last(kind))),
    )
    if not pictures:
        status = str(meta.get("status") or "")
        yield Drop(group_name(status) if status and status != _SUCCESS else "no_image", where)
        return
    texts, writer, others = _words(members, meta)
    card = _card(meta, key, tar, texts, writer)
    yield Item(card, f"{where}.{pictures[0]}", _held(members[pictures[0]]))
    yield from (Drop("caption_of_another_writer", f"{where}: {text}") for text in others)
    for kind in pictures[1:]:
        if _last(kind) != kind:  # not another rendition of the same one
            yield Drop("further_picture", f"{where}.{kind}")


def _last(kind: str) -> str:
    return kind.lower().rpartition(".")[2]


def _held(content: bytes) -> Any:
    return lambda: content


def _meta(members: Mapping[str, bytes]) -> dict[str, Any]:
    content = members.get("json")
    if content is None:
        return {}
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, expected an object")
    return {str(name).lower(): one for name, one in value.items()}


def _card(meta: Mapping[str, Any], key: str, tar: str, texts: list[str], writer: str) -> Card:
    url = str(meta.get("image_url") or meta.get("url") or "")
    headers = meta.get("headers")
    title = str(meta.get("title") or "")
    return Card(
        image_urls=(url,) if url else (),
        title=title if title and title not in texts else key.rpartition("/")[2],
        caption=texts[0] if texts else None,
        further_captions=tuple(texts[1:]),
        written_by=writer,
        kind=str(meta.get("kind") or ""),
        years=str(meta.get("years") or ""),
        page_url=str(meta.get("page_url") or meta.get("source_url") or ""),
        group=str(meta.get("group") or "") or group_name(f"{_stem(tar)}/{key}"),
        licence=str(meta.get("licence") or meta.get("license") or ""),
        source_file=str(meta.get("source_file") or "") or _source_file(url),
        source=str(meta.get("source") or ""),
        fetched_at=str(meta.get("fetched_at") or ""),
        headers={str(name): str(one) for name, one in headers.items()} if isinstance(headers, dict) else {},
    )


def _words(members: Mapping[str, bytes], meta: Mapping[str, Any]) -> tuple[list[str], str, list[str]]:
    """What is said of a sample, each once, who wrote it (empty: as the config says), and others' words."""
    listed = meta.get("captions")
    if isinstance(listed, list) and listed and all(isinstance(one, dict) for one in listed):
        return _signed(listed, meta)
    found = [members[kind].decode("utf-8", "replace") for kind in TEXT_KINDS if kind in members]
    found += [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    for column in TEXT_COLUMNS:
        if column == "title" and any(map(tidy, found)):
            continue  # beside a caption it is a name
        value = meta.get(column)
        found += [str(one) for one in (value if isinstance(value, list) else [value]) if one]
    return [text for text in dict.fromkeys(map(tidy, found)) if text], str(meta.get("written_by") or ""), []


def _signed(captions: list[dict[str, Any]], meta: Mapping[str, Any]) -> tuple[list[str], str, list[str]]:
    """The captions of Crest's own shards by the writer of the source's words, else of the heaviest one.

    A record has one writer; what a captioner or a rule added beside a person's words can be made again.
    """
    by_writer: dict[str, dict[str, None]] = {}
    for one in captions:
        origin = str(one.get("origin") or "")
        writer = (str(one.get("model") or "") or "model") if origin == "model" else origin
        text = tidy(str(one.get("text") or ""))
        if text:
            by_writer.setdefault(writer, {})[text] = None
    own = str(meta.get("written_by") or "human")
    writer = own if own in by_writer else next(iter(by_writer), "")
    texts = list(by_writer.pop(writer, {}))
    return texts, writer, [text for others in by_writer.values() for text in others]


def _stem(tar: str) -> str:
    return str(PurePosixPath(tar).with_name(PurePosixPath(tar).name.partition(".")[0]))


def _source_file(url: str) -> str:
    """What renditions of one file share; unknown where the query may be what tells files apart."""
    is_told_by_path = is_image_file(url) or "?" not in url
    try:
        return source_file(url) if is_told_by_path else ""
    except ValueError:  # a malformed address
        return ""
