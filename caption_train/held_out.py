"""The held-out logos with words by people, as the captioner's training held them out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from caption_train.data import is_whole, split_records
from caption_train.report_config import ReportDataConfig
from crest.errors import DataError
from crest.records import Record, content_id, picture_bytes, read_captions, stream_records
from crest.shards import Sample, read_samples


@dataclass(frozen=True)
class HeldOut:
    """One logo."""

    id: str
    group: str
    image: str
    """`Record.image`, or "" for a sample of a shard"""
    texts: tuple[str, ...]
    """what people wrote of it, the heaviest first"""


def read_held_out(settings: ReportDataConfig) -> list[HeldOut]:
    """The logos, in the order of their source.

    Raises:
        DataError: none has words by people.
    """
    folder = settings.records
    has_records = (folder / "records.jsonl").exists()
    found = list(_of_records(settings) if has_records else _of_shards(folder))
    if settings.max_logos is not None and len(found) > settings.max_logos:
        drawn = sorted(found, key=lambda one: hashlib.sha256(one.id.encode()).digest())
        kept = {one.id for one in drawn[: settings.max_logos]}
        found = [one for one in found if one.id in kept]
    if not found:
        raise DataError(
            f"{folder}: no held-out logo has words by people, so there is nothing to compare captioners "
            "with; add captioned logos, or raise data.val_share."
        )
    return found


def _of_records(settings: ReportDataConfig) -> Iterator[HeldOut]:
    records = stream_records(settings.records / "records.jsonl")
    whole = [record for record in records if is_whole(record) and record.written_by == "human"]
    for record in split_records(whole, settings.val_share)[1]:
        yield HeldOut(record.id, record.group, record.image, _texts(record))


def _texts(record: Record) -> tuple[str, ...]:
    return tuple(dict.fromkeys((str(record.caption), *record.further_captions)))


def _of_shards(folder: Path) -> Iterator[HeldOut]:
    for sample in read_samples(folder, "val"):
        texts = _human(sample)
        if texts:
            yield HeldOut(sample.id, str(sample.meta.get("group", sample.id)), "", texts)


def _human(sample: Sample) -> tuple[str, ...]:
    """What people wrote of a sample; of shards made elsewhere, which do not say who wrote, its text."""
    captions = sample.meta.get("captions")
    if not captions:
        return (sample.caption,)
    return tuple(str(one["text"]) for one in captions if one.get("origin") == "human")


def contents(settings: ReportDataConfig, logos: Iterable[HeldOut]) -> Iterator[tuple[HeldOut, bytes]]:
    """Each logo with the bytes of its picture, in order."""
    wanted = {one.id: one for one in logos}
    if (settings.records / "records.jsonl").exists():
        for one in wanted.values():
            yield one, picture_bytes(settings.records, one.image)
        return
    for sample in read_samples(settings.records, "val"):
        if sample.id in wanted:
            yield wanted[sample.id], sample.image


def written_before(path: Path, logos: Iterable[HeldOut]) -> dict[str, str]:
    """What a captioner wrote of these logos, out of a captions.jsonl: of each the heaviest by a model.

    Raises:
        DataError: it speaks of none of them.
    """
    wanted = {one.id for one in logos}
    found: dict[str, str] = {}
    for caption in read_captions(path):
        if caption.id in wanted and caption.origin == "model":
            found.setdefault(caption.id, caption.text)
    if not found:
        raise DataError(
            f"{path}: holds no caption by a model of any of the {len(wanted)} held-out logos, expected some; "
            'run python -m scraper.caption with caption.describe "all".'
        )
    return found


def data_hash(logos: Iterable[HeldOut]) -> str:
    """Names the logos and what people wrote of them."""
    return content_id("\n".join(f"{one.id} {one.texts}" for one in logos).encode())
