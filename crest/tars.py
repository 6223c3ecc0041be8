"""Tar files of samples, as WebDataset lays them out: members `<key>.<kind>`, one sample after the other.

The only file that knows webdataset. Its writer serves where one process writes (`write_tar`); the workers of
a pack write the same bytes by `TarPart`, because importing webdataset, and torch with it, would cost each of
them seconds. Refuses to end silently where a header is damaged, as both webdataset's reader and tarfile do.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Final

from crest.errors import DataError

OWNER: Final = "crest"
HEADER_BYTES: Final = tarfile.BLOCKSIZE
"""Of an entry's first member, before its content."""
MADE_BY: Final = "python -m scraper.pack (make shards)"
_MODE: Final = 0o444
_SIZE: Final = slice(124, 135)
_CHECKSUM: Final = slice(148, 156)
"""Where a header of POSIX 1003.1-1988 has a member's size and the sum of its own bytes."""


class TarPart:
    """A tar in the making under a `.part` name: `finish()` gives it its name, leaving without it removes it.

    The bytes depend on the samples alone: no times, no owners.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self._part = path.with_name(path.name + ".part")
        self._stream: IO[bytes] = self._part.open("wb")
        self._size_bytes = 0

    def __enter__(self) -> TarPart:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with contextlib.suppress(OSError):  # a full disk fails once more when what is buffered is written
            self._stream.close()
        self._part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self.path)  # a full disk is told without a name

    def size_with(self, entry: bytes) -> int:
        """Bytes that the finished tar would have with one more entry."""
        size_bytes = self._size_bytes + len(entry) + 2 * tarfile.BLOCKSIZE
        return -(-size_bytes // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def add(self, entry: bytes) -> int:
        """Append one sample, as `entry_of` made it; returns the byte at which it begins."""
        start = self._size_bytes
        self._write(entry)
        self.samples += 1
        return start

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._size_bytes += len(content)

    def finish(self) -> int:
        """Close and rename; returns the size in bytes."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._size_bytes % tarfile.RECORDSIZE))
        self._stream.flush()
        os.fsync(self._stream.fileno())  # a full disk may only tell now
        self._stream.close()
        self._part.replace(self.path)
        return self._size_bytes


def entry_of(key: str, members: Mapping[str, bytes], mtime: float = 0) -> bytes:
    """One sample as it lies in a tar: its members in the order of their kinds, each after its header.

    Args:
        key: name of the sample.
        members: kind -> content.
        mtime: time of every member; a float makes tarfile write one more header for each.
    """
    pieces = []
    for kind in sorted(members):
        content = members[kind]
        pieces += [
            _header(f"{key}.{kind}", len(content), mtime),
            content,
            bytes(-len(content) % tarfile.BLOCKSIZE),
        ]
    return b"".join(pieces)


def _header(name: str, size_bytes: int, mtime: float) -> bytes:
    """A member's header: where that is enough, tarfile's of a nameless empty one, quickly filled in."""
    is_plain = name.isascii() and len(name) <= tarfile.LENGTH_NAME and size_bytes < 8**11
    if not is_plain or mtime or isinstance(mtime, float):
        return _tarfile_header(name, size_bytes, mtime)
    header, letters, digits = bytearray(_nameless()), name.encode(), b"%011o" % size_bytes
    header[: len(letters)] = letters
    header[_SIZE] = digits
    header[_CHECKSUM] = b"%06o\0 " % (_nameless_sum() + sum(letters) + sum(digits))
    return bytes(header)


def _tarfile_header(name: str, size_bytes: int, mtime: float) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_bytes, _MODE, mtime
    info.uname = info.gname = OWNER
    return info.tobuf(tarfile.PAX_FORMAT)


@cache
def _nameless() -> bytes:
    return _tarfile_header("", 0, 0)


@cache
def _nameless_sum() -> int:
    """What a header sums up to without name and size, blanks standing in for the sum itself."""
    header = bytearray(_nameless())
    header[_SIZE], header[_CHECKSUM] = bytes(11), b" " * 8
    return sum(header)


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], mtime: float = 0) -> int:
    """Write a tar of (key, kind -> content), whole or not at all; returns its size in bytes."""
    import webdataset

    part = path.with_name(path.name + ".part")
    try:
        with (
            part.open("wb") as stream,
            webdataset.TarWriter(stream, mtime=mtime, user=OWNER, group=OWNER, encoder=False) as writer,
        ):
            for key, members in samples:
                writer.write({"__key__": key, **members})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, kind -> content) of every sample, in the order in which they lie there.

    Raises:
        DataError: not a tar, cut short, or a damaged header (what came before it has been yielded).
    """
    key, members = "", dict[str, bytes]()
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                if not info.isfile():
                    continue
                folder, _, name = info.name.rpartition("/")
                stem, _, kind = name.partition(".")
                owner = f"{folder}/{stem}" if folder else stem
                if owner != key or kind in members:
                    if members:
                        yield key, members
                    key, members = owner, {}
                handle = archive.extractfile(info)
                assert handle is not None
                members[kind] = handle.read()
            _check_end(stream, archive.offset)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; run {MADE_BY} again.") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: is not a whole tar ({error}); run {MADE_BY} again.") from None
    if members:
        yield key, members


def _check_end(stream: IO[bytes], offset: int) -> None:
    """Raise where the last header is not the end of the archive: tarfile takes a damaged one for it."""
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged header at byte {offset}")
