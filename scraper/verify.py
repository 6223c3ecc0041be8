"""Prove that finished shards are whole, stem from their records, and that nothing crosses from train to test.

Reads the packed pictures themselves and compares them anew; writes verify.json. Refuses to mend anything.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from crest.config import run_command
from crest.errors import DataError
from crest.records import SPLITS, Manifest, read_json, read_manifest, write_json
from scraper.config import ScraperConfig, ScreenConfig
from scraper.harvest import told
from scraper.plan import wordmarks
from scraper.splits import SHARED_WORDS

if TYPE_CHECKING:  # numpy and PIL would slow --help down
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from crest.shards import Sample
    from scraper.likeness import Look

SHOWN: Final = 20
"""Faults of each kind that the report names; all are counted."""
_SHARED: Final = {
    "group": "are of one group",
    "source_group": "are of one group of the source",
    "bytes": "are the same file",
    "pixels": "have the same pixels",
    "source_file": "are renditions of one file",
    "caption": "have the same caption",
    "wordmark": "quote the same words",
}
"""What must not stand on both sides of a split -> how it is told."""
_SURE: Final = 0.8
"""Share of `related_difference` that counts as a leak: pairs at the very limit may have moved across it when
they were fitted into the shards."""
_WORDS: Final = ("caption", "wordmark", "source_file")
"""Kinds of which one that very many groups share names a class, not a logo."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be."""

    kind: str
    """a reason of crest.shards.Problem, "lineage", or "leak_" and what crosses the splits"""
    said: str
    """one sentence"""


