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
    """A run folder, a .safetensors file, "stock/captioner", or the local folder of a published ViT-GPT2."""
    scratch: dict[str, Any] | None = None
    """A CaptionerSpec without tokens and merges: train from random weights."""
    vocabulary_size: int = Field(default=1200, ge=300)
    """Tokens of a vocabulary learned from the training captions, with `scratch`."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Rank of low-rank adapters, which then learn alone, with `start`; null trains all weights."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """What the adapters learn is scaled by lora_alpha / lora_rank."""


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
