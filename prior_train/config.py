"""What can be turned in prior training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from crest.config import Config, FileConfig, OptimConfig, RunConfig


class PriorDataConfig(Config):
    """What the prior learns from."""

    embeddings: Path
    """Folder of embeddings made by clip_train.embed."""
    shards: Path | None = None
    """The shards that were embedded; with them, previews show the real logos nearest to a guess."""
    validate_samples: int = Field(default=256, ge=2)
    """Rows of the validation split that figures are measured on, at most."""


class PriorModelConfig(Config):
    """What the prior starts from: exactly one of `start` and `scratch`."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/prior"."""
    accept_other_clip: bool = False
    """Start from weights of another CLIP: right where this one was fine-tuned from it, wrong otherwise."""
    scratch: dict[str, Any] | None = None
    """A PriorSpec (its embedding sizes are taken from the embeddings): train from random weights."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    cond_drop_prob: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples whose text is dropped, so that guidance can be used."""


class PriorTrainConfig(FileConfig):
    """Prior training."""

    run: RunConfig
    """Where and how often."""
    data: PriorDataConfig
    """From what."""
    model: PriorModelConfig
    """What."""
    optim: OptimConfig
    """How."""
