"""Embedding of shards beside the encoder alone: how much of the encoder's own speed is left.

The other side is a bare loop of encode_image and encode_text over the very same batches, their tensors ready
and nothing kept; ours reads, converts, tokenises, sorts, encodes, writes and hashes. Weights are random.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case, Step

if TYPE_CHECKING:
    from clip_train.config import EmbedConfig
    from crest.models.clip import ClipEncoder
    from crest.pixels import Pictures
    from crest.records import Split

SAMPLES = {"cpu": 48, "cuda": 16384}
"""Of one round; the small stock model gets ten times as many."""
BATCH = {"cpu": 24, "cuda": 256}
WORDS = (
    "a",
    "navy",
    "shield",
    "with",
    "two",
    "crossed",
    "golden",
    "anchors",
    "and",
    "letters",
    "below",
    "crown",
)
"""Captions are 12 to 32 of these."""


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def cases() -> list[Case]:
    """One question: what does all that is not encoding cost?"""
    published = {"upstream": lambda: bare("ViT-B-32"), "crest": lambda: whole("ViT-B-32")}
    stock = {"upstream": lambda: bare("stock"), "crest": lambda: whole("stock")}
    return [
        Case("embed", published, memory=False, rounds=21),
        Case("embed_stock", stock, memory=False, rounds=41),
    ]


@functools.cache
def inputs(model: str, count: int | None = None) -> tuple[ClipEncoder, dict[Split, Pictures], EmbedConfig]:
    """A CLIP, pictures as the pixel cache holds them, and where they go."""
    import numpy as np
    import torch

    from clip_train.config import EmbedConfig
    from crest.models.clip import ClipEncoder, ClipModel, ClipSpec, load_clip
    from crest.pixels import Pictures
    from crest.world import keep_freed_memory, pick_device

    device = pick_device("auto")
    keep_freed_memory()
    torch.manual_seed(0)
    if model == "stock":
        clip = load_clip("stock/clip", device)
    else:
        clip = ClipEncoder(ClipModel(ClipSpec(architecture=model)).to(device), "0" * 16, {})
    count = count or SAMPLES[device.type] * (10 if model == "stock" else 1)
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="crest-embed-"))
    folder, random = Path(_FOLDERS[-1].name), np.random.default_rng(0)
    side_px = clip.model.side_px
    path = folder / "pixels.u8"
    np.memmap(path, np.uint8, "w+", shape=(count, 3, side_px, side_px))[:] = random.integers(
        0, 256, (count, 3, side_px, side_px), np.uint8
    )
    pixels = np.memmap(path, np.uint8, "r", shape=(count, 3, side_px, side_px))
    names = [f"{number:016x}" for number in range(count)]
    captions = [" ".join(random.choice(WORDS, random.integers(12, 33))) for _ in names]
    data: dict[str, Any] = {"shards": folder, "out": folder / "out"}
    settings = {"clip": model, "batch_size": BATCH[device.type], "samples_per_shard": max(64, count // 3)}
    config = EmbedConfig.model_validate({"data": data, "model": settings})
    return clip, {"train": Pictures(names, captions, names, pixels, "s" * 16)}, config


def bare(model: str, count: int | None = None) -> Step:
    """The encoder alone, over ready tensors."""
    import torch

    from clip_train.encoding import plan_shards, ready_batches

    clip, splits, config = inputs(model, count)
    shards = plan_shards(config.data.out, splits, splits, config.model.samples_per_shard)
    batches = [
        (batch.view, batch.entered.to(clip.device))
        for shard in shards
        for batch in ready_batches(clip, shard, config)
    ]
    batches = [
        (view, entered.float() / (1 if entered.is_floating_point() else 255) if view is not None else entered)
        for view, entered in batches
    ]

    def step() -> None:
        for view, entered in batches:
            clip.encode_text(entered) if view is None else clip.encode_image(entered)
        if clip.device.type == "cuda":
            torch.cuda.synchronize(clip.device)

    return step


def whole(model: str, count: int | None = None) -> Step:
    """Everything, into a folder that is new every time."""
    import shutil

    from clip_train.embed import embed

    clip, splits, config = inputs(model, count)
    numbers = itertools.count()

    def step() -> None:
        out = config.data.out.with_name(f"out-{next(numbers)}")
        changed = config.model_copy(update={"data": config.data.model_copy(update={"out": out})})
        assert embed(clip, splits, changed) is not None
        shutil.rmtree(out)

    return step


if __name__ == "__main__":
    from benchmarks.harness import run

    run("clip_embed", cases())
