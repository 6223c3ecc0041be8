"""What one U-Net of a cascade is built from and how its diffusion runs; combinations that break are refused.

Imports no network, so that a mistake is told before anything is built.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crest.config import Arithmetic, Config, Prediction, ScheduleName
from crest.errors import ConfigError


class DecoderSpec(Config):
    """Everything needed to build one U-Net of a cascade and to run its diffusion."""

    unet_number: int = Field(default=1, ge=1, le=4)
    """Which U-Net of the cascade this is, from 1; those from 2 on are shown the picture of the one before."""
    side_px: int = Field(ge=8)
    """Side of the pictures that it draws."""
    lowres_side_px: int | None = Field(default=None, ge=4)
    """Side of the picture that an upsampler is shown, which is what the U-Net before it draws."""
    lowres_resize: Literal["bilinear", "nearest"] = "bilinear"
    """How that picture is brought to side_px; published upsamplers were shown pixels repeated."""
    lowres_noise_cond: bool = False
    """Whether an upsampler is told how much noise its small picture was given."""
    image_embed_dim: int
    """D of the CLIP that conditions it."""
    image_cond: bool = True
    """Whether it is shown the image embedding at all; the paper's upsamplers are not."""
    image_embed_scale: float | None = None
    """Factor on the unit-length image embedding; null takes sqrt(D), the scale of the other tokens."""
    text_width: int | None
    """K of the CLIP that conditions it; null leaves text encodings out."""
    max_text_len: int = 40
    """Tokens of text that it looks at."""
    dim: int = Field(ge=8)
    """Channels at the outermost level."""
    init_dim: int | None = None
    """Channels after the first convolution; null or dim, because the library breaks at any other."""
    dim_mults: tuple[int, ...]
    """Channels of each level, as multiples of dim."""
    num_resnet_blocks: int | tuple[int, ...] = 1
    """Residual blocks a level, on top of the first; one number, or one a level."""
    cond_dim: int = 64
    """Width of a condition token."""
    self_attn: tuple[bool, ...]
    """Which levels attend to themselves."""
    sparse_attn: bool = False
    """Whether the other levels have linear attention."""
    attend_at_middle: bool = True
    """Whether the innermost level attends to itself; the paper's upsamplers have no attention anywhere."""
    attn_heads: int = 4
    """Heads of self-attention."""
    attn_dim_head: int = 32
    """Width of one head of self-attention."""
    cosine_sim_self_attn: bool = False
    """Whether self-attention compares directions only."""
    cosine_sim_cross_attn: bool = False
    """Whether attention to the conditions compares directions only."""
    memory_efficient: bool = True
    """Halve the resolution before a level's blocks instead of after."""
    init_kernel_px: int = 3
    """Size of the first convolution."""
    init_cross_embed: bool = False
    """Whether the first convolution is three, of sizes 3, 7 and 15, side by side."""
    patch_px: int = Field(default=1, ge=1)
    """Side of the pixel blocks that are folded into channels before the U-Net and unfolded after it."""
    coordinate_bands: int = Field(default=0, ge=0)
    """Octaves of each pixel's place shown to the network as sine and cosine; 0 shows none."""
    sketch_regions: int = Field(default=0, ge=0)
    """Regions of a sketch made of the conditions, which the U-Net is shown and corrects; 0 makes none."""
    sketch_moves: bool = False
    """Whether the sketch can shift and stretch what it laid out, so that it is soon drawn elsewhere."""
    self_cond: bool = False
    """Whether it is shown the picture that it guessed at the step before."""
    learned_variance: bool = False
    """Whether it predicts, beside the picture, how uncertain a denoising step is."""
    arithmetic: Arithmetic = "1.15"
    """The release of dalle2-pytorch whose numbers the weights belong to."""
    timesteps: int = 1000
    """T of the noise schedule."""
    noise_schedule: ScheduleName = "cosine"
    """Shape of the noise schedule."""
    log_snr_shift: float = 0.0
    """Shift of the noise schedule towards more noise (negative), which large flat areas need."""
    prediction: Prediction = "v"
    """What the network predicts."""

    @property
    def stride_px(self) -> int:
        """What a picture's side must be a multiple of."""
        levels = len(self.dim_mults)
        return self.patch_px << (levels if self.memory_efficient else levels - 1)

    @property
    def embed_scale(self) -> float:
        """Factor on the unit-length image embedding."""
        # a unit vector of D numbers has entries of 1/sqrt(D): bring them to the scale of the other tokens
        return self.image_embed_dim**0.5 if self.image_embed_scale is None else self.image_embed_scale


