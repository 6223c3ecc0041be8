"""Which split a picture belongs to: a pure function of its group and the seed, that stays put as data grows.

Groups that share words, lettering or a source file are one; a ledger beside the shards remembers where each
group and picture went, so that one that is known never moves, unless new data links it to another split's.
Works on columns of numbers, so that a million pictures are a matter of seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crest.errors import DataError
from crest.records import SPLITS, Split, write_bytes
from scraper.config import PackConfig

SHARED_WORDS: Final = 20
"""What is shared by more groups than this names a class, not a logo, and makes no relatives."""
LEDGER: Final = "splits.npz"
_CODES: Final[Mapping[Split, int]] = {split: code for code, split in enumerate(SPLITS)}
_UNKNOWN: Final = -1
Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def place_of(group: str, seed: int) -> float:
    """Where a group falls in [0, 1): its hash with the seed."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def split_of(place: float, settings: PackConfig) -> Split:
    """The share that a place falls into."""
    if place < settings.test_share:
        return "test"
    return "val" if place < settings.test_share + settings.val_share else "train"


@dataclass(frozen=True)
class Links:
    """What the pictures have in common, in columns."""

    groups: Keys
    """(N,) key of each picture's group, as screening named it"""
    places: NDArray[np.float64]
    """(N,) where that group falls"""
    pictures: Keys
    """(N,) key of each picture, of another space than those of groups"""
    shared: Mapping[str, tuple[Numbers, Keys]]
    """kind of thing -> pictures and the key of what each has; one picture may have several"""


@dataclass(frozen=True)
class Families:
    """Groups merged by what they share."""

    atoms: Keys
    """(A,) the keys of the groups, ascending"""
    atom_of: Numbers
    """(N,) which of them each picture is in"""
    family_of: Numbers
    """(A,) which family each group is in, numbered by its first group"""
    namer: Numbers
    """(F,) a picture of each family's first group, whose name is the family's"""
    too_common: Mapping[str, int]
    """kind of thing -> how many of them were shared too widely to mean anything"""


def families(links: Links) -> Families:
    """Merge groups that share a caption, lettering or a source file."""
    atoms, first, atom_of = np.unique(links.groups, return_index=True, return_inverse=True)
    ends: list[tuple[Numbers, Numbers]] = []
    too_common: dict[str, int] = {}
    for kind, (pictures, keys) in links.shared.items():
        pairs = np.unique(np.stack([keys, atom_of[pictures].astype(np.uint64)], axis=1), axis=0)
        starts = (
            np.flatnonzero(np.r_[True, pairs[1:, 0] != pairs[:-1, 0]]) if len(pairs) else np.zeros(0, int)
        )
        counts = np.diff(np.r_[starts, len(pairs)])
        # what every group has tells none apart: one prompt for a whole folder
        is_class = (counts > SHARED_WORDS) | ((counts == len(atoms)) & (counts > 1))
        too_common[kind] = int(is_class.sum())
        is_same = np.r_[pairs[1:, 0] == pairs[:-1, 0], False] if len(pairs) else np.zeros(0, bool)
        linking = np.flatnonzero(is_same & ~np.repeat(is_class, counts))
        ends.append((pairs[linking, 1].astype(np.int64), pairs[linking + 1, 1].astype(np.int64)))
    left, right = (np.concatenate([np.zeros(0, np.int64), *side]) for side in zip(*ends, strict=True))
    leaders, family_of = np.unique(_joined(len(atoms), left, right), return_inverse=True)
    return Families(atoms, atom_of, family_of, first[leaders], too_common)


def _joined(count: int, left: Numbers, right: Numbers) -> Numbers:
    """The lowest number that each of `count` is joined with, directly or by others (count,)."""
    lowest = np.arange(count)
    while True:
        one, other = lowest[left], lowest[right]
        if np.array_equal(one, other):
            return lowest
        np.minimum.at(lowest, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(further := lowest[lowest], lowest):
            lowest = further


@dataclass(frozen=True)
class Ledger:
    """Where groups and pictures went before."""

    keys: Keys
    """(K,) of groups and pictures, ascending"""
    splits: NDArray[np.int8]
    """(K,) number of the split in SPLITS"""

    def look_up(self, keys: Keys) -> NDArray[np.int8]:
        """The split of each key, -1 where it is not known."""
        if not len(self.keys):
            return np.full(len(keys), _UNKNOWN, np.int8)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.splits[places], np.int8(_UNKNOWN))


EMPTY: Final = Ledger(np.zeros(0, np.uint64), np.zeros(0, np.int8))


