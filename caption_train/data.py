"""Captioned logos to batches: from a scraper's data folder (nothing is packed yet), or from shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from caption_train.config import CaptionDataConfig
from caption_train.words import object_words
from crest.augment import shift
from crest.errors import DataError
from crest.images import read_image, square, to_array
from crest.pixels import batch_numbers, open_pictures
from crest.records import Record, hash_of, read_records
from crest.world import Draw, World

if TYPE_CHECKING:
    from crest.models.captioner import WritingModel


@dataclass(frozen=True)
class CaptionBatch:
    """Pictures and the words that belong to them."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]"""
    labels: Tensor
    """(B, L) token ids, -100 where nothing is to be learned"""
    things: Tensor
    """(B, T) 1 for each of the model's things that a caption names, else 0"""
    tokens: float
    """tokens to be learned in a micro-batch, averaged over the step, so that each token weighs alike"""
    ids: tuple[str, ...] = ()
    """of the B pictures, for errors that name them"""


@dataclass(frozen=True)
class Captioned:
    """One side of the split, in memory."""

    pixels: NDArray[np.uint8]
    """(N, 3, side, side)"""
    captions: list[str]
    ids: list[str]


def is_whole(record: Record) -> bool:
    """Whether a record has a description that was not cut short."""
    return bool(record.caption) and not str(record.caption).rstrip().endswith(("…", "..."))


def read_captioned(config: CaptionDataConfig, side_px: int) -> tuple[Captioned, Captioned, str]:
    """Training logos, held-out logos and the hash of what they were read from.

    Raises:
        DataError: nothing captioned on one of the two sides.
    """
    folder = config.records
    if not (folder / "records.jsonl").exists():
        splits = [open_pictures(folder, split, side_px) for split in ("train", "val")]
        train, val = (Captioned(part.pixels, part.captions, part.ids) for part in splits)
        return train, val, splits[0].shards_hash
    records = [record for record in read_records(folder / "records.jsonl") if is_whole(record)]
    sides = [_read(folder, side, side_px) for side in split_records(records, config.val_share)]
    for side, name in zip(sides, ("learn from", "hold out"), strict=True):
        if not side.captions:
            raise DataError(
                f"{folder}: {len(records)} logos have a whole description, which leaves none to {name}; the "
                "captioner needs more captioned logos, or caption with stock/captioner as it is."
            )
    return sides[0], sides[1], hash_of([record.id for record in records])


def split_records(records: Sequence[Record], val_share: float) -> tuple[list[Record], list[Record]]:
    """Those to learn from and those held out, by group: no era of a club is learned from another one."""
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        held_out = int(hash_of("caption", record.group), 16) % 1000 < val_share * 1000
        sides[held_out].append(record)
    return sides


def _read(folder: Path, records: list[Record], side_px: int) -> Captioned:
    pixels = np.empty((len(records), 3, side_px, side_px), np.uint8)
    for number, record in enumerate(tqdm(records, desc="decode", unit="logo", disable=None)):
        pixels[number] = to_array(square(read_image(folder / record.image), side_px))
    return Captioned(pixels, [str(record.caption) for record in records], [record.id for record in records])


def name_things(captions: Sequence[str], things: Sequence[str]) -> Tensor:
    """Which of the things (T) each caption names: (B, T), 1 or 0."""
    said = [object_words(caption) for caption in captions]
    return torch.tensor([[float(thing in words) for thing in things] for words in said])


def batches(
    side: Captioned,
    model: WritingModel,
    shift_px: int,
    seed: int,
    sizes: tuple[int, int],
    world: World,
    start: int,
) -> Iterator[CaptionBatch]:
    """Endless micro-batches from step `start`; sizes are the global batch and the micro-batch."""
    batch_size, micro = sizes
    mine = batch_size // world.size
    step = start
    while True:
        numbers = batch_numbers(seed, len(side.captions), batch_size, step)
        learnt = int((model.tokenize([side.captions[number] for number in numbers]) != -100).sum())
        for first in range(world.rank * mine, (world.rank + 1) * mine, micro):
            own = numbers[first : first + micro]
            images = torch.from_numpy(side.pixels[own].astype(np.float32) / 255)
            images = shift(images, Draw(seed, step, first, micro), shift_px)
            labels = model.tokenize([side.captions[number] for number in own])
            things = name_things([side.captions[number] for number in own], model.things)
            tokens = learnt * micro / batch_size
            yield CaptionBatch(
                images.to(world.device),
                labels.to(world.device),
                things.to(world.device),
                tokens,
                tuple(side.ids[number] for number in own),
            )
        step += 1
