"""Write and read WebDataset shards, and bring their pictures to one size, once.

A sample is `<id>.png` (alpha kept; webp and jpg on request), `<id>.txt` (its caption) and `<id>.json` (what
is known of it). Reading stops at the first damage unless it is told how much of it to skip. Refuses to decode
pictures, but for `look_through`: that is crest/pixels.py.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from PIL import Image
from tqdm import tqdm

from crest.errors import DataError
from crest.images import decode
from crest.records import (
    SPLITS,
    Manifest,
    Split,
    file_hash,
    hash_of,
    read_json,
    read_manifest,
    write_manifest,
)
from crest.tars import MADE_BY, read_tar, write_tar

_MTIME: Final = 0.0
"""As webdataset's writer was given it, by which the shards of published weights were written: a float costs
a further header a member, but they keep their hashes."""
PICTURE_KINDS: Final = ("png", "jpg", "jpeg", "webp")
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One picture with its words, as it lies in a shard."""

    id: str
    image: bytes
    """a whole picture file, RGBA where the source had transparency"""
    caption: str
    """the heaviest of its captions"""
    meta: Mapping[str, Any]
    kind: str = "png"
    """what the picture file is: one of PICTURE_KINDS"""

    def members(self) -> dict[str, bytes]:
        """The sample as a tar holds it: kind -> content."""
        return {
            "json": json.dumps(dict(self.meta), ensure_ascii=False, sort_keys=True).encode(),
            self.kind: self.image,
            "txt": self.caption.encode(),
        }


@dataclass(frozen=True)
class Problem:
    """Something in a shard that is not as it was written."""

    reason: str
    """missing, unknown, wrong_size, wrong_hash, wrong_count, broken_tar, no_picture, no_caption, broken_json
    or broken_picture"""
    tar: str
    sample: str
    """id of the sample; empty when it is the tar"""
    said: str
    """one sentence: where, what, and what to do"""
    samples: int = 1
    """how many samples it costs"""


@dataclass
class Tolerance:
    """How much damage reading skips before it stops, and what it has skipped."""

    max_share: float
    """of the samples of a split"""
    problems: list[Problem] = field(default_factory=list)

    def take(self, problem: Problem, expected: int, where: Path) -> None:
        """Note one problem.

        Raises:
            DataError: more than the share is lost.
        """
        self.problems.append(problem)
        lost = sum(problem.samples for problem in self.problems)
        if lost > self.max_share * expected:
            raise DataError(
                f"{where}: {lost} of {expected} samples are damaged, expected at most a share of "
                f"{self.max_share:g} (the first: {self.problems[0].said})"
            )


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
    folder.mkdir(parents=True, exist_ok=True)
    tars: dict[str, int] = {}
    for split in SPLITS:
        shard: list[Sample] = []
        number = 0
        for sample in tqdm(samples.get(split, ()), desc=f"pack {split}", unit="logo", disable=None):
            shard.append(sample)
            if len(shard) == samples_per_shard:
                _write_one(folder / tar_name(split, number), shard, tars)
                shard, number = [], number + 1
        if shard:
            _write_one(folder / tar_name(split, number), shard, tars)
    return finish_shards(folder, tars, parents=parents, dropped=dropped, details=details)


def tar_name(split: str, number: int) -> str:
    """What the tar of this number (from 0) is called."""
    return f"{split}-{number:06d}.tar"


def _write_one(path: Path, shard: list[Sample], tars: dict[str, int]) -> None:
    write_tar(path, ((sample.id, sample.members()) for sample in shard), _MTIME)
    tars[path.name] = len(shard)


