"""Reject what is too small, blank, a duplicate or not wanted, count every reason, merge groups of relatives.

Near duplicates are dropped within and across groups; looser relatives stay, but share a group, so that a
split cannot leak. Refuses to touch the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crest.records import Record
from scraper.config import ScreenConfig
from scraper.groups import Groups
from scraper.harvest import Drop
from scraper.likeness import Look, close_pairs, colour_distances, thumbs_of


@dataclass(frozen=True)
class Screened:
    """What passed and what did not."""

    records: tuple[Record, ...]
    dropped: tuple[Drop, ...]


def screen(records: Sequence[Record], looks: Mapping[str, Look], settings: ScreenConfig) -> Screened:
    """Screen records; the order stays.

    Args:
        records: what a source gave.
        looks: the look of each picture by its id.
        settings: the thresholds.
    """
    dropped: list[Drop] = []
    groups = Groups()
    first = _once_each(records, groups, dropped)
    passed: list[tuple[Record, Look]] = []
    for record in first:
        look = looks[record.id]
        reason = _reason(record, look, settings)
        if reason:
            dropped.append(Drop(reason, record.image_url or record.id))
        else:
            passed.append((record, look))
    unique = _without_duplicates(passed, groups, dropped, settings)
    kept = [replace(record, group=groups.name(record.group)) for record, _ in unique]
    return Screened(tuple(kept), tuple(dropped))


def _once_each(records: Sequence[Record], groups: Groups, dropped: list[Drop]) -> list[Record]:
    """One record for each content, with words if any of them has; all its groups are one."""
    first: dict[str, Record] = {}
    for record in records:
        known = first.get(record.id)
        if known is None:
            first[record.id] = record
            continue
        groups.merge((known.group, record.group))
        dropped.append(Drop("duplicate", record.image_url or record.id))
        if known.caption is None and record.caption is not None:
            first[record.id] = record
    return list(first.values())


def _reason(record: Record, look: Look, settings: ScreenConfig) -> str | None:
    if max(record.width_px, record.height_px) < settings.min_side_px:
        return "too_small"
    if look.is_invisible:
        return "invisible_on_white"
    if look.is_blank:
        return "blank"
    if settings.kinds and record.kind and record.kind not in settings.kinds:
        return f"kind_{record.kind}"
    return None


def _without_duplicates(
    passed: list[tuple[Record, Look]], groups: Groups, dropped: list[Drop], settings: ScreenConfig
) -> list[tuple[Record, Look]]:
    """Drop the lesser of each pair that looks the same; merge the groups of all that look alike."""
    order = sorted(range(len(passed)), key=lambda index: (_rank(passed[index][0]), index))
    records, looks = [passed[index][0] for index in order], [passed[index][1] for index in order]
    thumbs = thumbs_of(looks)
    lost: dict[int, str] = {}
    for one, others in close_pairs(looks, settings.near_bits):
        distances = colour_distances(thumbs[one], thumbs[others])
        for other, levels in zip(others.tolist(), distances.tolist(), strict=True):
            if levels <= max(settings.related_levels, settings.duplicate_levels):
                groups.merge((records[one].group, records[other].group))
            if levels <= settings.duplicate_levels and one not in lost and other not in lost:
                is_exact = looks[one].pixels == looks[other].pixels
                lost[other] = "duplicate" if is_exact else "near_duplicate"
    for position in sorted(lost, key=lambda position: order[position]):
        dropped.append(Drop(lost[position], records[position].image_url or records[position].id))
    gone = {order[position] for position in lost}
    return [pair for index, pair in enumerate(passed) if index not in gone]


def _rank(record: Record) -> tuple[bool, int]:
    """Sorts what is worth keeping first: described, then large."""
    return record.caption is None, -record.width_px * record.height_px
