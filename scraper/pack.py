"""Records + captions + images -> shards: fitted to one longest side, alpha kept, split by group.

The same input gives the same bytes, whoever does the work, however often it was interrupted. Shards of before
stay whole until the new ones are. Refuses pictures without words, and counts them.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from crest.config import run_command
from crest.errors import DataError
from crest.records import (
    SPLITS,
    Manifest,
    Record,
    hash_of,
    read_json,
    read_manifest,
    record_of,
    write_manifest,
)
from scraper.chunks import WORK_DIR, Chunk, Packed, pack_chunk
from scraper.config import PackConfig, ScraperConfig, WorkConfig
from scraper.harvest import told
from scraper.plan import Plan, lines_at, make_plan
from scraper.splits import (
    EMPTY,
    Divided,
    Families,
    divide,
    families,
    read_ledger,
    write_ledger,
)

RECORDS_BY: Final = "python -m scraper (make scrape)"
SHARDS_BY: Final = "python -m scraper.pack (make shards)"
FEW_ENCODED: Final = 200
FEW_COPIED: Final = 5000
"""Pictures that one process has packed before a further one has started."""
NAMED: Final = 20
"""Damaged pictures and moved groups that the manifest names; all are counted."""


@dataclass(frozen=True)
class Inputs:
    """What the shards are made of."""

    has_captions: bool
    parents: dict[str, str]
    """hash of the records, and of captions.json where that is there"""


def read_inputs(folder: Path) -> Inputs:
    """Look for records and captions.

    Raises:
        DataError: no records, or captions of other ones.
    """
    manifest = read_manifest(folder, "records", RECORDS_BY)
    path = folder / "captions.json"
    if not path.exists():
        return Inputs(False, {"records": manifest.hash})
    captions = Manifest(**read_json(path))
    if captions.parents.get("records") != manifest.hash:
        raise DataError(
            f"{path}: made of other records than records.jsonl, expected of these; run "
            "python -m scraper.caption (make caption) again."
        )
    return Inputs(True, {"records": manifest.hash, "captions": captions.hash})


def main(config: ScraperConfig) -> None:
    """Write data/shards; a finished folder is left as it is."""
    started = time.monotonic()
    folder, shards_dir = config.data.dir, config.data.dir / "shards"
    inputs = read_inputs(folder)
    settings = config.pack.model_dump(mode="json")
    before = _finished(shards_dir)
    if before and inputs.has_captions and _is_made_from(before, inputs.parents, settings):
        print(f"{shards_dir}: up to date, {told(before.counts)}; nothing to do.")
        return
    plan = make_plan(folder, config.pack, inputs.has_captions)
    if not len(plan.order):
        raise DataError(
            f"{folder}: none of {plan.read} logos has a caption ({told(plan.dropped)}); "
            "set caption.weights and run python -m scraper.caption."
        )
    parents = {"captions": plan.words_hash, **inputs.parents}
    made_from = hash_of(parents["records"], plan.words_hash, settings)
    if before and before.details.get("made_from") == made_from:
        # the same words in a new captions.jsonl: only their name has changed
        write_manifest(shards_dir, dataclasses.replace(before, parents=parents))
        print(f"{shards_dir}: up to date, {told(before.counts)}; nothing to do.")
        return
    found = families(plan.links)
    ledger = read_ledger(shards_dir, config.pack)
    divided = divide(plan.links, found, EMPTY if ledger is None else ledger, config.pack, str(folder))
    moved = sorted({_record(folder, plan, int(number)).group for number in divided.moved[:1000]})
    details = {
        "made_from": made_from,
        "settings": settings,
        "groups": len(found.namer),
        "split_moved": len(divided.moved),
        "split_moved_groups": moved[:NAMED],
        "splits_drawn_anew": ledger is None,
        "too_common_to_link": dict(found.too_common),
    }
    manifest = _pack(config, plan, found, divided, Made(parents, details))
    print(
        f"{shards_dir}: {plan.read:,} logos came in; packed {sum(manifest.counts.values()):,} "
        f"({told(manifest.counts)}) of {len(found.namer):,} groups into {len(manifest.files)} tars; "
        f"dropped {sum(manifest.dropped.values()):,}: {told(manifest.dropped)}; "
        f"{_moves(ledger is None, len(divided.moved), moved)}{time.monotonic() - started:.1f} s."
    )


def _moves(is_anew: bool, count: int, groups: list[str]) -> str:
    """What the reader should know of splits that did not stay."""
    if is_anew:
        return "the seed or the shares changed: every split was drawn anew; "
    if not count:
        return ""
    named = ", ".join(groups[:3]) + ("…" if len(groups) > 3 else "")
    return f"split_moved {count:,} (new logos link them to what is held out: {named}); "


def _finished(shards_dir: Path) -> Manifest | None:
    if not (shards_dir / "manifest.json").exists():
        return None
    return read_manifest(shards_dir, "shards", SHARDS_BY)


def _is_made_from(before: Manifest, parents: dict[str, str], settings: dict[str, Any]) -> bool:
    return dict(before.parents) == parents and before.details.get("settings") == settings


@dataclass(frozen=True)
class Made:
    """What the manifest says of where the shards come from."""

    parents: dict[str, str]
    details: dict[str, Any]


def _pack(config: ScraperConfig, plan: Plan, found: Families, divided: Divided, made: Made) -> Manifest:
    """Have all chunks packed, then number their tars and write ledger and manifest."""
    from tqdm import tqdm

    from crest.shards import finish_shards, tar_name

    shards_dir = config.data.dir / "shards"
    work_dir = shards_dir / WORK_DIR
    work_dir.mkdir(parents=True, exist_ok=True)
    chunks = list(_spans(plan, found, divided, config.pack.samples_per_shard))
    jobs = (_chunk(config, plan, found, name, numbers) for name, numbers in chunks)
    packed: dict[str, Packed] = {}
    damaged: list[tuple[str, str]] = []
    with tqdm(total=len(plan.order), desc="pack", unit="logo", disable=None) as bar:
        for (name, numbers), done in zip(chunks, _worked(jobs, config, len(chunks), plan), strict=True):
            packed[name] = done
            damaged += done.damaged
            _check_damage(shards_dir, damaged, len(plan.order), config.pack)
            bar.update(len(numbers))
    (shards_dir / "manifest.json").unlink(missing_ok=True)
    write_ledger(shards_dir, divided.ledger, config.pack)
    tars: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for split in SPLITS:
        own = [tar for name, _ in chunks if name.startswith(f"{split}-") for tar in packed[name].tars]
        for number, tar in enumerate(own):
            name = tar_name(split, number)
            (work_dir / tar.name).replace(shards_dir / name)
            tars[name], hashes[name] = tar.samples, tar.sha256
    manifest = finish_shards(
        shards_dir,
        tars,
        hashes=hashes,
        parents=made.parents,
        dropped={**plan.dropped, **({"damaged": len(damaged)} if damaged else {})},
        details={**made.details, "damaged": dict(damaged[:NAMED])},
    )
    shutil.rmtree(work_dir)
    return manifest


def _spans(
    plan: Plan, found: Families, divided: Divided, samples_per_shard: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pictures) of every chunk: each split in an order drawn by the seed, cut into equal pieces."""
    splits = divided.splits[found.family_of[found.atom_of]]
    for code, split in enumerate(SPLITS):
        numbers = np.flatnonzero(splits == code)
        numbers = numbers[np.lexsort((plan.links.pictures[numbers], plan.order[numbers]))]
        for count, start in enumerate(range(0, len(numbers), samples_per_shard)):
            yield f"{split}-{count:06d}", numbers[start : start + samples_per_shard]