def refuse_misfits(spec: DecoderSpec) -> None:
    """Refuse what the library would break on, or silently change.

    Raises:
        ConfigError: the first setting that fits no other, what it must be and why.
    """
    levels = len(spec.dim_mults)
    if spec.side_px % spec.stride_px:
        _refuse(
            "side_px",
            spec.side_px,
            f"a multiple of {spec.stride_px}, which patch_px and the {levels} levels of dim_mults halve it "
            "to",
            "change one of the three",
        )
    if len(spec.self_attn) != levels:  # the library would drop the levels without a partner, silently
        _refuse(
            "self_attn",
            f"{len(spec.self_attn)} values",
            f"{levels}, one a level of dim_mults",
            "add or remove some",
        )
    if isinstance(spec.num_resnet_blocks, tuple) and len(spec.num_resnet_blocks) != levels:
        _refuse(
            "num_resnet_blocks",
            f"{len(spec.num_resnet_blocks)} values",
            f"one number or {levels}, one a level of dim_mults",
            "add or remove some",
        )
    if spec.dim % 8:
        _refuse("dim", spec.dim, "a multiple of 8, the groups of a norm", "change it")
    if spec.init_dim not in (None, spec.dim):
        _refuse(
            "init_dim",
            spec.init_dim,
            f"null or {spec.dim} like dim, because the library's last block takes no other",
            "remove it",
        )
    # the library takes equal widths for "nothing to project" and then has one token, not four
    if spec.image_cond and spec.cond_dim == spec.image_embed_dim:
        _refuse(
            "cond_dim",
            f"{spec.cond_dim}, the width of CLIP's embeddings",
            "any other, because the library's U-Net breaks at this one",
            "take a narrower one",
        )
    _refuse_sketch(spec)
    _refuse_cascade(spec)


def _refuse_sketch(spec: DecoderSpec) -> None:
    if spec.sketch_regions and spec.side_px % 8:
        _refuse(
            "side_px", spec.side_px, "a multiple of 8 for a sketch", "change it or set sketch_regions to 0"
        )
    if spec.sketch_regions and spec.prediction != "x_start":
        _refuse(
            "prediction",
            f'"{spec.prediction}"',
            '"x_start" with a sketch, which is a guess at x_0',
            "change it or set sketch_regions to 0",
        )
    # what the library joins to its input it takes for pictures of the same channels
    if (spec.sketch_regions or spec.coordinate_bands) and (spec.self_cond or spec.unet_number > 1):
        _refuse(
            "sketch_regions" if spec.sketch_regions else "coordinate_bands",
            spec.sketch_regions or spec.coordinate_bands,
            "0 for an upsampler or with self_cond",
            "set it to 0",
        )


def _refuse_cascade(spec: DecoderSpec) -> None:
    if (spec.lowres_side_px is None) != (spec.unet_number == 1):
        _refuse(
            "lowres_side_px",
            "null" if spec.lowres_side_px is None else spec.lowres_side_px,
            f"{'a side' if spec.unet_number > 1 else 'null'} for unet_number {spec.unet_number}",
            "only U-Nets from 2 on are shown the picture of the one before",
        )
    if spec.lowres_side_px is not None and spec.lowres_side_px >= spec.side_px:
        _refuse(
            "lowres_side_px",
            spec.lowres_side_px,
            f"less than side_px, which is {spec.side_px}",
            "change one of the two",
        )
    if spec.lowres_side_px is not None and spec.side_px % spec.lowres_side_px:
        _refuse(
            "lowres_side_px",
            spec.lowres_side_px,
            f"a divisor of side_px, which is {spec.side_px}",
            "change one of the two",
        )
    if spec.lowres_noise_cond and spec.unet_number == 1:
        _refuse(
            "lowres_noise_cond", "true", "false for unet_number 1, which is shown no picture", "remove it"
        )


def _refuse(name: str, found: object, expected: str, remedy: str) -> None:
    raise ConfigError(f"model.scratch.{name}: found {found}, expected {expected}; {remedy}.")