@dataclass(frozen=True)
class Divided:
    """The split of every family, and what the ledger says from now on."""

    splits: NDArray[np.int8]
    """(F,) number of the split in SPLITS"""
    moved: Numbers
    """pictures that were in another split before, because new data links them to what is held out"""
    ledger: Ledger


def divide(links: Links, found: Families, ledger: Ledger, settings: PackConfig, where: str) -> Divided:
    """Give every family a split: the one it has, else that of the place where its first group falls.

    Where known members disagree, the most held-out split wins: what was tested on is never trained on. A
    share that is wanted but got no family (there are only a few) takes the one that came nearest to it.

    Raises:
        DataError: fewer families than splits.
    """
    count = len(found.namer)
    shares: dict[Split, float] = {"test": settings.test_share, "val": settings.val_share}
    wanted = [split for split, share in shares.items() if share > 0]
    if count <= len(wanted):
        raise DataError(
            f"{where}: the logos form {count} groups, expected more than {len(wanted)} to split without "
            "leaks; add logos or set pack.val_share and pack.test_share to 0."
        )
    before = ledger.look_up(links.pictures)
    family_of_picture = found.family_of[found.atom_of]
    known = np.full(count, _UNKNOWN, np.int8)
    np.maximum.at(known, found.family_of, ledger.look_up(found.atoms))
    np.maximum.at(known, family_of_picture, before)
    places = links.places[found.namer]
    drawn = np.full(count, _CODES["train"], np.int8)
    drawn[places < settings.test_share + settings.val_share] = _CODES["val"]
    drawn[places < settings.test_share] = _CODES["test"]
    splits = np.where(known == _UNKNOWN, drawn, known)
    _fill(splits, known == _UNKNOWN, places, wanted)
    after = splits[family_of_picture]
    moved = np.flatnonzero((before != _UNKNOWN) & (before != after))
    return Divided(
        splits,
        moved,
        _grown(ledger, np.r_[found.atoms, links.pictures], np.r_[splits[found.family_of], after]),
    )


def _fill(
    splits: NDArray[np.int8], is_new: NDArray[np.bool_], places: NDArray[np.float64], wanted: list[Split]
) -> None:
    """See that no wanted split stays empty; families that the ledger knows move only if no other can."""
    order = np.argsort(places, kind="stable")
    for split in wanted:
        counts = np.bincount(splits, minlength=len(SPLITS))
        if counts[_CODES[split]]:
            continue
        # the nearest neighbour above: families are in the order of their places
        can = [int(one) for one in order if splits[one] == _CODES["train"] or counts[splits[one]] > 1]
        splits[next((one for one in can if is_new[one]), can[0])] = _CODES[split]
    if not (splits == _CODES["train"]).any():
        backwards = [int(one) for one in order[::-1]]
        splits[next((one for one in backwards if is_new[one]), backwards[0])] = _CODES["train"]


def _grown(ledger: Ledger, keys: Keys, splits: NDArray[np.int8]) -> Ledger:
    """The ledger with these keys added; what is known of others stays, should they come back."""
    old = ~np.isin(ledger.keys, keys)
    every, first = np.unique(np.r_[keys, ledger.keys[old]], return_index=True)
    return Ledger(every, np.r_[splits, ledger.splits[old]][first].astype(np.int8))


def read_ledger(folder: Path, settings: PackConfig) -> Ledger | None:
    """The ledger of a shards folder; empty where there is none, None when it is of another seed or shares.

    Raises:
        DataError: it is damaged.
    """
    path = folder / LEDGER
    if not path.exists():
        return EMPTY
    try:
        with np.load(path, allow_pickle=False) as arrays:
            drawn_with, ledger = str(arrays["drawn_with"]), Ledger(arrays["keys"], arrays["splits"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: is not a ledger of splits ({error}); put a copy back, or remove it to draw the splits "
            "anew, which may move logos between train and test."
        ) from None
    return ledger if drawn_with == _drawn_with(settings) else None


def write_ledger(folder: Path, ledger: Ledger, settings: PackConfig) -> None:
    """Write splits.npz whole or not at all."""
    stream = io.BytesIO()
    np.savez(stream, keys=ledger.keys, splits=ledger.splits, drawn_with=np.array(_drawn_with(settings)))
    write_bytes(folder / LEDGER, stream.getvalue())


def _drawn_with(settings: PackConfig) -> str:
    return json.dumps(settings.model_dump(include={"seed", "val_share", "test_share"}), sort_keys=True)
