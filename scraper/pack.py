"""Records + captions + images -> shards: fitted to one longest side, alpha kept, split by group.

A split is a pure function of the group and the seed, so nothing that looks or reads alike is torn apart.
Refuses pictures without words, and counts them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from crest.config import run_command
from crest.errors import DataError
from crest.records import SPLITS, Caption, Record, Split, hash_of, read_manifest, read_records
from scraper.caption import RECORDS_BY, captions_hash, finished_captions, own_captions
from scraper.config import PackConfig, ScraperConfig
from scraper.groups import Groups
from scraper.harvest import told

SHARDS_BY: Final = "python -m scraper.pack (make shards)"
SHARED_WORDS: Final = 20
"""A caption of more pictures than this names a class, not a logo, and makes no relatives."""
_AHEAD: Final = 64


@dataclass(frozen=True)
class Described:
    """A picture with the words that it is packed with."""

    record: Record
    caption: Caption


def split_of(group: str, settings: PackConfig) -> Split:
    """The split of a group: its hash with the seed, as a number in [0, 1), falls into one of the shares."""
    place = _place(group, settings)
    if place < settings.test_share:
        return "test"
    return "val" if place < settings.test_share + settings.val_share else "train"


def _place(group: str, settings: PackConfig) -> float:
    digest = hashlib.sha256(f"{settings.seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def divide(described: Sequence[Described], settings: PackConfig) -> dict[Split, list[Described]]:
    """Split pictures by group, each split in an order drawn by the seed.

    A share that is wanted but got no group (there are only a few) takes the one that came nearest to it.

    Raises:
        DataError: fewer groups than splits.
    """
    groups = sorted({one.record.group for one in described}, key=lambda group: _place(group, settings))
    splits = {group: split_of(group, settings) for group in groups}
    shares: dict[Split, float] = {"test": settings.test_share, "val": settings.val_share}
    wanted = [split for split, share in shares.items() if share > 0]
    if len(groups) <= len(wanted):
        raise DataError(
            f"the logos form {len(groups)} groups, expected more than {len(wanted)} to split without leaks; "
            "add logos or set pack.val_share and pack.test_share to 0."
        )
    for split in wanted:
        if split not in splits.values():
            # the nearest neighbour above: groups are in the order of their places
            counts = Counter(splits.values())
            nearest = next(group for group in groups if splits[group] == "train" or counts[splits[group]] > 1)
            splits[nearest] = split
    if "train" not in splits.values():
        splits[groups[-1]] = "train"
    divided: dict[Split, list[Described]] = {split: [] for split in SPLITS}
    for one in described:
        divided[splits[one.record.group]].append(one)
    for split in SPLITS:
        divided[split].sort(key=lambda one: hash_of(settings.seed, one.record.id))
    return divided


def describe(
    records: Sequence[Record], captions: Sequence[Caption], settings: PackConfig
) -> tuple[list[Described], Counter[str]]:
    """Join pictures and words; groups that share a caption become one.

    Returns:
        what can be packed, and named reason -> how many cannot.
    """
    by_id = {caption.id: caption for caption in captions}
    dropped: Counter[str] = Counter()
    joined: list[Described] = []
    for record in records:
        caption = by_id.get(record.id)
        if caption is None:
            dropped["no_caption"] += 1
        elif caption.origin != "human" and settings.use_captions == "human":
            dropped["model_caption"] += 1
        else:
            joined.append(Described(record, caption))
    same: dict[str, list[str]] = {}
    for one in joined:
        same.setdefault(one.caption.text.casefold(), []).append(one.record.group)
    groups = Groups()
    for sharing in same.values():
        if len(sharing) <= SHARED_WORDS:
            groups.merge(sharing)
    named = [replace(one, record=replace(one.record, group=groups.name(one.record.group))) for one in joined]
    return named, dropped


def fitted_png(path: Path, side_px: int) -> bytes:
    """A picture as PNG bytes, its longest side at most `side_px`; a PNG that fits stays as it is."""
    from PIL import Image

    from crest.images import decode
    from crest.shards import png_bytes

    content = path.read_bytes()
    picture = decode(content, str(path))
    longest = max(picture.size)
    if longest <= side_px:
        return content if path.suffix == ".png" else png_bytes(picture)
    size = tuple(max(1, round(side * side_px / longest)) for side in picture.size)
    return png_bytes(picture.resize((size[0], size[1]), Image.Resampling.LANCZOS))


def samples(described: Sequence[Described], data_dir: Path, side_px: int) -> Iterator[Any]:
    """Samples in order, their pictures fitted by all processors a few ahead; memory stays flat."""
    from crest.shards import Sample

    def made(one: Described) -> Sample:
        image = fitted_png(data_dir / one.record.image, side_px)
        words = {"origin": one.caption.origin, "model": one.caption.model}
        meta = {
            **dataclasses.asdict(one.record),
            "source_caption": one.record.caption,
            "caption": one.caption.text,
        }
        return Sample(one.record.id, image, one.caption.text, {**meta, "caption_origin": words})

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(described), _AHEAD):
            yield from pool.map(made, described[start : start + _AHEAD])


def main(config: ScraperConfig) -> None:
    """Write data/shards; a finished folder is left as it is."""
    from crest.shards import write_shards

    started = time.monotonic()
    folder, shards_dir = config.data.dir, config.data.dir / "shards"
    records, captions, parents = _inputs(folder)
    made_from = hash_of(parents, config.pack.model_dump(mode="json"))
    if (shards_dir / "manifest.json").exists():
        before = read_manifest(shards_dir, "shards", SHARDS_BY)
        if before.details.get("made_from") == made_from:
            print(f"{shards_dir}: up to date, {told(before.counts)}; nothing to do.")
            return
    described, dropped = describe(records, captions, config.pack)
    if not described:
        raise DataError(
            f"{folder}: none of {len(records)} logos has a caption ({told(dropped)}); "
            "set caption.weights and run python -m scraper.caption."
        )
    divided = divide(described, config.pack)
    (shards_dir / "manifest.json").unlink(missing_ok=True)
    streams: Mapping[Split, Iterator[Any]] = {
        split: samples(divided[split], folder, config.pack.side_px) for split in SPLITS
    }
    manifest = write_shards(
        shards_dir,
        streams,
        samples_per_shard=config.pack.samples_per_shard,
        parents=parents,
        dropped=dropped,
        details={"made_from": made_from, "groups": len({one.record.group for one in described})},
    )
    print(
        f"{shards_dir}: {len(records):,} logos came in; packed {len(described):,} ({told(manifest.counts)}) "
        f"of {manifest.details['groups']:,} groups into {len(manifest.files)} tars; "
        f"dropped {dropped.total():,}: {told(dropped)}; {time.monotonic() - started:.1f} s."
    )


def _inputs(folder: Path) -> tuple[list[Record], list[Caption], dict[str, str]]:
    """Records, their captions (the sources' own where nothing was captioned yet), and the hashes of both."""
    manifest = read_manifest(folder, "records", RECORDS_BY)
    records = read_records(folder / "records.jsonl")
    finished = finished_captions(folder, manifest.hash)
    if finished is not None:
        captions, made = finished
        return records, captions, {"records": manifest.hash, "captions": made.hash}
    if (folder / "captions.json").exists():
        raise DataError(
            f"{folder / 'captions.json'}: made of other records than records.jsonl, expected of these; run "
            "python -m scraper.caption (make caption) again."
        )
    captions, _ = own_captions(records)
    return records, captions, {"records": manifest.hash, "captions": captions_hash(captions)}


def check(config: ScraperConfig) -> None:
    """Look whether there are records with captions."""
    _inputs(config.data.dir)


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.pack", ScraperConfig, main, check=check))
