"""Which sample stands at which place of a batch, where groups are seen alike or classes kept beside them.

All of it follows from (seed, step, place): a run that was stopped or is split sees the same batches.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crest.diffusion.timesteps import STRATA
from crest.errors import DataError
from crest.preservation_config import PreservationConfig

Numbers = NDArray[np.int64]
_SUBJECTS, _CLASSES, _PLACES = 1, 2, 3


@dataclass(frozen=True)
class Mix:
    """Subjects in their groups, and classes beside them."""

    groups: tuple[Numbers, ...]
    """the numbers of each group's samples; each group is drawn as often as any other"""
    class_count: int = 0
    """samples of the classes; 0 without preservation"""
    class_share: float = 0.0
    """of every batch"""

    def at(self, seed: int, batch_size: int, step: int) -> tuple[Numbers, NDArray[np.bool_]]:
        """The samples of one global batch: their numbers (B,), and which are of the classes (B,) bool.

        Few pictures may stand in a batch several times: each is drawn anew only after all of its group were.

        Raises:
            DataError: the share of classes, or of subjects, comes to no sample.
        """
        count = class_places(self.class_share, batch_size) if self.class_count else 0
        if self.class_count and not 0 < count < batch_size:
            raise DataError(
                f"preservation.share: found {self.class_share:g} of a batch of {batch_size}, which is "
                f"{count} class samples, expected one at least and fewer than all; change it or "
                "optim.batch_size."
            )
        numbers = np.empty(batch_size, dtype=np.int64)
        is_class = _spread(seed, batch_size, count, step)
        numbers[~is_class] = _balanced([seed, _SUBJECTS], self.groups, batch_size - count, step)
        if count:
            classes = (np.arange(self.class_count, dtype=np.int64),)
            numbers[is_class] = _balanced([seed, _CLASSES], classes, count, step)
        return numbers, is_class


def class_places(share: float, batch_size: int) -> int:
    """How many of a batch are class samples."""
    return round(share * batch_size)


def grouped(groups: Sequence[Hashable]) -> tuple[Numbers, ...]:
    """The numbers of the samples of each group, in the order in which groups appear."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    return tuple(np.asarray(numbers, dtype=np.int64) for numbers in members.values())


def _spread(seed: int, batch_size: int, count: int, step: int) -> NDArray[np.bool_]:
    """`count` of the places, evenly over the batch; within each stratum of timesteps at places of chance."""
    place = np.arange(batch_size)
    chosen = (place + 1) * count // batch_size > place * count // batch_size
    for block, first in enumerate(range(0, batch_size, STRATA)):
        draw = np.random.default_rng([seed, _PLACES, step, block])
        chosen[first : first + STRATA] = draw.permutation(chosen[first : first + STRATA])
    return chosen


def _balanced(stream: list[int], groups: tuple[Numbers, ...], count: int, step: int) -> Numbers:
    """The step's part of an endless row in which the groups take turns; each goes through its own epochs."""
    turns = np.arange(step * count, (step + 1) * count)
    numbers = np.empty(count, dtype=np.int64)
    for group, members in enumerate(groups):
        mine = turns % len(groups) == group
        epochs, offsets = np.divmod(turns[mine] // len(groups), len(members))
        found = np.empty(len(epochs), dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng([*stream, group, int(epoch)]).permutation(members)
            found[epochs == epoch] = order[offsets[epochs == epoch]]
        numbers[mine] = found
    return numbers


def weighed(
    error: Tensor, is_class: Tensor | None, preservation: PreservationConfig | None, batch_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of a batch in which a class sample counts `weight` times, and the loss of either kind.

    At a share of a half this is the sum of two means of Ruiz et al. 2022 (arXiv 2208.12242), eq. 2, halved.

    Args:
        error: (B,); is_class: (B,) bool, None where there are no classes.
        batch_size: of the whole batch, so that the figures of its parts come to the means of all.
    """
    if is_class is None or preservation is None:
        return error.mean(), {}
    kept, share = is_class.to(error.dtype), class_places(preservation.share, batch_size) / batch_size
    figures = {
        "subject_loss": ((1 - kept) * error.detach()).mean() / (1 - share),
        "class_loss": (kept * error.detach()).mean() / share,
    }
    return (error * (1 + kept * (preservation.weight - 1))).mean(), figures
