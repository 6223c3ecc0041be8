"""What can be turned in CLIP training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crest.config import Config, FileConfig, MovingConfig, RunConfig

Mode = Literal["features", "lit", "lora", "top_k", "full", "scratch"]


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
    views: int = Field(default=1, ge=1)
    """Modes that keep activations: of how many views of each picture; the first is the picture as it is."""
    captions_alike: float = Field(default=0.7, gt=0, le=1)
    """Captions that share this part of their words (Jaccard), agree in lettering, colours and numbers, and of
    which one repeats the other with a few words more, are right answers for each other's pictures."""
    pictures_alike: float = Field(default=0.08, ge=0, le=1)
    """So are captions of pictures whose thumbnails differ by no more than this in the window and channel that
    differ most, levels being in [0, 1]."""
    validate_samples: int = Field(default=500, ge=2)
    """Pairs of the validation split that retrieval is measured on, at most."""
    max_damaged_share: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that may be damaged; they are left out, named and counted. 0 stops at the first."""


class ClipModelConfig(Config):
    """What CLIP starts from, exactly one of `start`, `pretrained` and `scratch`, and what of it learns."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/clip"."""
    architecture: str | None = None
    """Name of an OpenCLIP architecture for `pretrained`, for instance "ViT-B-32", or a JSON file of one."""
    pretrained: str | None = None
    """A tag that OpenCLIP knows for the architecture, or a local file of weights."""
    scratch: dict[str, Any] | None = None
    """A ClipSpec: train from random weights."""
    mode: Literal["auto", Mode] = "auto"
    """What learns. features: the last linear layer of both towers, over kept activations; lit: the text
    tower, against kept image embeddings; lora: low-rank adapters of all attention; top_k: the upper blocks,
    over kept activations; full: everything; scratch: everything, from random weights; auto: by the number
    of pairs."""
    top_k: int = Field(default=3, ge=1)
    """top_k: blocks of each tower that learn."""
    lora_rank: int = Field(default=4, ge=1)
    """lora: rank of the change of each attention's q, k and v."""
    lora_alpha: float = Field(default=8.0, gt=0)
    """lora: the change is scaled by alpha / rank."""
    layer_decay: float = Field(default=0.7, gt=0, le=1)
    """full, top_k: each block learns at this share of the rate of the block above it."""
    loss: Literal["softmax", "siglip"] = "softmax"
    """softmax: cross entropy over the batch (CLIP); siglip: one logistic question a pair."""


class ClipOptimConfig(MovingConfig):
    """How the weights are moved."""

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: what suits the mode."""
    batch_size: int | None = Field(default=None, ge=2)
    """Pairs of one contrastive batch; null: the whole training split, up to 4,096."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Averaging factor of the exported weights; 0 exports the last step's weights."""


class ClipJudgeConfig(Config):
    """How the result is judged, and when it may take the place of what it started from."""

    best_by: Literal["r_at_1", "r_at_5", "r_at_10"] = "r_at_5"
    """Held-out retrieval, the mean of both ways, that the kept weights are the best by."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many validations without a better one; 0 trains to the last step."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamplings that the intervals of the report are drawn from."""
    wise_ft: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the tuned weights that are tried against the start's on the validation split; empty: none."""
    max_drift: float | None = Field(default=0.5, gt=0)
    """How far answers about general pictures and words may move: 0 not at all, 1 they have nothing to do with
    what they were (`clip_train/probe.py`). Shares of `wise_ft` that moved further are passed over, and where
    all did, the run is refused. null: only reported."""


class ClipTrainConfig(FileConfig):
    """CLIP fine-tuning."""

    run: RunConfig
    """Where and how often."""
    data: ClipDataConfig
    """From what."""
    model: ClipModelConfig
    """What."""
    optim: ClipOptimConfig = ClipOptimConfig()
    """How; batch_size is the contrastive batch, device_batch_size the part that is in memory at once."""
    judge: ClipJudgeConfig = ClipJudgeConfig()
    """By which measure."""


class EmbedDataConfig(Config):
    """What is embedded and where the result goes."""

    shards: Path
    """Folder of WebDataset shards with a manifest."""
    out: Path
    """Folder of the embeddings."""
    views: int = Field(default=1, ge=1)
    """Views of each picture: the first is the picture as it is, the others vary as in training."""
    augment: Literal["shift", "crop", "resized_crop"] = "shift"
    """How further views vary, as in CLIP training."""
    shift_px: int = Field(default=2, ge=0)
    """shift: further views are moved by up to so many pixels each way."""
    noise: float = Field(default=0.02, ge=0)
    """Deviation of the noise added to further views in [0, 1]."""
    seed: int = 0
    """Of the further views."""


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
    text_encodings: bool = True
    """Whether text_encodings are written too: the prior and a decoder that reads words need them, and they
    are most of the bytes."""


class EmbedConfig(FileConfig):
    """Embedding of shards by a CLIP."""

    data: EmbedDataConfig
    """From what, to where."""
    model: EmbedModelConfig
    """By what."""
