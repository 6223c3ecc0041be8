"""What can be turned in CLIP training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crest.config import Config, FileConfig, OptimConfig, RunConfig


class ClipDataConfig(Config):
    """What CLIP learns from."""

    shards: Path
    """Folder of WebDataset shards with a manifest."""
    augment: Literal["shift", "crop", "resized_crop"] = "shift"
    """How pictures vary: moved by shift_px and nothing cut off; or cut out of pictures 8/7 as large: a
    square at a drawn place, or a box of drawn area (0.9 to 1) and aspect (3/4 to 4/3), as open_clip does."""
    shift_px: int = Field(default=2, ge=0)
    """shift: pictures are moved by up to so many pixels each way, at the model's size, white moving in."""
    noise: float = Field(default=0.02, ge=0)
    """Deviation of the noise added to pictures in [0, 1]."""
    validate_samples: int = Field(default=500, ge=2)
    """Pairs of the validation split that retrieval is measured on, at most."""


class ClipModelConfig(Config):
    """What CLIP starts from: exactly one of `start`, `pretrained` and `scratch`."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/clip"."""
    architecture: str | None = None
    """Name of an OpenCLIP architecture for `pretrained`, for instance "ViT-B-32"."""
    pretrained: str | None = None
    """A tag that OpenCLIP knows for the architecture, or a local file of weights."""
    scratch: dict[str, Any] | None = None
    """A ClipSpec: train from random weights."""


class ClipTrainConfig(FileConfig):
    """CLIP fine-tuning."""

    run: RunConfig
    """Where and how often."""
    data: ClipDataConfig
    """From what."""
    model: ClipModelConfig
    """What."""
    optim: OptimConfig
    """How; batch_size is the contrastive batch, device_batch_size the part that is in memory at once."""


class EmbedDataConfig(Config):
    """What is embedded and where the result goes."""

    shards: Path
    """Folder of WebDataset shards with a manifest."""
    out: Path
    """Folder of the embeddings."""


class EmbedModelConfig(Config):
    """Which CLIP embeds, and how fast."""

    clip: str
    """A run folder, a .safetensors file or "stock/clip"."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    batch_size: int = Field(default=256, ge=1)
    """Pictures embedded at once."""
    samples_per_shard: int = Field(default=8192, ge=1)
    """Rows of one embedding file."""


class EmbedConfig(FileConfig):
    """Embedding of shards by a CLIP."""

    data: EmbedDataConfig
    """From what, to where."""
    model: EmbedModelConfig
    """By what."""
