"""A split's pictures at one size, decoded once into a memory-mapped file.

Every later epoch reads pixels at the speed of memory and any sample can be reached by number: that is what
makes data order a pure function of the seed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crest.errors import DataError
from crest.images import decode, square, to_array
from crest.records import Split, read_json, read_manifest, write_json
from crest.shards import Problem, Sample, Tolerance, any_manifest, read_samples
from crest.tars import MADE_BY

ABANDONED_S = 600
"""After so long without a byte, a half-decoded file has no writer any more."""


@dataclass(frozen=True)
class Pictures:
    """A split at one size, reachable by number."""

    ids: list[str]
    captions: list[str]
    """the heaviest of each picture"""
    groups: list[str]
    pixels: NDArray[np.uint8]
    """(N, 3, side, side), memory-mapped"""
    shards_hash: str
    several: Mapping[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    """number of each picture that has several captions -> all of them and their weights, heaviest first"""
    damaged: Mapping[str, int] = field(default_factory=dict)
    """reason -> samples of the split that are left out because they are damaged"""

    def __len__(self) -> int:
        return len(self.ids)

    def captions_of(self, number: int) -> tuple[tuple[str, float], ...]:
        """All captions of one picture with their weights, the heaviest first."""
        return self.several.get(number, ((self.captions[number], 1.0),))

    def refuse_damaged(self) -> None:
        """Look at the file before it is read: beyond its end, the system would end this process unheard.

        Raises:
            DataError: it is gone or was cut short.
        """
        path = getattr(self.pixels, "filename", None)
        if path is not None:
            _refuse_damaged(Path(path), self.pixels.nbytes)

    def floats(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The pictures of these numbers, (B, 3, side, side) in [0, 1]."""
        self.refuse_damaged()
        return self.pixels[numbers].astype(np.float32) / 255.0


def _refuse_damaged(path: Path, size_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        found = -1
    if found != size_bytes:
        what = "is gone" if found < 0 else f"holds {found} bytes, expected {size_bytes}"
        raise DataError(
            f"{path}: {what}; put it back, or remove it and run the same command again, which decodes it "
            "again from the shards and goes on."
        )


def open_pictures(folder: Path, split: Split, side_px: int, max_damaged_share: float = 0.0) -> Pictures:
    """A split's pictures, flattened, padded square and resized with antialiasing, decoded once.

    The pixels are kept in `<folder>/../pixels/`, named after the shards' hash, and are made again when it
    changes.

    Args:
        folder: of shards.
        split: which of them.
        side_px: height and width.
        max_damaged_share: samples that may be damaged; they are left out and named in
            `pixels/<name>.damaged.json`. 0 stops at the first.
    Raises:
        DataError: shards unfinished, or more damage than that.
    """
    manifest = any_manifest(folder) if max_damaged_share else read_manifest(folder, "shards", MADE_BY)
    cache = folder.parent / "pixels"
    stem = f"{split}-{side_px}-{manifest.hash}"
    index_path, pixel_path = cache / f"{stem}.json", cache / f"{stem}.u8"
    expected = manifest.counts.get(split, 0)
    noted = index_path.with_suffix(".damaged.json")
    if not index_path.exists() or not pixel_path.exists():
        _decode_split(folder, split, side_px, expected, index_path, pixel_path, Tolerance(max_damaged_share))
    elif noted.exists():
        tolerance = Tolerance(max_damaged_share)
        for problem in read_json(noted):
            tolerance.take(Problem(**problem), expected, folder)
    rows = json.loads(index_path.read_text(encoding="utf-8"))
    shape = (len(rows), 3, side_px, side_px)
    if rows:
        _refuse_damaged(pixel_path, math.prod(shape))
    pixels: NDArray[np.uint8] = (
        np.memmap(pixel_path, dtype=np.uint8, mode="r", shape=shape) if rows else np.zeros(shape, np.uint8)
    )
    return Pictures(
        [row["id"] for row in rows],
        [row["caption"] for row in rows],
        [row["group"] for row in rows],
        pixels,
        manifest.hash,
        {
            number: tuple((text, weight) for text, weight in row["captions"])
            for number, row in enumerate(rows)
            if "captions" in row
        },
        _damage(noted),
    )


def _damage(noted: Path) -> Counter[str]:
    """Reason -> samples, of the problems that decoding noted."""
    damaged: Counter[str] = Counter()
    for problem in read_json(noted) if noted.exists() else ():
        damaged[problem["reason"]] += problem["samples"]
    return damaged


def _decode_split(
    folder: Path,
    split: Split,
    side_px: int,
    count: int,
    index_path: Path,
    pixel_path: Path,
    tolerance: Tolerance,
) -> None:
    index_path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(index_path.parent)
    # several processes may start at once: each writes its own part, the last rename wins with equal bytes
    part, index_part = (
        path.with_name(f"{path.name}.{os.getpid()}.part") for path in (pixel_path, index_path)
    )
    rows: list[dict[str, Any]] = []
    samples = read_samples(folder, split, tolerance if tolerance.max_share else None)
    shown = tqdm(samples, total=count, desc=f"decode {split} at {side_px} px", unit="logo", disable=None)
    try:
        with part.open("wb") as stream:
            for sample, pixels in _decoded(shown, folder, side_px):
                if isinstance(pixels, DataError):
                    if not tolerance.max_share:
                        raise pixels
                    tolerance.take(Problem("broken_picture", "", sample.id, str(pixels)), count, folder)
                    continue
                stream.write(pixels)
                rows.append(_row(sample))
        part.replace(pixel_path)
        if tolerance.problems:
            noted = [vars(problem) for problem in tolerance.problems]
            write_json(index_path.with_suffix(".damaged.json"), noted)
            tqdm.write(
                f"{folder}: {count - len(rows)} of {count} {split} samples are damaged and left out; "
                f"{index_path.with_suffix('.damaged.json')} names them."
            )
        index_part.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        index_part.replace(index_path)
    except BaseException:
        part.unlink(missing_ok=True)
        index_part.unlink(missing_ok=True)
        raise


def _decoded(
    samples: Iterable[Sample], folder: Path, side_px: int
) -> Iterator[tuple[Sample, bytes | DataError]]:
    """Samples with their pixels, in order, decoded by all cores a few ahead."""

    def pixels(sample: Sample) -> bytes | DataError:
        try:
            picture = decode(sample.image, f"{folder} {sample.id}")
        except DataError as error:
            return error
        return to_array(square(picture, side_px)).tobytes()

    cores = os.cpu_count() or 1
    waiting: deque[tuple[Sample, Future[bytes | DataError]]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(pixels, sample)))
            if len(waiting) > 4 * cores:
                first, decoding = waiting.popleft()
                yield first, decoding.result()
        for first, decoding in waiting:
            yield first, decoding.result()


def _row(sample: Sample) -> dict[str, Any]:
    row = {"id": sample.id, "caption": sample.caption, "group": sample.meta.get("group", sample.id)}
    captions = sample.meta.get("captions", [])
    if len(captions) > 1:
        row["captions"] = [[caption["text"], caption["weight"]] for caption in captions]
    return row


def _sweep(cache: Path) -> None:
    """Remove what killed processes had half decoded: a living one, here or elsewhere, writes all the time."""
    for part in cache.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


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
