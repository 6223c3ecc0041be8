"""What can be turned in prior training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crest.config import Config, FileConfig, LoraConfig, OptimConfig, RunConfig
from crest.preservation_config import PreservationConfig


class PriorDataConfig(Config):
    """What the prior learns from."""

    embeddings: Path
    """Folder of embeddings made by clip_train.embed; its further views of the pictures are used too."""
    shards: Path | None = None
    """The shards that were embedded; with them, previews show the real logos nearest to a guess."""
    validate_samples: int = Field(default=256, ge=2)
    """Rows of the validation split that figures are measured on, at most."""
    validate_split: Literal["val", "train"] = "val"
    """What figures are measured on; "train" for a handful of pictures of which none is held out."""
    balance_by: Literal["group", "caption"] | None = None
    """Draw every group or caption of `shards` equally often, however many pictures it has; null: all rows."""


class PriorModelConfig(Config):
    """What the prior starts from (exactly one of `start` and `scratch`) and how it learns."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/prior"."""
    accept_other_clip: bool = False
    """Start from weights of another CLIP: right where this one was fine-tuned from it, wrong otherwise."""
    scratch: dict[str, Any] | None = None
    """A PriorSpec (its embedding sizes are taken from the embeddings): train from random weights.
    `family` names another kind of prior than Crest's own."""
    lora: LoraConfig | None = None
    """Train low-rank adapters alone, with `start`; null trains all weights."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    text_cond_drop_prob: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples whose text is dropped, so that guidance can be used."""
    image_cond_drop_prob: float = Field(default=0.0, ge=0, lt=1)
    """Share of samples whose noised embedding is dropped, independent of the other; the paper drops none.
    Above 0, guidance starts from a guess that saw neither, as dalle2-pytorch's does."""
    self_cond_prob: float = Field(default=0.5, ge=0, le=1)
    """Share of samples that are shown the network's own first guess, where the spec has self_cond."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Clamp of the signal-to-noise ratio in the loss weight; null weighs every timestep alike."""
    p2_gamma: float | None = Field(default=None, gt=0)
    """How far the loss prefers coarse timesteps (P2); null does not; not beside min_snr_gamma."""
    p2_k: float = Field(default=1.0, gt=0)
    """What keeps P2's weight finite where there is no noise."""


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
    preservation: PreservationConfig | None = None
    """What else is to stay known; null: nothing is done for it."""
