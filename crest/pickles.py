"""Files of torch.save as tensors, without unpickling: nothing that such a file names is imported or run.

Reads torch's zip files (since 1.6) and the form before them. Tensors of a zip file are views of the file, so
that 4 GB of weights take no memory before they are used. Refuses TorchScript, compressed members, and all
that crest/pickle_machine.py refuses.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch import Tensor

from crest.errors import WeightsError
from crest.pickle_machine import (
    MAX_BYTES,
    VERSION,
    VERSION_PARTS,
    Inert,
    PlannedTensor,
    RefusedError,
    Storage,
    read_data,
)

MAX_DEPTH: Final = 64
"""Of nested dicts and lists."""
MAX_VALUES: Final = 4_000_000
"""What a file tells, each value counted as often as it would be printed."""
_MAPPED_BYTES: Final = 1 << 30
"""Mapped at once: a larger private mapping than the machine's memory is refused by Linux."""
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001


def read_pickle(path: Path) -> dict[Any, Any]:
    """What torch.save wrote: dicts, lists, tuples, text, numbers, and tensors on the CPU.

    A packaging Version comes back as its text; instances of other classes (see INERT) as inert words. Writing
    to a tensor changes memory, never the file.

    Args:
        path: a file whose outermost value is a dict.
    Raises:
        WeightsError: it holds what could run code or exhaust memory (a RefusedError, which names it), it is
            damaged or cut short, or it is none of torch.save's.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                found = _read_zip(path, stream, size)
            else:
                found = _read_legacy(path, stream, size)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file; name another one.") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError) as error:
        raise WeightsError(f"{path}: is not whole ({error}); copy or download it again.") from None
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path}: holds a {type(found).__name__}, expected named tensors; name another file."
        )
    return found


def _read_zip(path: Path, stream: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in members or any(name.startswith("code/") for name in members):
            raise RefusedError(
                f"{path}: is a TorchScript program, expected tensors: loading it would run its code; take "
                "the same weights as safetensors or as a state dict."
            )
        if "data.pkl" not in members:
            raise WeightsError(f"{path}: is a zip file but none of torch.save; name another file.")
        if "byteorder" in members and archive.read(members["byteorder"])[:16] != b"little":
            raise WeightsError(f"{path}: was written on a big-endian machine; save it again on another.")
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED:
                raise RefusedError(
                    f"{path}: holds {info.filename} compressed, which torch.save never does and which could "
                    "grow without bound; do not load it."
                )
        if members["data.pkl"].file_size > MAX_BYTES:
            raise RefusedError(
                f"{path}: describes its tensors in more than {MAX_BYTES >> 20} MiB; do not load it."
            )
        value = read_data(io.BytesIO(archive.read(members["data.pkl"])), str(path))

    def place(storage: Storage) -> int:
        info = members.get(f"data/{storage.key}")
        if info is None or info.file_size != storage.size_bytes:
            raise _misfit(path, storage, None if info is None else info.file_size)
        # the local header repeats the name, and torch pads its extra field to align what follows
        stream.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", stream.read(4))
        first: int = info.header_offset + 30 + name_bytes + extra_bytes
        return first

    return _finished(value, path, stream, size, place)


def _read_legacy(path: Path, stream: IO[bytes], size: int) -> Any:
    where = str(path)
    stream.seek(0)
    first = stream.read(1)
    stream.seek(0)
    if first != b"\x80":
        what = "a tar of torch before 0.2" if first and tarfile.is_tarfile(path) else "none of torch.save's"
        raise WeightsError(
            f"{path}: is {what}, expected a file of tensors; name another one or copy it again."
        )
    told = [read_data(_Window(stream, where), where) for _ in range(3)]
    if told[:2] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL] or not isinstance(told[2], dict):
        raise WeightsError(f"{path}: is a pickle but none of torch.save's; name another file.")
    if told[2].get("little_endian") is not True:
        raise WeightsError(f"{path}: was written on a big-endian machine; save it again on another.")
    value = read_data(_Window(stream, where), where)
    keys = read_data(_Window(stream, where), where)
    storages = {storage.key: storage for storage in _storages(value, path)}
    if not isinstance(keys, list) or sorted(storages) != sorted(key for key in keys if isinstance(key, str)):
        raise WeightsError(f"{path}: lists other storages than its tensors use; copy or download it again.")
    places: dict[str, int] = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if count != storages[key].count:
            raise _misfit(path, storages[key], count * storages[key].dtype.itemsize)
        places[key] = stream.tell()
        stream.seek(storages[key].size_bytes, os.SEEK_CUR)
    return _finished(value, path, stream, size, lambda storage: places[storage.key])


def _misfit(path: Path, storage: Storage, found: int | None) -> WeightsError:
    what = "nothing" if found is None else f"{found} bytes"
    return WeightsError(
        f"{path}: storage {storage.key[:40]}: found {what}, expected {storage.size_bytes} bytes; copy or "
        "download it again."
    )


class _Window:
    """A stream that never hands out more than a pickle without tensors may hold."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream, self._where, self._left = stream, where, MAX_BYTES

    def read(self, size: int, /) -> bytes:
        if not 0 <= size <= self._left:
            raise RefusedError(f"{self._where}: asks for {size} bytes at once; do not load it.")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(4096)
        self._left -= len(line)
        return line


def _storages(value: Any, path: Path) -> list[Storage]:
    found = {plan.storage.key: plan.storage for plan in _Walk(path).plans(value)}
    return list(found.values())


