"""Shards and embeddings, joined by id, to batches; every process reads its part of one global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crest.embeddings import EmbeddingShard, embeddings_parents, read_embeddings
from crest.errors import DataError
from crest.pixels import Pictures, batch_numbers, open_pictures
from crest.records import Split
from crest.world import Draw, World


@dataclass(frozen=True)
class DecoderBatch:
    """Pictures with their conditions and the random numbers that belong to them."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], exactly the U-Net's size"""
    image_embed: Tensor
    """(B, D) unit length"""
    text_encodings: Tensor
    """(B, L, K)"""
    draw: Draw


class DecoderData:
    """One split of pictures with their embeddings in the same order.

    Raises:
        DataError: the embeddings were made from other shards, or lack a picture.
    """

    def __init__(self, shards: Path, embeddings: Path, split: Split, side_px: int) -> None:
        self.pictures: Pictures = open_pictures(shards, split, side_px)
        shard: EmbeddingShard = read_embeddings(embeddings, split)
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
        self.text_encodings = shard.text_encodings[order]

    def rows(self, numbers: Tensor, draw: Draw, device: torch.device) -> DecoderBatch:
        """The pictures of these numbers on a device."""
        return DecoderBatch(
            torch.from_numpy(self.pictures.floats(numbers.numpy())).to(device),
            self.image_embed[numbers].to(device),
            self.text_encodings[numbers].float().to(device),
            draw,
        )

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
