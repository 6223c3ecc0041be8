"""Shards and embeddings, joined by id, to batches; every process reads its part of one global batch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crest.augment import move
from crest.embeddings import EmbeddingShard, embeddings_parents, read_embeddings
from crest.errors import DataError
from crest.pixels import Pictures, batch_numbers, open_pictures
from crest.records import Split
from crest.shards import read_samples
from crest.world import Draw, World
from decoder_train.config import AugmentConfig

_CROP, _MOVE = 6, 13
"""The purposes of a draw: where a crop lies and how a picture is moved, beside those of the stage."""


@dataclass(frozen=True)
class DecoderBatch:
    """Pictures with their conditions and the random numbers that belong to them."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], exactly the U-Net's size or crops of it"""
    image_embed: Tensor
    """(B, D) unit length"""
    text_encodings: Tensor | None
    """(B, L, K); None where the decoder reads no text"""
    draw: Draw
    lowres: Tensor | None = None
    """(B, 3, h, w) in [0, 1], the same pictures as the U-Net before would draw them; an upsampler's only"""
    ids: tuple[str, ...] = ()
    """of the B pictures, for errors that name them"""
    is_class: Tensor | None = None
    """(B,) bool, which are class pictures; None without preservation"""


class DecoderData:
    """One split of pictures with their embeddings in the same order.

    Args:
        shards: folder of the pictures; embeddings: folder of what was made from them.
        side_px: of the pictures that the U-Net draws.
        lowres_side_px: of those that it is shown. Both are made from the original with antialiasing.
        crop_px: side of the part of each picture that a batch holds, drawn anew at every step; None: all.
        text: whether text encodings are read.
        augment: how `rows` and `some_rows` move what is learned from; None: not.
    Raises:
        DataError: the embeddings were made from other shards, or lack a picture.
    """

    def __init__(
        self,
        shards: Path,
        embeddings: Path,
        split: Split,
        side_px: int,
        *,
        lowres_side_px: int | None = None,
        crop_px: int | None = None,
        text: bool = True,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.augment = augment
        self.pictures: Pictures = open_pictures(shards, split, side_px)
        self.lowres = None if lowres_side_px is None else open_pictures(shards, split, lowres_side_px)
        self.side_px, self.ratio = side_px, side_px // (lowres_side_px or side_px)
        self.crop_px = crop_px or side_px
        shard: EmbeddingShard = read_embeddings(embeddings, split, encodings=text)
        made_from = embeddings_parents(embeddings).get("shards")
        if made_from != self.pictures.shards_hash:
            raise DataError(
                f"{embeddings}: made from shards {made_from}, but {shards} is {self.pictures.shards_hash}; "
                "run python -m clip_train.embed again."
            )
        row_of = {name: row for row, name in enumerate(shard.ids)}
        missing = [name for name in self.pictures.ids if name not in row_of]
        if missing:
            raise DataError(
                f"{embeddings}: lacks {len(missing)} of the logos in {shards} ({missing[0]} …); embed again."
            )
        order = torch.tensor([row_of[name] for name in self.pictures.ids], dtype=torch.long)
        self.image_embed = shard.image_embed[order]
        self.text_encodings = shard.text_encodings[order] if text else None

    def rows(self, numbers: Tensor, draw: Draw, device: torch.device) -> DecoderBatch:
        """The pictures of these numbers on a device."""
        return self.some_rows(numbers, draw, torch.ones(draw.count, dtype=torch.bool), device)

    def some_rows(self, numbers: Tensor, draw: Draw, where: Tensor, device: torch.device) -> DecoderBatch:
        """The pictures of these numbers for the places (draw.count,) bool of a batch that are True."""
        batch = self._rows(numbers, draw, device, self._corners(draw)[where], self.crop_px)
        if self.augment is None:
            return batch
        settings = self.augment.model_dump()
        # drawn on the CPU, as crops are
        moves = Draw(draw.seed, draw.step, draw.first, draw.count).uniform(_MOVE, 8)[where].to(device)
        small = None if batch.lowres is None else move(batch.lowres, moves, **settings)
        return replace(batch, images=move(batch.images, moves, **settings), lowres=small)

    def whole(self, numbers: Tensor, draw: Draw, device: torch.device) -> DecoderBatch:
        """The same as they are."""
        return self._rows(numbers, draw, device, torch.zeros(draw.count, 2, dtype=torch.long), self.side_px)

    def _rows(
        self, numbers: Tensor, draw: Draw, device: torch.device, corners: Tensor, crop_px: int
    ) -> DecoderBatch:
        text = self.text_encodings
        return DecoderBatch(
            _cropped(self.pictures, numbers, corners, crop_px).to(device),
            self.image_embed[numbers].to(device),
            None if text is None else text[numbers].float().to(device),
            draw,
            None
            if self.lowres is None
            else _cropped(self.lowres, numbers, corners // self.ratio, crop_px // self.ratio).to(device),
            ids=tuple(self.pictures.ids[number] for number in numbers.tolist()),
        )

    def _corners(self, draw: Draw) -> Tensor:
        """Top and left of each crop (B, 2) int64, on whole pixels of the small pictures."""
        places = (self.side_px - self.crop_px) // self.ratio + 1
        if places == 1:
            return torch.zeros(draw.count, 2, dtype=torch.long)
        # drawn on the CPU, where the pictures are: no device waits for it
        share = Draw(draw.seed, draw.step, draw.first, draw.count).uniform(_CROP, 2)
        return (share * places).long() * self.ratio

    def batches(
        self, seed: int, batch_size: int, micro: int, world: World, start: int
    ) -> Iterator[DecoderBatch]:
        """Endless micro-batches from step `start`."""
        mine = batch_size // world.size
        step = start
        while True:
            numbers = torch.from_numpy(batch_numbers(seed, len(self.pictures), batch_size, step))
            for first in range(world.rank * mine, (world.rank + 1) * mine, micro):
                draw = Draw(seed, step, first, micro, world.device)
                yield self.rows(numbers[first : first + micro], draw, world.device)
            step += 1


def _cropped(pictures: Pictures, numbers: Tensor, corners: Tensor, side_px: int) -> Tensor:
    """Parts (B, 3, side, side) in [0, 1] of the pictures of these numbers; nothing beside them is read."""
    if pictures.pixels.shape[-1] == side_px:
        return torch.from_numpy(pictures.floats(numbers.numpy()))
    pictures.refuse_damaged()
    parts = [
        pictures.pixels[number, :, top : top + side_px, left : left + side_px]
        for number, (top, left) in zip(numbers.tolist(), corners.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(parts).astype(np.float32) / 255.0)


def refuse_small(shards: Path, split: Split, side_px: int) -> None:
    """Refuse to teach an upsampler sharpness on pictures that are themselves enlarged.

    Raises:
        DataError: most pictures have no side of `side_px`.
    """
    longest = []
    for sample in read_samples(shards, split):
        with Image.open(io.BytesIO(sample.image)) as picture:
            longest.append(max(picture.size))
    small = sum(side < side_px for side in longest)
    if 2 * small > len(longest):
        raise DataError(
            f"{shards}: {small} of {len(longest)} {split} pictures are smaller than the {side_px} px that "
            f"this U-Net draws (half of them have {sorted(longest)[len(longest) // 2]} px or less); pack "
            "larger ones (pack.side_px), or train a smaller one."
        )
