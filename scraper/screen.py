"""Reject what is too small, blank, a duplicate or not wanted, count every reason, merge groups of relatives.

Near duplicates are dropped within and across groups; looser relatives stay, but share a group, so that a
split cannot leak. Refuses to touch the pictures: `judge` sees columns of numbers only, so that a million
pictures are judged like ten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from crest.records import Record
from scraper.config import ScreenConfig
from scraper.harvest import Drop
from scraper.likeness import BLANK, INVISIBLE, LOOK_DTYPE, Look, pack_looks
from scraper.twins import Looks, Thumbs, find_pairs, places_of

REASONS: Final = (
    "",
    "too_small",
    "invisible_on_white",
    "blank",
    "duplicate",
    "near_duplicate",
    "mirrored_duplicate",
)
"""`Verdicts.reason` 0 to 6; from 7 on, "kind_<name>" of `Candidates.kinds` in turn."""
_TOO_SMALL, _INVISIBLE, _BLANK, _DUPLICATE, _NEAR, _MIRRORED = range(1, len(REASONS))


@dataclass(frozen=True)
class Candidates:
    """What judging needs of each picture, as columns (N,); about 80 bytes a picture and no thumb."""

    content: NDArray[np.uint64]
    """the first 8 bytes of the SHA-256 of the picture's bytes, as a big-endian number (the record's id)"""
    group: NDArray[np.uint64]
    """`key_of` the source's group"""
    source_file: NDArray[np.uint64]
    """`key_of` the record's source_file; 0 when unknown"""
    width_px: NDArray[np.int32]
    height_px: NDArray[np.int32]
    is_described: NDArray[np.bool_]
    kind: NDArray[np.int16]
    """index into `kinds`; -1 when unknown"""
    kinds: tuple[str, ...]
    pixels: NDArray[np.uint64]
    bits: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]
    aspect: NDArray[np.float32]
    flags: NDArray[np.uint8]
    """these five as in `likeness.LOOK_DTYPE`"""
    thumbs: Thumbs
    """indexes (n,) -> thumbs (n, THUMB_BYTES), from memory or from files"""

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Verdicts:
    """What becomes of each picture, as columns (N,)."""

    reason: NDArray[np.int16]
    """0: kept; else what `reason_name` says"""
    twin: NDArray[np.int64]
    """the kept picture that a duplicate repeats; -1 for all others"""
    group: NDArray[np.int64]
    """the picture whose group names the merged group: of the lowest group key, then content key"""
    kinds: tuple[str, ...]

    def reason_name(self, index: int) -> str:
        """The named reason of picture `index`; empty when it is kept."""
        reason = int(self.reason[index])
        return REASONS[reason] if reason < len(REASONS) else f"kind_{self.kinds[reason - len(REASONS)]}"


def key_of(text: str) -> int:
    """A name as a number of 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def judge(candidates: Candidates, settings: ScreenConfig) -> Verdicts:
    """Decide which pictures stay, whom the others repeat, and which groups belong together.

    The described, then the larger, then the one of the lower content key stays; of files that are equal byte
    for byte, equally described, the first. So a verdict does not depend on the order of the candidates.

    Args:
        candidates: all pictures of a data folder.
        settings: the thresholds.
    """
    reason = _faults(candidates, settings)
    twin = np.full(len(candidates), -1, dtype=np.int64)
    area = candidates.width_px.astype(np.int64) * candidates.height_px
    ranked = np.lexsort((candidates.content, -area, ~candidates.is_described))
    in_play = ranked[reason[ranked] == 0]
    alive = in_play
    for column in (candidates.content, candidates.pixels):
        alive = _without_equals(column, alive, reason, twin)
    links = [_chain(candidates.group[in_play], in_play)]
    is_known = candidates.source_file[in_play] > 0
    links.append(_chain(candidates.source_file[in_play][is_known], in_play[is_known]))
    if settings.pixels:
        links += _without_twins(candidates, alive, settings, reason, twin)
    repeats = np.flatnonzero(twin >= 0)
    links.append(np.stack([repeats, twin[repeats]]))
    return Verdicts(
        reason, twin, _names(candidates, in_play, np.concatenate(links, axis=1)), candidates.kinds
    )


def _faults(candidates: Candidates, settings: ScreenConfig) -> NDArray[np.int16]:
    """What is wrong with each picture by itself."""
    reason = np.zeros(len(candidates), dtype=np.int16)
    if settings.kinds:
        unwanted = [kind not in settings.kinds and kind != "" for kind in candidates.kinds]
        is_unwanted = np.array([*unwanted, False])[candidates.kind]
        reason[is_unwanted] = len(REASONS) + candidates.kind[is_unwanted]
    reason[candidates.flags & BLANK > 0] = _BLANK
    reason[candidates.flags & INVISIBLE > 0] = _INVISIBLE
    reason[np.maximum(candidates.width_px, candidates.height_px) < settings.min_side_px] = _TOO_SMALL
    return reason


def _without_equals(
    column: NDArray[np.uint64], alive: NDArray[np.int64], reason: NDArray[np.int16], twin: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Drop all but the best of those with the same key; returns the others, in their order."""
    _, first, inverse = np.unique(column[alive], return_index=True, return_inverse=True)
    best = alive[first[inverse]]
    repeats = best != alive
    reason[alive[repeats]] = _DUPLICATE
    twin[alive[repeats]] = best[repeats]
    others: NDArray[np.int64] = alive[~repeats]
    return others


