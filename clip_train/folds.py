"""Cross-validation: the recipe trained k times, each time judged on the logos that it alone did not see.

`python -m clip_train.folds --config clip.json` takes the training's own config, and learns from its train and
val splits; the test split is never touched. A fold that is finished is not trained again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clip_train.config import ClipTrainConfig
from crest.config import Config, run_command
from crest.errors import ConfigError, DataError
from crest.records import hash_of

CHOOSING: Final = 8
"""One in so many of a fold's training logos chooses its best step and share instead of being learned from."""


class FoldsSection(Config):
    """How often, and how the logos are dealt out."""

    k: int = Field(default=5, ge=2)
    """Trainings, each with one k-th of the logos held out."""
    seed: int = 0
    """Deals groups of equal size to folds."""


class FoldsConfig(ClipTrainConfig):
    """A training's config, trained in folds below its run folder."""

    folds: FoldsSection = FoldsSection()
    """How many; a training's own file, which has no such section, takes `--set folds.k=10`."""


@dataclass(frozen=True)
class Parts:
    """Numbers of the logos that one fold learns from, chooses by and is judged on; rising, together all."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    held_out: NDArray[np.int64]


def folds(groups: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Which fold each sample is held out in: groups stay whole, and folds are as equal as groups allow.

    The largest group goes first, each to the fold that holds least. Where a sample lies depends on the
    groups, their sizes and the seed alone, not on the order of the samples.

    Args:
        groups: (N,) what must not be split.
        k: folds.
        seed: orders groups of equal size.
    Returns:
        (N,) from 0 to k - 1, each of them at least once.
    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer groups than folds.
    """
    if k < 2:
        raise ConfigError(f"folds.k: found {k}, expected at least 2; raise it.")
    sizes = Counter(groups)
    if len(sizes) < k:
        raise DataError(
            f"folds.k: {k} folds of {len(sizes)} groups ({len(groups)} logos), expected a group for each; "
            "lower it or pack more groups."
        )
    held, fold_of = [0] * k, {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], hash_of(seed, name), name)):
        fold_of[group] = min(range(k), key=held.__getitem__)
        held[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


def parts_of(groups: Sequence[str], k: int, seed: int, fold: int) -> Parts:
    """One fold's three parts: its own logos judge, one in CHOOSING of the others choose, the rest teach.

    What chooses the best step is never what judges, or the figure would be that of the luckiest step.

    Raises:
        DataError: too few logos for three parts of two.
    """
    own = folds(groups, k, seed) == fold
    rest = np.flatnonzero(~own)
    names = [groups[number] for number in rest.tolist()]
    for choosing in range(min(CHOOSING, len(set(names))), 1, -1):
        chooses = folds(names, choosing, int(hash_of(seed, fold), 16)) == 0
        parts = Parts(rest[~chooses], rest[chooses], np.flatnonzero(own))
        if min(map(len, (parts.train, parts.val, parts.held_out))) >= 2:
            return parts
    raise DataError(
        f"folds.k: fold {fold} of {k} would hold out {int(own.sum())} and learn from {len(rest)} logos in "
        f"{len(set(names))} groups, expected 2 to judge by, 2 to choose by and 2 to learn from; change it or "
        "pack more logos."
    )


def check(config: FoldsConfig) -> None:
    """Look whether the inputs exist."""
    from crest.records import read_manifest
    from crest.tars import MADE_BY

    read_manifest(config.data.shards, "shards", MADE_BY)


def main(config: FoldsConfig) -> None:
    """Train every fold that is not finished, then sum up."""
    from clip_train.cross_validation import cross_validate
    from crest.world import open_world

    world = open_world(config.run.device, config.run.precision)
    summary, path = cross_validate(config, world)
    if world.is_main:
        print(f"{summary}; {path} shows it")


if __name__ == "__main__":
    sys.exit(run_command("clip_train.folds", FoldsConfig, main, check=check))
