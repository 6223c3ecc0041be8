"""The decoder: a CLIP image embedding (and text encodings) to pixels, through dalle2-pytorch's U-Net.

Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.1. The library's Decoder class is not used: its losses
drop conditions in validation too, it resizes by nearest neighbour, and its DDIM grid misses x_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import Unet
from torch import Tensor, nn

from crest.checkpoint import card_spec, load_weights, locate_weights, read_card, short_hash
from crest.config import SamplerName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.prediction import to_x_start
from crest.diffusion.sampling import SAMPLERS
from crest.errors import ConfigError
from crest.models.decoder_spec import DecoderSpec, refuse_misfits
from crest.models.fast import UnetConditions, unet_conditions, unet_forward
from crest.models.sketch import Sketch

__all__ = ["KIND", "Decoder", "DecoderSpec", "load_decoder", "sample_images"]
KIND = "decoder"


@dataclass(frozen=True)
class Conditions:
    """What a decoder is told about a picture, ready for any timestep."""

    unet: UnetConditions
    sketch: Tensor | None
    """(B, 3, side, side), about [-1, 1]"""


class Decoder(nn.Module):
    """A U-Net with its noise schedule. Pictures are [-1, 1] inside, [0, 1] at `sample_images`' border."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        refuse_misfits(spec)
        self.spec = spec
        self.noise_schedule = NoiseSchedule(spec.noise_schedule, spec.timesteps, spec.log_snr_shift)
        self.unet = _build_unet(spec)
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

    def conditions(
        self, image_embed: Tensor, text_encodings: Tensor | None, image_keep: Tensor, text_keep: Tensor
    ) -> Conditions:
        """What does not depend on the timestep, computed once per picture."""
        told = (*self._scaled(image_embed, text_encodings), image_keep, text_keep)
        return Conditions(
            unet_conditions(self.unet, *told), None if self.sketch is None else self.sketch(*told)
        )

    def _scaled(self, image_embed: Tensor, text_encodings: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (
            image_embed * self.spec.embed_scale,
            text_encodings if self.spec.text_width is not None else None,
        )

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

    def predict(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's prediction (B, 3, H, W), float32, of the kind that the spec names."""
        shown = [F.pixel_unshuffle(x_t, self.spec.patch_px)]
        if self.spec.coordinate_bands:
            shown.append(self.places.to(x_t.dtype).expand(len(x_t), -1, -1, -1))
        if conditions.sketch is not None:
            shown.append(F.pixel_unshuffle(conditions.sketch.to(x_t.dtype), self.spec.patch_px))
        predicted = unet_forward(self.unet, torch.cat(shown, dim=1), t, conditions.unet)
        predicted = F.pixel_shuffle(predicted.float(), self.spec.patch_px)
        return predicted if conditions.sketch is None else predicted + conditions.sketch

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        *,
        sketch_alone: bool = False,
    ) -> Tensor:
        """The training pass: noised pictures [-1, 1] (B, 3, H, W) at timesteps t (B,) to a prediction."""
        if sketch_alone:
            return self.sketched(image_embed, text_encodings, image_keep, text_keep)
        return self.predict(x_t, t, self.conditions(image_embed, text_encodings, image_keep, text_keep))


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


@torch.no_grad()
def sample_images(
    decoder: Decoder,
    image_embed: Tensor,
    text_encodings: Tensor | None,
    *,
    seeds: Sequence[int],
    steps: int,
    cond_scale: float,
    sampler: SamplerName = "dpmpp_2m",
) -> Tensor:
    """Draw one picture per row.

    Args:
        image_embed: (B, D) unit length; text_encodings: (B, L, K) or None.
        seeds: one a row; a picture depends on its own seed, not on its place in the batch.
        steps: network evaluations per picture (twice as many rows when guided).
        cond_scale: classifier-free guidance strength; 1.0 switches it off.
    Returns:
        (B, 3, side, side) float32 in [0, 1].
    Paper: Ho and Salimans 2022 (arXiv 2207.12598), equation 6, with w = cond_scale - 1.
    """
    b, spec = len(image_embed), decoder.spec
    device = image_embed.device
    noise = torch.stack([_noise(seed, (3, spec.side_px, spec.side_px)) for seed in seeds]).to(device)
    keep = torch.ones(b, dtype=torch.bool, device=device)
    guided = cond_scale != 1.0
    if guided:
        image_embed = torch.cat((image_embed, image_embed))
        text_encodings = None if text_encodings is None else torch.cat((text_encodings, text_encodings))
        keep = torch.cat((keep, ~keep))
    conditions = decoder.conditions(image_embed, text_encodings, keep, keep)
    schedule = decoder.noise_schedule

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        if guided:
            both = decoder.predict(torch.cat((x_t, x_t)), torch.cat((t, t)), conditions)
            with_condition, without = both.chunk(2)
            predicted = without + (with_condition - without) * cond_scale
        else:
            predicted = decoder.predict(x_t, t, conditions)
        return to_x_start(spec.prediction, predicted, x_t, schedule.alpha(t, 4), schedule.sigma(t, 4)).clamp(
            -1, 1
        )

    drawn = SAMPLERS[sampler](denoise, noise, schedule, steps)
    return ((drawn + 1) / 2).clamp(0, 1).contiguous()


def _noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    # drawn on the CPU, so that a seed gives the same logo on every device
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_decoder(place: str | Path) -> tuple[Decoder, str, dict[str, Any]]:
    """A decoder from a run folder, a file or "stock/decoder_64": model, hash, card.

    Raises:
        WeightsError: nothing there, or weights of another architecture.
    """
    path = locate_weights(place, KIND)
    card = read_card(path, KIND)
    decoder = Decoder(card_spec(path, card, DecoderSpec))
    load_weights(decoder, path)
    return decoder, short_hash(path), card