@dataclass
class Report:
    """What was looked at and what was found."""

    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    """split -> samples, groups, share"""
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """kind of fault -> how many"""

    def note(self, kind: str, said: str) -> None:
        """Count a fault, and name it while there are few of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= SHOWN:
            self.faults.append(Fault(kind, said))


def verify(config: ScraperConfig) -> Report:
    """Look at the shards of a data folder.

    Raises:
        DataError: there are no finished shards.
    """
    from crest.shards import Problem, any_manifest, look_through
    from scraper.likeness import look_at

    def seen_as(tar: str, sample: Sample, picture: Image) -> tuple[int, Sample, Look]:
        return SPLITS.index(tar.partition("-")[0]), sample, look_at(picture)

    shards_dir = config.data.dir / "shards"
    manifest, report = any_manifest(shards_dir), Report()
    with tempfile.TemporaryFile(dir=config.data.dir) as spool:
        seen = _Seen(spool)
        for found in look_through(shards_dir, seen_as):
            if isinstance(found, Problem):
                report.note(found.reason, found.said)
            else:
                seen.add(*found)
        _check_lineage(config.data.dir, manifest, report)
        if len(seen):
            seen.check(config.screen, report)
    return report


def _check_lineage(folder: Path, manifest: Manifest, report: Report) -> None:
    """Whether the shards stem from the records and captions that lie beside them."""
    try:
        records = read_manifest(folder, "records", "python -m scraper (make scrape)")
    except DataError as error:
        report.note("lineage", str(error))
        return
    parents = {"records": records.hash}
    captions = folder / "captions.json"
    if captions.exists():
        parents["captions"] = read_json(captions)["hash"]
    for name, found in parents.items():
        if manifest.parents.get(name) != found:
            report.note(
                "lineage",
                f"{folder / 'shards'}: made of {name} {manifest.parents.get(name)}, but those of now are "
                f"{found}; run python -m scraper.pack (make shards) again.",
            )


class _Seen:
    """What may cross, as columns; thumbs go to a file, some 400 bytes a sample stay in memory."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._ids: list[str] = []
        self._splits = array("b")
        self._looks: dict[str, array[Any]] = {
            "bits": array("Q"),
            "mirrored": array("Q"),
            "aspect": array("f"),
            "flags": array("B"),
        }
        self._shared = {kind: (array("q"), array("Q")) for kind in _SHARED}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, split: int, sample: Sample, look: Look) -> None:
        """Note one sample."""
        from scraper.likeness import pack_looks
        from scraper.screen import key_of

        row = pack_looks([look])[0]
        for name, column in self._looks.items():
            column.append(row[name].item())
        self._spool.write(look.thumb)
        for kind, names in _shared_names(sample, look).items():
            for name in names:
                self._shared[kind][0].append(len(self._ids))
                self._shared[kind][1].append(key_of(name))
        self._ids.append(sample.id)
        self._splits.append(split)

    def check(self, settings: ScreenConfig, report: Report) -> None:
        """Look for everything that stands on both sides of a split."""
        import numpy as np

        splits = np.frombuffer(self._splits, np.int8)
        groups = self._column("group")
        for number, split in enumerate(SPLITS):
            inside = splits == number
            report.splits[split] = {
                "samples": int(inside.sum()),
                "groups": len(np.unique(groups[1][inside[groups[0]]])),
                "share": round(float(inside.mean()), 4),
            }
        for kind in _SHARED:
            numbers, keys = self._column(kind)
            too_wide = SHARED_WORDS if kind in _WORDS else None
            for one, other in _crossing(numbers, keys, splits, self._column("source_group")[1], too_wide):
                self._tell(report, f"leak_{kind}", one, other, _SHARED[kind])
        self._compare(settings, splits, report)

    def _compare(self, settings: ScreenConfig, splits: NDArray[np.int8], report: Report) -> None:
        """Look for the same logo on both sides, by the pictures themselves."""
        import numpy as np

        from scraper.likeness import THUMB_BYTES
        from scraper.twins import Looks, find_pairs

        self._spool.flush()
        thumbs = np.memmap(self._spool, np.uint8, "r", shape=(len(self), THUMB_BYTES))
        columns = {name: np.frombuffer(column, column.typecode) for name, column in self._looks.items()}
        looks = Looks(columns["bits"], columns["mirrored"], columns["aspect"], lambda rows: thumbs[rows])
        seen = np.flatnonzero(columns["flags"] == 0)
        pairs = find_pairs(looks.some(seen), settings)
        ones, others = seen[pairs.one], seen[pairs.other]
        leaks = splits[ones] != splits[others]
        leaks &= pairs.difference <= _SURE * settings.related_difference
        for one, other, is_mirrored in zip(ones[leaks], others[leaks], pairs.is_mirrored[leaks], strict=True):
            if is_mirrored:
                self._tell(report, "leak_mirrored", one, other, "look the same, one of them in a mirror")
            else:
                self._tell(report, "leak_near_duplicate", one, other, "look the same")

    def _tell(self, report: Report, kind: str, one: int, other: int, what: str) -> None:
        places = [f"{self._ids[index]} ({SPLITS[self._splits[index]]})" for index in (one, other)]
        report.note(
            kind, f"{places[0]} and {places[1]} {what}; run python -m scraper.pack (make shards) again."
        )

    def _column(self, kind: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        import numpy as np

        numbers, keys = self._shared[kind]
        if not len(numbers):
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        return np.frombuffer(numbers, np.int64), np.frombuffer(keys, np.uint64)


def _shared_names(sample: Sample, look: Look) -> dict[str, set[str]]:
    """What a sample may have in common with others, by kind; the rules of pack."""
    meta = sample.meta
    captions = meta.get("captions") or [{"text": sample.caption, "origin": "human"}]
    texts = [one["text"] for one in captions[:1]] + [
        one["text"] for one in captions[1:] if one["origin"] == "human"
    ]
    group = str(meta.get("group", sample.id))
    names = {
        "group": {group},
        "source_group": {str(meta.get("source_group", group))},
        "bytes": {str(meta.get("sha256") or sample.id)},
        "pixels": {look.pixels},
        "source_file": {str(meta.get("source_file", ""))},
        "caption": {" ".join(text.casefold().split()) for text in texts},
        "wordmark": {wordmarks(texts)},
    }
    return {kind: {name for name in some if name} for kind, some in names.items()}


def _crossing(
    numbers: NDArray[np.int64],
    keys: NDArray[np.uint64],
    splits: NDArray[np.int8],
    groups: NDArray[np.uint64],
    too_wide: int | None,
) -> Iterator[tuple[int, int]]:
    """Pairs of samples of two splits that have a key in common, one pair for each key.

    Args:
        numbers: (M,) of samples.
        keys: (M,) what each of them has.
        splits: (N,) of all samples.
        groups: (N,) the groups that screening gave them.
        too_wide: what more groups than this have, or all of them, names a class and may cross.
    """
    import numpy as np

    if not len(keys):
        return
    order = np.lexsort((splits[numbers], keys))
    numbers, keys = numbers[order], keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    ends = np.r_[starts[1:], len(keys)]
    everyone = len(np.unique(groups))
    crosses = splits[numbers[starts]] != splits[numbers[ends - 1]]  # sorted by split: the ends differ most
    for start, end in zip(starts[crosses], ends[crosses], strict=True):
        one, other = int(numbers[start]), int(numbers[end - 1])
        if too_wide is not None:
            sharing = len(np.unique(groups[numbers[start:end]]))
            if sharing > too_wide or sharing == everyone:
                continue
        yield one, other


def main(config: ScraperConfig) -> None:
    """Verify, write verify.json, and say it in one line.

    Raises:
        DataError: something is wrong.
    """
    report = verify(config)
    shards_dir, path = config.data.dir / "shards", config.data.dir / "verify.json"
    write_json(
        path,
        {
            "shards": any_hash(shards_dir),
            "is_whole": not report.counts,
            "splits": report.splits,
            "faults": report.counts,
            "named": [asdict(fault) for fault in report.faults],
        },
    )
    if report.counts:
        raise DataError(
            f"{shards_dir}: found {told(report.counts)}, expected none; the first: {report.faults[0].said} "
            f"({path} names more.)"
        )
    parts = ", ".join(
        f"{split} {one['samples']:,} of {one['groups']:,} groups ({one['share']:.1%})"
        for split, one in report.splits.items()
    )
    print(f"{shards_dir}: whole, and nothing crosses a split; {parts}.")


def any_hash(shards_dir: Path) -> str:
    """The hash that the shards' manifest claims."""
    return str(read_json(shards_dir / "manifest.json")["hash"])


def check(config: ScraperConfig) -> None:
    """Look whether there are finished shards."""
    read_json(config.data.dir / "shards" / "manifest.json")


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.verify", ScraperConfig, main, check=check))