def _chunk(config: ScraperConfig, plan: Plan, found: Families, name: str, numbers: np.ndarray) -> Chunk:
    namers = plan.record_at[found.namer[found.family_of[found.atom_of[numbers]]]]
    columns = (plan.record_at[numbers], plan.caption_at[numbers], namers)
    places = list(zip(*(column.tolist() for column in columns), strict=True))
    return Chunk(config.data.dir.resolve(), name, plan.lines_hash, places, config.pack)


def _worked(jobs: Iterator[Chunk], config: ScraperConfig, count: int, plan: Plan) -> Iterator[Packed]:
    """The chunks' results in order, by this process alone where another would only cost its start."""
    from scraper.executor import run_jobs

    work: WorkConfig = config.work
    share_of_a_start = plan.to_encode / FEW_ENCODED + len(plan.order) / FEW_COPIED
    if work.executor == "local" and share_of_a_start <= 1:
        work = work.model_copy(update={"workers": 1})
    return run_jobs(pack_chunk, jobs, work, size=count)


def _check_damage(where: Path, damaged: list[tuple[str, str]], count: int, settings: PackConfig) -> None:
    if len(damaged) > settings.max_damaged_share * count:
        raise DataError(
            f"{where}: {len(damaged)} of {count} pictures are damaged, expected at most a share of "
            f"{settings.max_damaged_share:g} (pack.max_damaged_share); the first: {damaged[0][1]}"
        )


def _record(folder: Path, plan: Plan, number: int) -> Record:
    path = folder / "records.jsonl"
    return record_of(next(lines_at(path, int(plan.record_at[number])))[2], path)


def check(config: ScraperConfig) -> None:
    """Look whether there are records with captions, and whether the ledger of splits can be read."""
    read_inputs(config.data.dir)
    read_ledger(config.data.dir / "shards", config.pack)


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.pack", ScraperConfig, main, check=check))
