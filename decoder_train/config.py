"""What can be turned in decoder training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crest.config import Config, FileConfig, LoraConfig, OptimConfig, RunConfig, SamplerName
from crest.preservation_config import PreservationConfig


class AugmentConfig(Config):
    """Small changes to training pictures that leave their words true; nothing is cropped."""

    shift: float = Field(default=0.04, ge=0, lt=0.5)
    """Greatest shift either way, as a share of the side."""
    rotate_degrees: float = Field(default=4.0, ge=0, le=180)
    """Greatest turn either way."""
    scale: tuple[float, float] = (0.92, 1.0)
    """Least and greatest size; above 1, what leaves the picture is lost."""
    flip: bool = False
    """Mirror half of the pictures: only where neither letters nor sides mean anything."""
    tint: float = Field(default=0.0, ge=0, lt=1)
    """Greatest share by which each colour channel is dimmed: only where captions name no colours."""


class StopConfig(Config):
    """When a run on few pictures ends before its last step; the best weights until then are exported."""

    patience: int = Field(default=0, ge=0)
    """Validations without a better held-out loss after which it ends; 0: never for that reason."""
    drawings: int = Field(default=16, ge=0)
    """Pictures drawn at each validation and compared with the training pictures; 0 compares none."""
    quantile: float = Field(default=0.1, gt=0, lt=1)
    """It ends when half of the drawings are nearer to a training picture than this share of real ones are."""
    reference: str | None = None
    """A CLIP in whose space they are compared too ("stock/reference_clip"); null: by pixels alone."""


class DecoderDataConfig(Config):
    """What the decoder learns from."""

    shards: Path
    """Folder of WebDataset shards with a manifest."""
    embeddings: Path
    """Embeddings of those shards, made by clip_train.embed; joined by id."""
    validate_samples: int = Field(default=128, ge=1)
    """Logos of the validation split that the loss is measured on, at most."""
    validate_split: Literal["val", "train"] = "val"
    """What figures are measured on; "train" for a handful of pictures of which none is held out."""
    balance_by: Literal["group", "caption"] | None = None
    """Draw every group or caption equally often, however many pictures it has; null: every picture."""
    augment: AugmentConfig | None = None
    """Move training pictures a little; null leaves them as they are."""


class DecoderModelConfig(Config):
    """What the decoder starts from: exactly one of `start` and `scratch`."""

    start: str | None = None
    """A run folder, a .safetensors file or "stock/decoder_64"."""
    accept_other_clip: bool = False
    """Start from weights of another CLIP: right where this one was fine-tuned from it, wrong otherwise."""
    scratch: dict[str, Any] | None = None
    """A DecoderSpec (its embedding sizes are taken from the embeddings): train from random weights.
    `family` names another kind of decoder than Crest's own."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    lora: LoraConfig | None = None
    """Train adapters beside weights that stay as they are; null trains all weights."""
    sketch_steps: int = Field(default=0, ge=0)
    """Steps at the start that train the sketch alone, each at about a third of the cost of a whole one."""
    sketch_moves: bool = False
    """Let the sketch shift and stretch what it lays out, for pictures that stand elsewhere than before."""
    image_cond_drop_prob: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples whose image embedding is dropped."""
    text_cond_drop_prob: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples whose text encodings are dropped, independent of the other."""
    both_cond_drop_prob: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples that lose both, which is what guidance subtracts."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Clamp of the signal-to-noise ratio in the loss weight; null weighs every timestep alike."""
    p2_gamma: float | None = Field(default=None, gt=0)
    """How far the loss prefers coarse timesteps (P2); null does not; not beside min_snr_gamma."""
    p2_k: float = Field(default=1.0, gt=0)
    """What keeps P2's weight finite where there is no noise."""
    variance_weight: float = Field(default=0.001, ge=0)
    """Weight of the variational bound, which a learned variance is trained by."""
    self_cond_prob: float = Field(default=0.5, ge=0, le=1)
    """Share of samples that are shown the network's own first guess, where the spec has self_cond."""
    lowres_blur_prob: float = Field(default=0.5, ge=0, le=1)
    """Share of an upsampler's small pictures that are blurred, so that it forgives what is drawn."""
    lowres_blur_sigma: tuple[float, float] = (0.4, 0.6)
    """Least and largest blur, in pixels of the small picture."""
    lowres_blur_kernel_px: int = Field(default=3, ge=1)
    """Width of the blur's window, odd."""
    crop_px: int | None = Field(default=None, ge=8)
    """Side of the crops that an upsampler learns from (the paper takes a fourth of side_px); null: whole."""
    freeze_text: bool = False
    """Leave as they are the weights by which text comes in."""
    compiled: bool = False
    """Compile the network: faster steps after a slow first one."""
    preview_steps: int = Field(default=20, ge=1)
    """Denoising steps of a preview."""
    preview_cond_scale: float = 2.0
    """Guidance of a preview."""
    preview_sampler: SamplerName = "dpmpp_2m"
    """Sampler of a preview."""


class DecoderTrainConfig(FileConfig):
    """Decoder training."""

    run: RunConfig
    """Where and how often."""
    data: DecoderDataConfig
    """From what."""
    model: DecoderModelConfig
    """What."""
    optim: OptimConfig
    """How."""
    preservation: PreservationConfig | None = None
    """What else is to stay known; null: nothing is done for it."""
    stop: StopConfig | None = None
    """When to end early; null: at the last step."""
