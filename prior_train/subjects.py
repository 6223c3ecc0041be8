"""Batches for subjects: groups in equal parts, and classes as the unmodified prior drew them beside them.

Paper: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2, in a prior's terms: what is kept is not a picture but
the image embedding that a class prompt led to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.embeddings import EmbeddingShard, read_embeddings
from crest.errors import ConfigError, DataError
from crest.mixing import Mix, grouped
from crest.preservation import class_embeddings
from crest.shards import read_samples
from crest.world import Draw, World
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch, rows


def made_class_embeddings(config: PriorTrainConfig) -> Path | None:
    """The class embeddings that a run asks for, drawn where they are not there yet; None if it asks for none.

    Raises:
        ConfigError: there is no starting model to draw them.
    """
    if config.preservation is None:
        return None
    if config.model.start is None:
        raise ConfigError(
            "preservation: expected null with model.scratch, for random weights know no class; name a "
            "model.start or remove it."
        )
    return class_embeddings(
        config.preservation, config.data.embeddings, config.model.start, config.run.device
    )


class SubjectRows:
    """Training rows of which some places are of classes, and in which every group is seen alike.

    Args:
        subjects: of the run; reads_text: whether the prior does.
        classes: folder of what the unmodified prior drew; None without preservation.
    """

    def __init__(
        self, subjects: EmbeddingShard, reads_text: bool, classes: Path | None, config: PriorTrainConfig
    ) -> None:
        self.subjects = subjects
        self.classes = read_embeddings(classes, "train", encodings=reads_text) if classes else None
        share = config.preservation.share if config.preservation else 0.0
        count = len(self.classes.ids) if self.classes else 0
        self.mix = Mix(grouped(_keys(subjects.ids, config)), count, share)
        shards = [shard for shard in (subjects, self.classes) if shard is not None]
        self._length = max(shard.text_encodings.shape[1] for shard in shards)

    def batches(
        self, seed: int, batch_size: int, micro: int, world: World, start: int
    ) -> Iterator[PriorBatch]:
        """Endless micro-batches from step `start`."""
        mine = batch_size // world.size
        step = start
        while True:
            numbers, is_class = (torch.from_numpy(part) for part in self.mix.at(seed, batch_size, step))
            for first in range(world.rank * mine, (world.rank + 1) * mine, micro):
                part, draw = slice(first, first + micro), Draw(seed, step, first, micro, world.device)
                yield self._rows(numbers[part], is_class[part], draw, world.device)
            step += 1

    def _rows(self, numbers: Tensor, is_class: Tensor, draw: Draw, device: torch.device) -> PriorBatch:
        # every place reads a row of both, so that draws belong to places; the other one is put aside
        batch = self._padded(rows(self.subjects, numbers.where(~is_class, 0), draw, device, views=True))
        if self.classes is None:
            return batch
        other = self._padded(rows(self.classes, numbers.where(is_class, 0), draw, device))
        kept = is_class.to(device)
        words = batch.text_encodings
        return PriorBatch(
            torch.where(kept[:, None], other.image_embed, batch.image_embed),
            torch.where(kept[:, None], other.text_embed, batch.text_embed),
            None
            if words is None or other.text_encodings is None
            else torch.where(kept[:, None, None], other.text_encodings, words),
            draw,
            is_class=kept,
            ids=tuple(
                theirs if is_theirs else own
                for own, theirs, is_theirs in zip(batch.ids, other.ids, is_class.tolist(), strict=True)
            ),
        )

    def _padded(self, batch: PriorBatch) -> PriorBatch:
        words = batch.text_encodings
        if words is None:
            return batch
        return replace(batch, text_encodings=F.pad(words, (0, 0, 0, self._length - words.shape[1])))


def _keys(ids: list[str], config: PriorTrainConfig) -> list[str]:
    """What each row is balanced by, read from the shards.

    Raises:
        ConfigError: no shards are named. DataError: they lack a row.
    """
    by, shards = config.data.balance_by, config.data.shards
    if by is None:
        return [""] * len(ids)
    if shards is None:
        raise ConfigError(
            f"data.balance_by: found {by} without data.shards, where groups and captions are; name the "
            "shards that were embedded."
        )
    key_of = {
        sample.id: sample.caption if by == "caption" else str(sample.meta.get("group", sample.id))
        for sample in read_samples(shards, "train")
    }
    missing = [name for name in ids if name not in key_of]
    if missing:
        raise DataError(
            f"{shards}: lacks {len(missing)} of the logos in {config.data.embeddings} ({missing[0]} …); name "
            "the shards that were embedded."
        )
    return [key_of[name] for name in ids]
