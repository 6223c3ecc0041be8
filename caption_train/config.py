"""What can be turned in captioner training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from crest.config import Config, FileConfig, OptimConfig, RunConfig


class CaptionDataConfig(Config):
    """What the captioner learns from: the logos that have a description of their own."""

    records: Path
    """Data folder of the scraper (records.jsonl and images/), or a folder of shards."""
    val_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of groups held out where `records` is a data folder; shards bring their own split."""
    shift_px: int = Field(default=2, ge=0)
    """Pictures are moved by up to so many pixels each way, at the model's size."""
    validate_samples: int = Field(default=128, ge=1)
    """Held-out logos that figures are measured on, at most."""


class CaptionModelConfig(Config):
    """What the captioner starts from: exactly one of `start` and `scratch`."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/captioner"."""
    scratch: dict[str, Any] | None = None
    """A CaptionerSpec without tokens and merges: train from random weights."""
    vocabulary_size: int = Field(default=1200, ge=300)
    """Tokens of a vocabulary learned from the training captions, with `scratch`."""


class CaptionTrainConfig(FileConfig):
    """Captioner training."""

    run: RunConfig
    """Where and how often."""
    data: CaptionDataConfig
    """From what."""
    model: CaptionModelConfig
    """What."""
    optim: OptimConfig
    """How."""