def finish_shards(
    folder: Path,
    tars: Mapping[str, int],
    *,
    parents: Mapping[str, str],
    dropped: Mapping[str, int] | None = None,
    details: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Manifest:
    """Remove tars that are not of these, and write the manifest.

    Args:
        tars: name -> samples, the whole folder.
        hashes: name -> SHA-256, where they are known already.
    Raises:
        DataError: no tar at all.
    """
    if not tars:
        raise DataError(f"{folder}: no sample was left to pack; look at the reasons in the dropped counts.")
    for stale in folder.glob("*.tar"):
        if stale.name not in tars:
            stale.unlink()
    known = hashes or {name: file_hash(folder / name) for name in tars}
    manifest = Manifest(
        kind="shards",
        hash=hash_of({name: known[name] for name in tars}),
        counts={
            split: sum(count for name, count in tars.items() if name.startswith(f"{split}-"))
            for split in SPLITS
        },
        dropped=dict(dropped or {}),
        parents=dict(parents),
        files={name: (folder / name).stat().st_size for name in tars},
        details={
            **(details or {}),
            "tars": {name: {"samples": count, "sha256": known[name]} for name, count in tars.items()},
        },
    )
    write_manifest(folder, manifest)
    return manifest


def read_samples(folder: Path, split: Split, tolerance: Tolerance | None = None) -> Iterator[Sample]:
    """Stream a split's samples in the order in which they were packed.

    Args:
        folder: of shards.
        split: which of them.
        tolerance: what damage is skipped and noted; None stops at the first.
    Raises:
        DataError: shards unfinished, cut short or without a picture or caption.
    """
    manifest = any_manifest(folder) if tolerance else read_manifest(folder, "shards", MADE_BY)
    for name in sorted(name for name in manifest.files if name.startswith(f"{split}-")):
        for found in read_one(folder / name, _samples_of(manifest, name)):
            if isinstance(found, Sample):
                yield found
            elif tolerance is None:
                raise DataError(found.said)
            else:
                tolerance.take(found, manifest.counts.get(split, 0), folder)


def any_manifest(folder: Path) -> Manifest:
    """The manifest, whatever became of the files that it names."""
    path = folder / "manifest.json"
    if not path.exists():
        return read_manifest(folder, "shards", MADE_BY)  # says what is wrong
    return Manifest(**read_json(path))


def _samples_of(manifest: Manifest, name: str) -> int:
    """How many samples a tar was written with."""
    noted = manifest.details.get("tars", {}).get(name)
    if noted:
        return int(noted["samples"])
    split = name.partition("-")[0]
    siblings = sum(other.startswith(f"{split}-") for other in manifest.files)
    return -(-manifest.counts.get(split, 0) // siblings)


def read_one(path: Path, expected: int) -> Iterator[Sample | Problem]:
    """The samples of one tar and what is wrong with it, in order; its pictures are not decoded.

    Args:
        path: of the tar.
        expected: samples that it was written with.
    """
    seen = 0
    try:
        for key, members in read_tar(path):
            seen += 1
            yield _sample(path, key, members)
    except DataError as error:
        reason = "broken_tar" if path.exists() else "missing"
        yield Problem(reason, path.name, "", str(error), max(1, expected - seen))


def _sample(path: Path, key: str, members: Mapping[str, bytes]) -> Sample | Problem:
    def problem(reason: str, what: str) -> Problem:
        return Problem(reason, path.name, key, f"{path}: sample {key} {what}; run {MADE_BY} again.")

    kind = next((kind for kind in PICTURE_KINDS if kind in members), None)
    if kind is None:
        return problem("no_picture", "has no picture")
    try:
        caption = members["txt"].decode()
    except KeyError:
        return problem("no_caption", "has no caption (.txt)")
    except UnicodeDecodeError as error:
        return problem("no_caption", f"has a caption that is no UTF-8 ({error})")
    try:
        meta = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        return problem("broken_json", f"has no readable JSON ({error})")
    return Sample(key, members[kind], caption, meta, kind)


def check_shards(folder: Path) -> list[Problem]:
    """Compare finished shards with what they were written as: files, hashes, tars, members, whole pictures.

    Returns:
        everything that is wrong, tar by tar; nothing when all is well.
    Raises:
        DataError: there are no finished shards.
    """
    looked_at = look_through(folder, lambda tar, sample, picture: None)
    return [found for found in looked_at if found is not None]


def look_through(folder: Path, look: Callable[[str, Sample, Image.Image], T]) -> Iterator[Problem | T]:
    """What is wrong with finished shards, as `check_shards` tells it, and what a look at the rest gives.

    Args:
        folder: of shards.
        look: gets a tar's name, a sample and its decoded picture; called by several threads at once.
    Yields:
        in the order of the manifest's tars; a few samples are in memory at a time.
    Raises:
        DataError: there are no finished shards.
    """
    manifest = any_manifest(folder)
    hashes: dict[str, str] = {}
    are_well = True
    for name in tqdm(manifest.files, desc="check shards", unit="tar", disable=None):
        for found in _looked_through(folder / name, manifest, hashes, look):
            are_well &= not isinstance(found, Problem)
            yield found
    for path in sorted(folder.glob("*.tar")):
        if path.name not in manifest.files:
            are_well = False
            said = f"{path}: is not in manifest.json; remove it or run {MADE_BY} again."
            yield Problem("unknown", path.name, "", said, 0)
    if are_well and hash_of(hashes) != manifest.hash:
        said = f"{folder}: the tars are not those that manifest.json was made of; run {MADE_BY} again."
        yield Problem("wrong_hash", "", "", said, 0)


def _looked_through(
    path: Path, manifest: Manifest, hashes: dict[str, str], look: Callable[[str, Sample, Image.Image], T]
) -> Iterator[Problem | T]:
    noted = manifest.details.get("tars", {}).get(path.name, {})
    if not path.exists():
        said = f"{path}: is missing; run {MADE_BY} again."
        yield Problem("missing", path.name, "", said, _samples_of(manifest, path.name))
        return

    def problem(reason: str, what: str) -> Problem:
        return Problem(reason, path.name, "", f"{path}: {what}; run {MADE_BY} again.", 0)

    are_well, count = True, 0
    found = hashes[path.name] = file_hash(path)
    if path.stat().st_size != manifest.files[path.name]:
        are_well = False
        yield problem("wrong_size", f"is {path.stat().st_size} bytes, expected {manifest.files[path.name]}")
    if found != noted.get("sha256", found):
        are_well = False
        yield problem("wrong_hash", f"has the SHA-256 {found[:16]}…, expected {noted['sha256'][:16]}…")
    for one in _decoded(path, _samples_of(manifest, path.name), look):
        are_well, count = are_well and not isinstance(one, Problem), count + 1
        yield one
    if noted and are_well and count != noted["samples"]:
        yield problem("wrong_count", f"holds {count} samples, expected {noted['samples']}")


def _decoded(
    path: Path, expected: int, look: Callable[[str, Sample, Image.Image], T]
) -> Iterator[Problem | T]:
    """What is wrong with each sample of a tar, or what a look at its picture gives."""

    def seen(found: Sample | Problem) -> Problem | T:
        if isinstance(found, Problem):
            return found
        try:
            picture = decode(found.image, f"{path}: sample {found.id}")
        except DataError as error:
            return Problem("broken_picture", path.name, found.id, str(error))
        return look(path.name, found, picture)

    cores = os.cpu_count() or 1
    entries = read_one(path, expected)
    with ThreadPoolExecutor(cores) as pool:
        while some := list(islice(entries, 16 * cores)):
            yield from pool.map(seen, some)


def png_bytes(picture: Any) -> bytes:
    """A PIL picture as PNG bytes, without metadata."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()
