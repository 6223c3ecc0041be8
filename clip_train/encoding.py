"""Pictures and captions through a frozen CLIP at its own speed: read ahead, encode, write behind.

A shard's pictures go through in order, its captions from the shortest to the longest, so that little of a
batch is padding; rows are put back in the order of the samples when the shard is written. Which files are
made is embed.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clip_train.config import EmbedConfig
from clip_train.data import augmented
from crest.embeddings import EmbeddingShard, write_embedding_shard
from crest.interruption import heed
from crest.models.clip import ClipEncoder
from crest.pixels import Pictures
from crest.records import Split
from crest.world import Draw

AHEAD: Final = 3
"""Batches that are made ready before they are asked for."""
T = TypeVar("T")


@dataclass(frozen=True)
class ShardPlan:
    """One file to be: which samples, of which split."""

    path: Path
    pictures: Pictures
    """at the CLIP's size"""
    larger: Pictures
    """at the size that further views are cut out of"""
    first: int
    last: int

    @property
    def ids(self) -> list[str]:
        """Of its samples, in order."""
        return self.pictures.ids[self.first : self.last]

    @property
    def captions(self) -> list[str]:
        """Of its samples, in order."""
        return self.pictures.captions[self.first : self.last]


@dataclass(frozen=True)
class Batch:
    """Rows of one shard as the encoder takes them."""

    entered: Tensor
    """(B, 3, H, W) pictures, levels or in [0, 1], or (B, L) tokens"""
    view: int | None
    """of the pictures; None for captions"""
    captions: Captions | None = None
    """of the whole shard, with its last batch"""


@dataclass(frozen=True)
class Captions:
    """A shard's captions as tokens, from the shortest to the longest."""

    tokens: Tensor
    """(N, L), L that of the longest"""
    order: Tensor
    """(N,) int64: the sample that each row belongs to"""
    cut: int
    """captions that were longer than the context"""


@dataclass
class Rows:
    """What the encoder made of a shard so far, batch by batch, on its way to the host."""

    images: list[list[Tensor]]
    """view -> (B, D) float16 each"""
    texts: list[Tensor] = field(default_factory=list)
    """(B, D) float16 each, shortest captions first"""
    encodings: list[Tensor] = field(default_factory=list)
    """(B, L, K) float16 each, likewise"""


def plan_shards(
    folder: Path, splits: Mapping[Split, Pictures], larger: Mapping[Split, Pictures], samples_per_shard: int
) -> list[ShardPlan]:
    """All files of a folder, in the order in which they are made."""
    return [
        ShardPlan(
            folder / f"{split}-{number:06d}.safetensors",
            pictures,
            larger[split],
            first,
            min(first + samples_per_shard, len(pictures)),
        )
        for split, pictures in splits.items()
        for number, first in enumerate(range(0, len(pictures), samples_per_shard))
    ]


def encode_all(clip: ClipEncoder, shards: Sequence[ShardPlan], config: EmbedConfig) -> dict[str, str]:
    """Encode and write shards, each whole or not at all.

    Returns:
        file name -> SHA-256.
    """
    hashes: dict[str, Future[str]] = {}
    total = sum(shard.last - shard.first for shard in shards)
    shown = tqdm(total=total, desc="embed", unit="logo", disable=None)
    read = ((shard, batch) for shard in shards for batch in ready_batches(clip, shard, config))
    with shown, ThreadPoolExecutor(1) as writer:
        behind: deque[Future[str]] = deque()
        rows: Rows | None = None
        for shard, batch in ahead(read, AHEAD):
            heed()
            rows = rows or Rows([[] for _ in range(config.data.views)])
            _encode(clip, batch, rows, config.model.text_encodings)
            shown.update(len(batch.entered) if batch.view == 0 else 0)
            if batch.captions is not None:
                if clip.device.type == "cuda":
                    torch.cuda.synchronize(clip.device)  # the copies to the host are under way
                if behind:
                    behind.popleft().result()  # at most one waits in memory; its errors show here
                behind.append(writer.submit(_write, shard, rows, batch.captions))
                hashes[shard.path.name] = behind[-1]
                rows = None
    return {name: future.result() for name, future in hashes.items()}


