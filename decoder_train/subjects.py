"""Batches for subjects and styles: groups in equal parts, class pictures beside them.

Paper: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2 (class-specific prior preservation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.errors import ConfigError
from crest.mixing import Mix, grouped
from crest.preservation import ClassPictures, class_pictures
from crest.world import Draw, World
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch, DecoderData


def made_class_pictures(config: DecoderTrainConfig) -> ClassPictures | None:
    """The class pictures that a run asks for, drawn where they are not there yet; None if it asks for none.

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
    return class_pictures(config.preservation, config.data.embeddings, config.model.start, config.run.device)


class SubjectData:
    """Training data of which some places are of classes, and in which every group is seen alike.

    Args:
        subjects: of the run.
        classes: what the unmodified model drew; None without preservation.
        config: of the run.
    """

    def __init__(
        self, subjects: DecoderData, classes: DecoderData | None, config: DecoderTrainConfig
    ) -> None:
        self.subjects, self.classes = subjects, classes
        pictures, by = subjects.pictures, config.data.balance_by
        keys = {"group": pictures.groups, "caption": pictures.captions}.get(by or "", [""] * len(pictures))
        share = config.preservation.share if config.preservation else 0.0
        self.mix = Mix(grouped(keys), len(classes.pictures) if classes else 0, share)
        texts = [
            data.text_encodings for data in (subjects, classes) if data and data.text_encodings is not None
        ]
        self._length = max((text.shape[1] for text in texts), default=0)

    def batches(
        self, seed: int, batch_size: int, micro: int, world: World, start: int
    ) -> Iterator[DecoderBatch]:
        """Endless micro-batches from step `start`."""
        mine = batch_size // world.size
        step = start
        while True:
            numbers, is_class = (torch.from_numpy(part) for part in self.mix.at(seed, batch_size, step))
            for first in range(world.rank * mine, (world.rank + 1) * mine, micro):
                part, draw = slice(first, first + micro), Draw(seed, step, first, micro, world.device)
                yield self._rows(numbers[part], is_class[part], draw, world.device)
            step += 1

    def _rows(self, numbers: Tensor, is_class: Tensor, draw: Draw, device: torch.device) -> DecoderBatch:
        parts: list[tuple[Tensor, DecoderBatch]] = []
        for data, where in ((self.subjects, ~is_class), (self.classes, is_class)):
            if data is not None and bool(where.any()):
                rows = data.some_rows(numbers[where], draw, where, device)
                text = rows.text_encodings
                if text is not None:
                    text = F.pad(text, (0, 0, 0, self._length - text.shape[1]))
                parts.append((where.nonzero()[:, 0], replace(rows, text_encodings=text)))
        first = parts[0][1]
        ids = {
            place: name
            for places, rows in parts
            for place, name in zip(places.tolist(), rows.ids, strict=True)
        }
        return DecoderBatch(
            _joined(parts, "images"),
            _joined(parts, "image_embed"),
            None if first.text_encodings is None else _joined(parts, "text_encodings"),
            draw,
            None if first.lowres is None else _joined(parts, "lowres"),
            is_class=is_class.to(device) if self.classes else None,
            ids=tuple(ids[place] for place in range(len(numbers))),
        )


def _joined(parts: list[tuple[Tensor, DecoderBatch]], name: str) -> Tensor:
    """One tensor of all parts, each row at its place."""
    tensors: list[Tensor] = [getattr(batch, name) for _, batch in parts]
    # the order is known on the CPU: no device is waited for
    order = torch.cat([places for places, _ in parts]).argsort().to(tensors[0].device)
    return torch.cat(tensors)[order]
