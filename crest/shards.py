"""Write and read WebDataset shards, and bring their pictures to one size, once.

The only file that knows webdataset. A sample is `<id>.png` (alpha kept), `<id>.txt` (its caption) and
`<id>.json` (what is known of it). `open_pictures` decodes a split once into a memory-mapped file of one side
length, so that every later epoch reads pixels at the speed of memory and any sample can be reached by number:
that is what makes data order a pure function of the seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crest.errors import DataError
from crest.images import decode, square, to_array
from crest.records import (
    SPLITS,
    Manifest,
    Split,
    file_hash,
    hash_of,
    read_manifest,
    write_manifest,
)

MADE_BY = "python -m scraper.pack (make shards)"
ABANDONED_S = 600
"""After so long without a byte, a half-decoded file has no writer any more."""


@dataclass(frozen=True)
class Sample:
    """One picture with its words, as it lies in a shard."""

    id: str
    image: bytes
    """a PNG file, RGBA where the source had transparency"""
    caption: str
    meta: Mapping[str, Any]


def write_shards(
    folder: Path,
    samples: Mapping[Split, Iterable[Sample]],
    *,
    samples_per_shard: int,
    parents: Mapping[str, str],
    dropped: Mapping[str, int] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write `{split}-{number:06d}.tar` files and, last, the manifest.

    The bytes depend on the samples alone (no times, no owners), so the same data gives the same hash.

    Raises:
        DataError: no sample at all.
    """
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, int] = {}
    hashes: dict[str, str] = {}
    counts: dict[str, int] = {}
    for split in SPLITS:
        shard: list[Sample] = []
        number = counts[split] = 0
        for sample in tqdm(samples.get(split, ()), desc=f"pack {split}", unit="logo", disable=None):
            shard.append(sample)
            counts[split] += 1
            if len(shard) == samples_per_shard:
                _write_one(webdataset, folder / f"{split}-{number:06d}.tar", shard, files, hashes)
                shard, number = [], number + 1
        if shard:
            _write_one(webdataset, folder / f"{split}-{number:06d}.tar", shard, files, hashes)
    if not files:
        raise DataError(f"{folder}: no sample was left to pack; look at the reasons in the dropped counts.")
    for stale in folder.glob("*.tar"):
        if stale.name not in files:
            stale.unlink()
    manifest = Manifest(
        kind="shards",
        hash=hash_of(hashes),
        counts=counts,
        dropped=dict(dropped or {}),
        parents=dict(parents),
        files=files,
        details=dict(details or {}),
    )
    write_manifest(folder, manifest)
    return manifest


def _write_one(
    webdataset: Any, path: Path, shard: list[Sample], files: dict[str, int], hashes: dict[str, str]
) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with (
            part.open("wb") as stream,
            webdataset.TarWriter(stream, mtime=0.0, user="crest", group="crest") as writer,
        ):
            for sample in shard:
                writer.write(
                    {
                        "__key__": sample.id,
                        "json": json.dumps(dict(sample.meta), ensure_ascii=False, sort_keys=True).encode(),
                        "png": sample.image,
                        "txt": sample.caption.encode(),
                    }
                )
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    files[path.name] = path.stat().st_size
    hashes[path.name] = file_hash(path)


def read_samples(folder: Path, split: Split) -> Iterator[Sample]:
    """Stream a split's samples in the order in which they were packed.

    Raises:
        DataError: shards unfinished, cut short or without a picture or caption.
    """
    import webdataset

    manifest = read_manifest(folder, "shards", MADE_BY)
    for name in sorted(name for name in manifest.files if name.startswith(f"{split}-")):
        path = folder / name
        try:
            # webdataset would rather skip a broken file than stop at it
            dataset = webdataset.WebDataset(
                str(path),
                shardshuffle=False,
                empty_check=False,
                handler=_reraise,
                nodesplitter=_whole,  # every process decodes for itself
            )
            for entry in dataset:
                yield _sample(entry, path)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{path}: is not a whole tar ({error}); run {MADE_BY} again.") from None


def _whole(urls: Iterable[Any]) -> Iterable[Any]:
    return urls


def _reraise(error: Exception) -> bool:
    raise error


