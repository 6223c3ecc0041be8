"""Embeddings to batches; every process reads its own part of the same global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crest.embeddings import EmbeddingShard, drawn_image_embed
from crest.pixels import batch_numbers
from crest.world import Draw, World


@dataclass(frozen=True)
class PriorBatch:
    """Pairs of captions and pictures, as embeddings, with the random numbers that belong to them."""

    image_embed: Tensor
    """(B, D) unit length"""
    text_embed: Tensor
    """(B, D) unit length"""
    text_encodings: Tensor | None
    """(B, L, K); None where the prior reads none"""
    draw: Draw
    ids: tuple[str, ...] = ()
    """of the B pictures, for errors that name them"""
    is_class: Tensor | None = None
    """(B,) bool, which are of the classes; None without preservation"""


def rows(
    shard: EmbeddingShard, numbers: Tensor, draw: Draw, device: torch.device, *, views: bool = False
) -> PriorBatch:
    """The rows of these numbers on a device.

    Args:
        views: of each picture one view, drawn anew at every step, where the shard has several.
    """
    image_embed = shard.image_embed[numbers]
    if views:
        # drawn on the CPU, where the embeddings are: no device waits for it
        image_embed = drawn_image_embed(shard, numbers, Draw(draw.seed, draw.step, draw.first, draw.count))
    words = shard.text_encodings
    return PriorBatch(
        image_embed.to(device),
        shard.text_embed[numbers].to(device),
        words[numbers].to(device).float() if words.numel() else None,
        draw,
        ids=tuple(shard.ids[number] for number in numbers.tolist()),
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
            yield rows(shard, numbers[first : first + micro], draw, world.device, views=True)
        step += 1
