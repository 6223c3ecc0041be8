"""What a prior is built from and how its diffusion runs; combinations that break are refused.

Imports no network, so that a mistake is told before anything is built.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from crest.config import Arithmetic, Config, Prediction, ScheduleName
from crest.errors import ConfigError


class PriorSpec(Config):
    """Everything needed to build a prior and to run its diffusion."""

    image_embed_dim: int = Field(ge=2)
    """D of the CLIP that it serves."""
    text_width: int | None = None
    """K of the CLIP that it serves, projected to D where they differ; null where text_encodings is false."""
    text_encodings: bool = True
    """Whether it reads text encodings beside the text embedding."""
    max_text_len: int = Field(default=40, ge=1)
    """Tokens of text that it reads."""
    depth: int = Field(default=4, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    dim_head: int = Field(default=48, ge=1)
    """Width of one head."""
    ff_mult: float = Field(default=2.0, gt=0)
    """Width of the feed-forward layers, as a multiple of D."""
    num_time_embeds: int = Field(default=1, ge=1)
    """Tokens that tell the timestep."""
    num_image_embeds: int = Field(default=1, ge=1)
    """Tokens that show the noised image embedding."""
    num_text_embeds: int = Field(default=1, ge=1)
    """Tokens that show the text embedding."""
    norm_in: bool = False
    """Whether the transformer begins with a norm."""
    norm_out: bool = True
    """Whether the transformer ends with a norm."""
    normformer: bool = False
    """Whether feed-forward layers have a norm in their middle."""
    rotary_emb: bool = True
    """Whether attention is told positions by rotation, beside the relative bias."""
    final_proj: bool = True
    """Whether a linear layer follows the transformer."""
    attn_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    ff_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of feed-forward activations dropped in training."""
    self_cond: bool = False
    """Whether it is shown the embedding that it guessed at the step before."""
    arithmetic: Arithmetic = "1.15"
    """The release of dalle2-pytorch whose numbers the weights belong to."""
    timesteps: int = Field(default=1000, ge=1)
    """T of the noise schedule."""
    discrete_timesteps: bool = False
    """Whether each timestep has a learned embedding of its own, instead of waves and a small network."""
    noise_schedule: ScheduleName = "cosine"
    """Shape of the noise schedule."""
    prediction: Prediction = "x_start"
    """What the network predicts; x_start in the paper."""
    image_embed_scale: float | None = Field(default=None, gt=0)
    """Factor on the unit-length image embedding that diffuses; null takes sqrt(D), the noise's scale."""
    text_embed_scale: float | None = Field(default=None, gt=0)
    """Factor on the unit-length text embedding; null takes sqrt(D), the scale of the other tokens."""
    clamp_sampled: bool = True
    """Whether every step of a draw brings its guess back to the length of an embedding."""
    saw_dropped_conditions: bool = True
    """Whether training dropped text, without which guidance has no meaning."""
    saw_dropped_images: bool = False
    """Whether training dropped the noised embedding too; guidance then starts from a guess that saw neither,
    as the library's does, instead of one that saw no text."""

    @model_validator(mode="before")
    @classmethod
    def _no_width_of_what_is_not_read(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("text_encodings") is False:
            return {**values, "text_width": None}
        return values

    @property
    def scale(self) -> float:
        """Length of an image embedding where it diffuses."""
        # entries of a unit vector are 1/sqrt(D): bring them to the scale of the noise and of other tokens
        return self.image_embed_dim**0.5 if self.image_embed_scale is None else self.image_embed_scale

    @property
    def text_scale(self) -> float:
        """Length of the text embedding where the network reads it."""
        return self.image_embed_dim**0.5 if self.text_embed_scale is None else self.text_embed_scale


def refuse_misfits(spec: PriorSpec) -> None:
    """Refuse what the library would break on.

    Raises:
        ConfigError: the first setting that fits no other, what it must be and why.
    """
    if spec.text_encodings and spec.text_width is None:
        _refuse(
            "text_width",
            "null",
            "the width of CLIP's text encodings",
            "add it, or set text_encodings to false",
        )
    if spec.rotary_emb and min(spec.dim_head, 32) % 2:
        _refuse("dim_head", spec.dim_head, "an even number, because positions rotate pairs", "change it")


def _refuse(name: str, found: object, expected: str, remedy: str) -> None:
    raise ConfigError(f"model.scratch.{name}: found {found}, expected {expected}; {remedy}.")