def _sample(entry: Mapping[str, Any], path: Path) -> Sample:
    key = str(entry.get("__key__", "?"))
    image = next((entry[name] for name in ("png", "jpg", "jpeg", "webp") if name in entry), None)
    if image is None or "txt" not in entry:
        missing = "picture" if image is None else "caption (.txt)"
        raise DataError(f"{path}: sample {key} has no {missing}; run {MADE_BY} again.")
    meta = json.loads(entry["json"]) if "json" in entry else {}
    return Sample(key, cast(bytes, image), entry["txt"].decode(), meta)


@dataclass(frozen=True)
class Pictures:
    """A split at one size, reachable by number."""

    ids: list[str]
    captions: list[str]
    groups: list[str]
    pixels: NDArray[np.uint8]
    """(N, 3, side, side), memory-mapped"""
    shards_hash: str

    def __len__(self) -> int:
        return len(self.ids)

    def floats(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The pictures of these numbers, (B, 3, side, side) in [0, 1]."""
        return self.pixels[numbers].astype(np.float32) / 255.0


def open_pictures(folder: Path, split: Split, side_px: int) -> Pictures:
    """A split's pictures, flattened on white, padded square and resized with antialiasing, decoded once.

    The pixels are kept in `<folder>/../pixels/`, named after the shards' hash, and are made again when it
    changes.
    """
    manifest = read_manifest(folder, "shards", MADE_BY)
    cache = folder.parent / "pixels"
    stem = f"{split}-{side_px}-{manifest.hash}"
    index_path, pixel_path = cache / f"{stem}.json", cache / f"{stem}.u8"
    if not index_path.exists():
        _decode_split(folder, split, side_px, manifest.counts.get(split, 0), index_path, pixel_path)
    rows = json.loads(index_path.read_text(encoding="utf-8"))
    shape = (len(rows), 3, side_px, side_px)
    pixels: NDArray[np.uint8] = (
        np.memmap(pixel_path, dtype=np.uint8, mode="r", shape=shape) if rows else np.zeros(shape, np.uint8)
    )
    return Pictures(
        [row["id"] for row in rows],
        [row["caption"] for row in rows],
        [row["group"] for row in rows],
        pixels,
        manifest.hash,
    )


def _decode_split(
    folder: Path, split: Split, side_px: int, count: int, index_path: Path, pixel_path: Path
) -> None:
    index_path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(index_path.parent)
    # several processes may start at once: each writes its own part, the last rename wins with equal bytes
    part, index_part = (
        path.with_name(f"{path.name}.{os.getpid()}.part") for path in (pixel_path, index_path)
    )
    rows = []
    try:
        with part.open("wb") as stream:
            for sample in tqdm(
                read_samples(folder, split),
                total=count,
                desc=f"decode {split} at {side_px} px",
                unit="logo",
                disable=None,
            ):
                picture = square(decode(sample.image, f"{folder} {sample.id}"), side_px)
                stream.write(to_array(picture).tobytes())
                rows.append(
                    {"id": sample.id, "caption": sample.caption, "group": sample.meta.get("group", sample.id)}
                )
        part.replace(pixel_path)
        index_part.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        index_part.replace(index_path)
    except BaseException:
        part.unlink(missing_ok=True)
        index_part.unlink(missing_ok=True)
        raise


def _sweep(cache: Path) -> None:
    """Remove what killed processes had half decoded: a living one, here or elsewhere, writes all the time."""
    for part in cache.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


def png_bytes(picture: Any) -> bytes:
    """A PIL picture as PNG bytes, without metadata."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def batch_numbers(seed: int, size: int, batch_size: int, step: int) -> NDArray[np.int64]:
    """Which samples step `step` (from 0) reads: epochs are seeded permutations, laid end to end.

    Every sample is seen once an epoch and none is dropped at its end; a batch larger than the data is
    refused.

    Raises:
        DataError: fewer samples than one batch.
    """
    if size < batch_size:
        raise DataError(
            f"optim.batch_size: found {batch_size}, but the training split holds {size} samples; "
            f"set it to {size} or less."
        )
    first = step * batch_size
    numbers: list[NDArray[np.int64]] = []
    while sum(map(len, numbers)) < batch_size:
        position = first + sum(map(len, numbers))
        epoch, offset = divmod(position, size)
        order = np.random.default_rng([seed, epoch]).permutation(size)
        numbers.append(order[offset : offset + batch_size - sum(map(len, numbers))])
    return np.concatenate(numbers)
