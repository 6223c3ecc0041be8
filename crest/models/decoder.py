"""The decoder: a CLIP image embedding (and text encodings) to pixels, through dalle2-pytorch's U-Net.

Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.1. The library's Decoder class is not used: its losses
drop conditions in validation too, it resizes by nearest neighbour, and its DDIM grid misses x_0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import Unet
from torch import Tensor, nn

from crest.checkpoint import card_spec, load_model
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.prediction import refuse_blind_epsilon
from crest.errors import ConfigError
from crest.models.decoder_sampling import sample_images
from crest.models.decoder_spec import DecoderSpec, refuse_misfits
from crest.models.fast import UnetConditions, unet_conditions, unet_forward
from crest.models.fingerprint import verify
from crest.models.sketch import Sketch

__all__ = ["KIND", "Decoder", "DecoderSpec", "load_decoder", "sample_images"]
KIND = "decoder"


@dataclass(frozen=True)
class Conditions:
    """What a decoder is told about a picture, ready for any timestep."""

    unet: UnetConditions
    sketch: Tensor | None
    """(B, 3, side, side), about [-1, 1]"""
    lowres: Tensor | None
    """the small picture enlarged, its patches folded: (B, 3 patch_px^2, H / patch_px, W / patch_px)"""
    lowres_noise_level: Tensor | None
    """(B,)"""


class Decoder(nn.Module):
    """A U-Net with its noise schedule. Pictures are [-1, 1] inside, [0, 1] at `sample_images`' border."""

    lora_targets: Sequence[str] = tuple(
        f"unet.*.{name}.weight" for name in ("to_q", "to_kv", "to_out.0", "time_mlp.1")
    )

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        refuse_misfits(spec)
        self.spec = spec
        self.noise_schedule = NoiseSchedule(spec.noise_schedule, spec.timesteps, spec.log_snr_shift)
        refuse_blind_epsilon(spec.prediction, self.noise_schedule)
        self.unet = _build_unet(spec)
        self.x_shape = (3, spec.side_px, spec.side_px)
        self.x_limit = 1.0
        self.checkpointing = False
        self.places: Tensor
        places = _places(spec.side_px // spec.patch_px, spec.coordinate_bands)
        self.register_buffer("places", places, persistent=False)
        self.sketch: Sketch | None = None
        if spec.sketch_regions:
            self.sketch = Sketch(
                spec.image_embed_dim,
                spec.text_width,
                spec.max_text_len,
                spec.sketch_regions,
                spec.side_px,
                spec.sketch_moves,
            )

    @property
    def has_sketch(self) -> bool:
        """Whether it makes a sketch of its conditions first."""
        return self.sketch is not None

    def let_sketch_move(self) -> None:
        """Add to trained weights what `sketch_moves` has from the start.

        Raises:
            ConfigError: there is no sketch.
        """
        if self.sketch is None:
            raise ConfigError(
                "model.sketch_moves: found true for a decoder without a sketch, expected false; change it."
            )
        if not self.spec.sketch_moves:
            self.sketch.let_move()
            self.spec = self.spec.model_copy(update={"sketch_moves": True})

    def beside_sketch(self) -> Iterator[nn.Parameter]:
        """The U-Net's weights."""
        yield from self.unet.parameters()

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that text comes in by: projections of its tokens, and what stands for "no text"."""
        if self.spec.text_width is None:
            return
        yield from self.unet.text_to_cond.parameters()
        yield self.unet.null_text_embed
        if self.sketch is not None and self.sketch.words is not None:
            yield from self.sketch.words.parameters()
            yield self.sketch.places

    def save_memory(self) -> None:
        """Compute each block's activations again on the way back."""
        self.checkpointing = True

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) from [0, 1] to [-1, 1]."""
        return images * 2 - 1

    def decode_images(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) from [-1, 1] to [0, 1]."""
        return ((x + 1) / 2).clamp(0, 1).float().contiguous()

    def conditions(
        self,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
    ) -> Conditions:
        """What does not depend on the timestep, computed once per picture.

        Args:
            lowres: the small picture in [-1, 1], (B, 3, h, w), or a crop of it; an upsampler's only.
            lowres_noise_level: (B,), where `lowres_noise_cond` asks for it.
        """
        assert (lowres is None) == (self.spec.lowres_side_px is None)
        assert (lowres_noise_level is None) != self.spec.lowres_noise_cond
        told = (*self._scaled(image_embed, text_encodings), image_keep, text_keep)
        return Conditions(
            unet_conditions(self.unet, *told),
            None if self.sketch is None else self.sketch(*told),
            None if lowres is None else self._enlarged(lowres),
            lowres_noise_level,
        )

    def _scaled(self, image_embed: Tensor, text_encodings: Tensor | None) -> tuple[Tensor, Tensor | None]:
        told = text_encodings if self.spec.text_width is not None else None
        return image_embed * self.spec.embed_scale, told

    def _enlarged(self, lowres: Tensor) -> Tensor:
        # bilinear, as the upsamplers of Dhariwal and Nichol 2021 (arXiv 2105.05233) that the paper's are
        assert self.spec.lowres_side_px is not None
        sides = [side * self.spec.side_px // self.spec.lowres_side_px for side in lowres.shape[-2:]]
        large = F.interpolate(lowres, sides, mode=self.spec.lowres_resize)
        return F.pixel_unshuffle(large, self.spec.patch_px)

    def sketched(
        self, image_embed: Tensor, text_encodings: Tensor | None, image_keep: Tensor, text_keep: Tensor
    ) -> Tensor:
        """The sketch alone (B, 3, H, W), for steps that train nothing else."""
        assert self.sketch is not None
        sketch: Tensor = self.sketch(*self._scaled(image_embed, text_encodings), image_keep, text_keep)
        if torch.distributed.is_initialized():
            # several processes wait for a gradient of every weight: the U-Net's is zero
            for weight in self.unet.parameters():
                sketch = sketch + 0 * weight.sum()
        return sketch

    def predict(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, self_cond: Tensor | None = None
    ) -> Tensor:
        """The network's prediction, float32, of the kind that the spec names.

        Args:
            x_t: (B, 3, H, W) in about [-1, 1]; t: (B,).
            self_cond: (B, 3, H, W), the x_start predicted before; None shows zeros.
        Returns:
            (B, 3, H, W), or (B, 6, H, W) with the variance's fraction behind it.
        """
        patch_px = self.spec.patch_px
        shown = [F.pixel_unshuffle(x_t, patch_px)]
        if self.spec.coordinate_bands:
            shown.append(self.places.to(x_t.dtype).expand(len(x_t), -1, -1, -1))
        if conditions.sketch is not None:
            shown.append(F.pixel_unshuffle(conditions.sketch.to(x_t.dtype), patch_px))
        predicted = unet_forward(
            self.unet,
            torch.cat(shown, dim=1),
            t,
            conditions.unet,
            conditions.lowres,
            arithmetic=self.spec.arithmetic,
            self_cond=None if self_cond is None else F.pixel_unshuffle(self_cond, patch_px),
            lowres_noise_level=conditions.lowres_noise_level,
            checkpointing=self.checkpointing and torch.is_grad_enabled(),
        )
        predicted = F.pixel_shuffle(predicted.float(), patch_px)
        if conditions.sketch is None:
            return predicted
        if not self.spec.learned_variance:
            return predicted + conditions.sketch
        return torch.cat((predicted[:, :3] + conditions.sketch, predicted[:, 3:]), dim=1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        *,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
        self_cond: Tensor | None = None,
        sketch_alone: bool = False,
    ) -> Tensor:
        """The training pass: noised pictures [-1, 1] (B, 3, H, W) at timesteps t (B,) to a prediction."""
        told = (image_embed, text_encodings, image_keep, text_keep)
        if sketch_alone:
            return self.sketched(*told)
        return self.predict(x_t, t, self.conditions(*told, lowres, lowres_noise_level), self_cond)


def _build_unet(spec: DecoderSpec) -> Unet:
    unet = Unet(
        dim=spec.dim,
        init_dim=spec.init_dim,
        dim_mults=spec.dim_mults,
        image_embed_dim=spec.image_embed_dim,
        text_embed_dim=spec.text_width,
        cond_dim=spec.cond_dim,
        channels=(6 if spec.sketch_regions else 3) * spec.patch_px**2 + 4 * spec.coordinate_bands,
        channels_out=(6 if spec.learned_variance else 3) * spec.patch_px**2,
        num_resnet_blocks=spec.num_resnet_blocks,
        self_attn=spec.self_attn,
        sparse_attn=spec.sparse_attn,
        attn_heads=spec.attn_heads,
        attn_dim_head=spec.attn_dim_head,
        cosine_sim_self_attn=spec.cosine_sim_self_attn,
        cosine_sim_cross_attn=spec.cosine_sim_cross_attn,
        lowres_cond=spec.unet_number > 1,
        lowres_noise_cond=spec.lowres_noise_cond,
        self_cond=spec.self_cond,
        cond_on_image_embeds=spec.image_cond,
        cond_on_text_encodings=spec.text_width is not None,
        max_text_len=spec.max_text_len,
        memory_efficient=spec.memory_efficient,
        init_cross_embed=spec.init_cross_embed,
        init_conv_kernel_size=spec.init_kernel_px,
    )
    if not spec.attend_at_middle:  # the library has this setting too, and does not read it
        unet.mid_attn = None
    if spec.arithmetic == "1.1":
        for level in unet.downs:
            for place in (0, 4):
                if isinstance(level[place], nn.Sequential):
                    level[place] = _convolved_down(level[place][1])
    # what is never used gets no gradient, for which several processes would wait
    unused = [] if spec.text_width is not None else [unet.null_text_embed]
    if not spec.image_cond:
        unused += [unet.null_image_embed, unet.null_image_hiddens]
    for weight in unused:
        weight.requires_grad_(False)
    return unet.to(memory_format=torch.channels_last)


def _convolved_down(unshuffled: nn.Conv2d) -> nn.Conv2d:
    # before release 1.10 a level was halved by a convolution of 4 x 4, where it is a pixel-unshuffle now
    return nn.Conv2d(unshuffled.in_channels // 4, unshuffled.out_channels, 4, stride=2, padding=1)


def _places(side: int, bands: int) -> Tensor:
    """Sine and cosine of each place, (1, 4 bands, side, side): half a period a side, then octaves."""
    grid = (torch.arange(side) + 0.5) / side
    waves = [
        wave(math.pi * 2**band * axis)
        for band in range(bands)
        for axis in torch.meshgrid(grid, grid, indexing="ij")
        for wave in (torch.sin, torch.cos)
    ]
    return torch.stack(waves)[None] if waves else torch.zeros(1, 0, side, side)


def load_decoder(place: str | Path) -> tuple[Decoder, str, dict[str, Any]]:
    """A decoder from a run folder, a file or "stock/decoder_64": model, hash, card.

    Raises:
        WeightsError: nothing there, or weights of another architecture.
    """
    return load_model(place, KIND, lambda path, card: Decoder(card_spec(path, card, DecoderSpec)), verify)
