"""Embeddings to batches; every process reads its own part of the same global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crest.embeddings import EmbeddingShard
from crest.pixels import batch_numbers
from crest.world import Draw, World


@dataclass(frozen=True)
class PriorBatch:
    """Pairs of captions and pictures, as embeddings, with the random numbers that belong to them."""

    image_embed: Tensor
    """(B, D) unit length"""
    text_embed: Tensor
    """(B, D) unit length"""
    text_encodings: Tensor
    """(B, L, K)"""
    draw: Draw


def rows(shard: EmbeddingShard, numbers: Tensor, draw: Draw, device: torch.device) -> PriorBatch:
    """The rows of these numbers on a device."""
    return PriorBatch(
        shard.image_embed[numbers].to(device),
        shard.text_embed[numbers].to(device),
        shard.text_encodings[numbers].float().to(device),
        draw,
    )


def batches(
    shard: EmbeddingShard, seed: int, batch_size: int, micro: int, world: World, start: int
) -> Iterator[PriorBatch]:
    """Endless micro-batches from step `start`."""
    mine = batch_size // world.size
    step = start
    while True:
        numbers = torch.from_numpy(batch_numbers(seed, len(shard.ids), batch_size, step))
        for first in range(world.rank * mine, (world.rank + 1) * mine, micro):
            draw = Draw(seed, step, first, micro, world.device)
            yield rows(shard, numbers[first : first + micro], draw, world.device)
        step += 1
