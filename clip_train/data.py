"""Shards to contrastive batches; every process reads its own part of the same global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_train.config import ClipDataConfig
from crest.augment import cached_px, random_crop, random_resized_crop, shift
from crest.models.clip import ClipModel
from crest.pixels import Pictures, batch_numbers, open_pictures
from crest.world import Draw, World


@dataclass(frozen=True)
class ClipBatch:
    """This process's share of one contrastive batch."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]"""
    tokens: Tensor
    """(B, L)"""
    same: Tensor
    """(B,) int64; equal where the captions are equal, which makes them positives of each other"""
    chunk: int
    """samples in memory at once"""


class ClipData:
    """The splits of one shards folder at a model's picture size, captions tokenised once."""

    def __init__(self, config: ClipDataConfig, model: ClipModel) -> None:
        self.config = config
        self._side_px = model.side_px
        is_cut = config.augment != "shift"
        kept_px = cached_px(model.side_px) if is_cut else model.side_px
        self.train = open_pictures(config.shards, "train", kept_px)
        self.val = open_pictures(config.shards, "val", model.side_px)
        self._tokens = model.tokenizer(self.train.captions)
        self._crop = model.crop
        self._caption_numbers = number_captions(self.train)

    def batches(
        self, seed: int, batch_size: int, micro: int, world: World, start: int
    ) -> Iterator[ClipBatch]:
        """Endless batches from step `start`, a pure function of seed, step and position."""
        mine = batch_size // world.size
        step = start
        while True:
            numbers = batch_numbers(seed, len(self.train), batch_size, step)
            tokens = self._crop(self._tokens[torch.from_numpy(numbers)])  # one length on every process
            own = slice(world.rank * mine, (world.rank + 1) * mine)
            draw = Draw(seed, step, world.rank * mine, mine)
            yield ClipBatch(
                self._images(numbers[own], draw).to(world.device),
                tokens[own].to(world.device),
                torch.from_numpy(self._caption_numbers[numbers[own]]).to(world.device),
                micro,
            )
            step += 1

    def _images(self, numbers: NDArray[np.int64], draw: Draw) -> Tensor:
        """Training pictures as they are shown, (B, 3, H, W) in [0, 1]."""
        if self.config.augment == "shift":
            images = shift(torch.from_numpy(self.train.floats(numbers)), draw, self.config.shift_px)
        else:
            cut = random_crop if self.config.augment == "crop" else random_resized_crop
            images = cut(self.train.pixels, numbers, draw, self._side_px)
        return add_noise(images, draw, self.config.noise)


def number_captions(pictures: Pictures) -> np.ndarray:
    """One number per distinct caption (case and spaces aside), (N,) int64."""
    numbers: dict[str, int] = {}
    return np.array(
        [numbers.setdefault(" ".join(text.lower().split()), len(numbers)) for text in pictures.captions]
    )


def add_noise(images: Tensor, draw: Draw, noise: float) -> Tensor:
    """Pictures (B, 3, H, W) with normal noise of this deviation, still in [0, 1]."""
    if noise:
        images = (images + noise * draw.normal(2, *images.shape[1:])).clamp(0, 1)
    return images