class _Walk:
    """Looks through a value once; what is shared is looked at once and counted as often as it is told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[int, int] = {}
        self._open: set[int] = set()
        self._plans: list[PlannedTensor] = []

    def plans(self, value: Any) -> list[PlannedTensor]:
        """Every tensor in it.

        Raises:
            RefusedError: it contains itself, is nested too deep, or would be endless when printed.
        """
        if self._count(value, 0) > MAX_VALUES:
            raise RefusedError(f"{self._path}: tells more than {MAX_VALUES} values; do not load it.")
        return self._plans

    def _count(self, value: Any, depth: int) -> int:
        if isinstance(value, PlannedTensor):
            if id(value) not in self._counts:
                self._counts[id(value)] = 1
                self._plans.append(value)
            return 1
        if isinstance(value, Inert):
            # its words are kept as they are; the tensors among them stay in the file, but must be found there
            parts: Iterable[Any] = (value.args, value.state)
        elif isinstance(value, Mapping):
            parts = (part for item in value.items() for part in item)
        elif isinstance(value, (list, tuple)):
            parts = value
        else:
            return 1
        if id(value) in self._counts:
            return self._counts[id(value)]
        if depth > MAX_DEPTH or id(value) in self._open:
            raise RefusedError(
                f"{self._path}: is nested deeper than {MAX_DEPTH} levels or in itself; do not load it."
            )
        self._open.add(id(value))
        count = 1 + sum(self._count(part, depth + 1) for part in parts)
        self._open.discard(id(value))
        self._counts[id(value)] = min(count, MAX_VALUES + 1)
        return self._counts[id(value)]


@dataclass(frozen=True)
class _Placed:
    """Where the numbers of a storage lie in the file."""

    storage: Storage
    first_byte: int

    @property
    def end(self) -> int:
        return self.first_byte + self.storage.size_bytes


def _finished(value: Any, path: Path, stream: IO[bytes], size: int, place: Any) -> Any:
    """A value with real tensors in the place of planned ones."""
    plans = _Walk(path).plans(value)
    if sum(plan.storage.dtype.itemsize * _numbers(plan) for plan in plans) > 4 * size:
        raise RefusedError(
            f"{path}: declares more than four times as many numbers as it holds; do not load it."
        )
    placed = {plan.storage.key: _Placed(plan.storage, place(plan.storage)) for plan in plans}
    for one in placed.values():
        if one.end > size:
            raise WeightsError(
                f"{path}: ends at byte {size}, expected numbers up to byte {one.end}; copy or download it "
                "again."
            )
    if any(plan.storage.count != placed[plan.storage.key].storage.count for plan in plans):
        raise RefusedError(f"{path}: describes one storage twice and otherwise; do not load it.")
    mapped = _mapped(list(placed.values()), stream)
    made: dict[int, Any] = {}

    def finish(part: Any) -> Any:
        if isinstance(part, PlannedTensor):
            if id(part) not in made:
                made[id(part)] = _tensor(part, mapped[part.storage.key])
            return made[id(part)]
        if isinstance(part, Inert):
            return version_text(part) or part
        if isinstance(part, dict):
            return {finish(key): finish(one) for key, one in part.items()}
        if isinstance(part, (list, tuple)):
            return type(part)(finish(one) for one in part)
        return part

    return finish(value)


def _numbers(plan: PlannedTensor) -> int:
    count = 1
    for side in plan.shape:
        count *= side
    return count


def _mapped(placed: list[_Placed], stream: IO[bytes]) -> dict[str, Tensor]:
    """The bytes of every storage, (size,) uint8: views of private maps of the file, or of a copy where one
    would lie askew in memory.
    """
    found: dict[str, Tensor] = {}
    run: list[_Placed] = []
    for one in [*sorted(placed, key=lambda one: one.first_byte), None]:
        if one is not None and one.storage.size_bytes == 0:
            found[one.storage.key] = torch.empty(0, dtype=torch.uint8)
            continue
        if run and (one is None or one.end - run[0].first_byte > _MAPPED_BYTES):
            found |= _map(run, stream)
            run = []
        if one is not None:
            run.append(one)
    return found


def _map(run: list[_Placed], stream: IO[bytes]) -> dict[str, Tensor]:
    start = run[0].first_byte // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    end = max(one.end for one in run)
    memory = mmap.mmap(stream.fileno(), end - start, access=mmap.ACCESS_COPY, offset=start)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    found = {}
    for one in run:
        part = whole[one.first_byte - start : one.end - start]
        found[one.storage.key] = part.clone() if one.first_byte % one.storage.dtype.itemsize else part
    return found


def _tensor(plan: PlannedTensor, content: Tensor) -> Tensor:
    numbers = content.view(plan.storage.dtype)
    if plan.storage.dtype == torch.bool:
        numbers = content != 0  # any other byte is no truth value to torch
    # torch counts the offset from where the map begins, not from where this view of it does
    offset = int(numbers.storage_offset()) + plan.offset
    if plan.storage.view is not None:
        offset += plan.storage.view[1]
    return numbers.as_strided(plan.shape, plan.stride, offset)


def version_text(told: Inert) -> str | None:
    """The release that a packaging Version names, "1.1.0"; None for another instance.

    Its inside changed with packaging's releases; each of the three forms is known.
    """
    if told.name != VERSION:
        return None
    state = told.state
    parts: Any = state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = state[1]  # slots, packaging 26.0 and 26.1
    if isinstance(state, dict):
        inner = state.get("_version")
        if isinstance(inner, Inert) and inner.name == VERSION_PARTS:
            parts = inner.args
        else:
            parts = (0, state.get("_release"))
    release = parts[1] if isinstance(parts, tuple) and len(parts) > 1 else None
    if not isinstance(release, tuple) or not release or not all(type(part) is int for part in release):
        return None
    return ".".join(str(part) for part in release[:4])