def ready_batches(clip: ClipEncoder, shard: ShardPlan, config: EmbedConfig) -> Iterator[Batch]:
    """A shard's batches, ready to be encoded: every view of its pictures, then its captions."""
    pinned, size = clip.device.type == "cuda", config.model.batch_size
    for view in range(config.data.views):
        for first in range(shard.first, shard.last, size):
            last = min(first + size, shard.last)
            if view:
                draw = Draw(config.data.seed, -view, first, last - first)  # as training keeps views
                numbers = np.arange(first, last)
                entered = augmented(shard.larger, numbers, draw, clip.model.side_px, config.data)
            elif pinned:
                entered = torch.from_numpy(np.ascontiguousarray(shard.pictures.pixels[first:last]))
            else:
                levels = shard.pictures.pixels[first:last]
                entered = torch.from_numpy(np.divide(levels, np.float32(255), dtype=np.float32))
            yield Batch(entered.pin_memory() if pinned else entered, view)
    captions = tokens_by_length(clip, shard.captions)
    for first in range(0, len(captions.tokens), size):
        last = min(first + size, len(captions.tokens))
        tokens = clip.model.crop(captions.tokens[first:last])
        is_last = last == len(captions.tokens)
        yield Batch(tokens.pin_memory() if pinned else tokens, None, captions if is_last else None)


def tokens_by_length(clip: ClipEncoder, texts: Sequence[str]) -> Captions:
    """Tokens of captions, from the shortest to the longest; too long ones are cut behind a word."""
    model = clip.model
    tokens: Tensor = model.tokenizer(list(texts))
    lengths = model.tokenizer.inside(tokens).sum(dim=1)
    full = (lengths == model.context_length).nonzero()[:, 0].tolist()
    cut = 0
    if full:  # only these may be longer than the context
        fitted, cut = model.fit_texts([texts[row] for row in full])
        tokens[full] = model.tokenizer(fitted)
        lengths = model.tokenizer.inside(tokens).sum(dim=1)
    order = lengths.argsort(stable=True)
    return Captions(model.crop(tokens)[order], order, cut)


def _encode(clip: ClipEncoder, batch: Batch, rows: Rows, with_encodings: bool) -> None:
    entered = batch.entered.to(clip.device, non_blocking=True)
    if batch.view is None:
        text = clip.encode_text(entered)
        rows.texts.append(_to_host(text.text_embed))
        if with_encodings:
            rows.encodings.append(_to_host(text.text_encodings))
    else:
        images = entered if entered.is_floating_point() else entered.float().div_(255)
        rows.images[batch.view].append(_to_host(clip.encode_image(images)))


def _to_host(encoded: Tensor) -> Tensor:
    """Halves on their way to the host, without waiting for them."""
    halves = encoded.half()
    if halves.device.type == "cpu":
        return halves
    return torch.empty(halves.shape, dtype=halves.dtype, pin_memory=True).copy_(halves, non_blocking=True)


def _write(shard: ShardPlan, rows: Rows, captions: Captions) -> str:
    """Put a shard's rows in the order of its samples and write it; returns the SHA-256 of the file."""
    images = [torch.cat(parts) for parts in rows.images]
    texts = torch.empty_like(images[0])
    texts[captions.order] = torch.cat(rows.texts)
    if rows.encodings:
        shape = (len(texts), captions.tokens.shape[1], rows.encodings[0].shape[2])
        encodings = torch.zeros(shape, dtype=torch.float16)
        first = 0
        for part in rows.encodings:
            encodings[captions.order[first : first + len(part)], : part.shape[1]] = part
            first += len(part)
    else:
        encodings = torch.empty(len(texts), 0, 0)
    further = torch.stack(images[1:], dim=1) if len(images) > 1 else None
    made = EmbeddingShard(shard.ids, images[0], texts, encodings, further, captions.cut)
    return write_embedding_shard(shard.path, made)


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, up to `depth` of them made by a thread before they are asked for; so are its errors."""
    source, end = iter(items), object()

    def take() -> object:
        return next(source, end)

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(take) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(take))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