def _without_twins(
    candidates: Candidates,
    alive: NDArray[np.int64],
    settings: ScreenConfig,
    reason: NDArray[np.int16],
    twin: NDArray[np.int64],
) -> list[NDArray[np.int64]]:
    """Drop the lesser of each pair that looks the same; returns links between all that look alike.

    In a crowd not every pair is seen at once: it is thinned out until no more is dropped.
    """
    looks = Looks(candidates.bits, candidates.mirrored, candidates.aspect, candidates.thumbs)
    links: list[NDArray[np.int64]] = []
    places, asked = places_of(looks.some(alive)), np.arange(len(alive))
    while len(alive) > 1:
        pairs = find_pairs(looks.some(alive), settings, places, asked)
        links.append(np.stack([alive[pairs.one], alive[pairs.other]]))
        is_same = pairs.difference <= settings.duplicate_difference
        lost = np.zeros(len(alive), dtype=bool)
        same = zip(pairs.one[is_same], pairs.other[is_same], pairs.is_mirrored[is_same], strict=True)
        for one, other, is_mirrored in same:  # in rising order of `one`: it is settled when its turn comes
            if not lost[one] and not lost[other]:
                lost[other] = True
                reason[alive[other]] = _MIRRORED if is_mirrored else _NEAR
                twin[alive[other]] = alive[one]
        is_crowded = np.zeros(len(alive), dtype=bool)
        is_crowded[pairs.crowded] = True
        alive, places, asked = alive[~lost], places[~lost], np.flatnonzero(is_crowded[~lost])
        if not (lost.any() and asked.size):
            break
    _hand_on(twin)
    return links


def _hand_on(twin: NDArray[np.int64]) -> None:
    """Whoever repeated a picture that was dropped itself repeats the one that was kept."""
    while True:
        handed = np.flatnonzero(twin >= 0)
        above = twin[twin[handed]]
        if not (above >= 0).any():
            return
        twin[handed] = np.where(above >= 0, above, twin[handed])


def _chain(keys: NDArray[np.uint64], indexes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Links (2, M) between neighbours of the same key."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return np.stack([indexes[order][:-1][same], indexes[order][1:][same]])


def _components(links: NDArray[np.int64], count: int) -> NDArray[Any]:
    """(count,) a number for each set of pictures that links hold together."""
    if not links.shape[1]:  # nothing is linked: scipy would take longer to import than a small folder takes
        return np.arange(count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(links.shape[1], dtype=bool), (links[0], links[1])), shape=(count, count))
    label: NDArray[Any] = connected_components(edges, directed=False)[1]
    return label


def _names(candidates: Candidates, in_play: NDArray[np.int64], links: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each picture the one that names its group; a picture with a fault of its own names itself."""
    count = len(candidates)
    label = _components(links, count)
    naming = in_play[np.lexsort((in_play, candidates.content[in_play], candidates.group[in_play]))]
    first = np.arange(count)
    names, at = np.unique(label[naming], return_index=True)
    by_label = np.full(int(label.max(initial=0)) + 1, -1, dtype=np.int64)
    by_label[names] = naming[at]
    first[in_play] = by_label[label[in_play]]
    return first


@dataclass(frozen=True)
class Screened:
    """What passed and what did not."""

    records: tuple[Record, ...]
    dropped: tuple[Drop, ...]


def screen(records: Sequence[Record], looks: Mapping[str, Look], settings: ScreenConfig) -> Screened:
    """Screen records in memory; the order stays.

    Args:
        records: what a source gave.
        looks: the look of each picture by its id; not read without `settings.pixels`.
        settings: the thresholds.
    """
    rows = pack_looks([looks[record.id] for record in records]) if settings.pixels else None
    verdicts = judge(candidates_of(records, rows), settings)
    kept: list[Record] = []
    dropped: list[Drop] = []
    for index, record in enumerate(records):
        reason = verdicts.reason_name(index)
        if not reason:
            kept.append(replace(record, group=records[verdicts.group[index]].group))
            continue
        like = records[verdicts.twin[index]].id if verdicts.twin[index] >= 0 else ""
        dropped.append(Drop(reason, record.image_url or record.id, record.image, like))
    return Screened(tuple(kept), tuple(dropped))


def candidates_of(records: Sequence[Record], looks: NDArray[np.void] | None) -> Candidates:
    """The columns of records that are held in memory.

    Args:
        records: what a source gave.
        looks: one row of `likeness.LOOK_DTYPE` each; None when nobody looked at the pictures.
    """
    content = np.array([int(record.id, 16) for record in records], dtype=np.uint64)
    rows = np.zeros(len(records), dtype=LOOK_DTYPE) if looks is None else looks
    kinds = tuple(sorted({record.kind for record in records if record.kind}))
    thumbs = rows["thumb"]
    return Candidates(
        content=content,
        group=np.array([key_of(record.group) for record in records], dtype=np.uint64),
        source_file=np.array(
            [key_of(record.source_file) if record.source_file else 0 for record in records], dtype=np.uint64
        ),
        width_px=np.array([record.width_px for record in records], dtype=np.int32),
        height_px=np.array([record.height_px for record in records], dtype=np.int32),
        is_described=np.array([record.caption is not None for record in records], dtype=bool),
        kind=np.array(
            [kinds.index(record.kind) if record.kind else -1 for record in records], dtype=np.int16
        ),
        kinds=kinds,
        pixels=content if looks is None else rows["pixels"],
        bits=rows["bits"],
        mirrored=rows["mirrored"],
        aspect=rows["aspect"],
        flags=rows["flags"],
        thumbs=lambda indexes: thumbs[indexes],
    )
