"""Training steps of the demo's decoder and prior on drawn-up data, ours and upstream's, at the same size.

Every builder returns a step: forward, backward, clipping, AdamW. Sizes and batches are those of configs/demo;
the data is random, because no step takes longer for a different picture.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Step

if TYPE_CHECKING:
    from torch import Tensor

    from crest.models.decoder import DecoderSpec
    from crest.models.prior import PriorSpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "demo"
TOKENS = 32
"""Tokens of a caption, those past its end zero; between 12 and 28 of them are used."""
LR = 1e-4
CLIP_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """What a step needs to know of a stage's config."""

    spec: Any
    """DecoderSpec or PriorSpec"""
    batch_size: int


@dataclass(frozen=True)
class Inputs:
    """One batch of random data."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]"""
    image_embed: Tensor
    """(B, D) unit length"""
    text_embed: Tensor
    """(B, D) unit length"""
    text_encodings: Tensor
    """(B, L, K), zero past the end of the text"""


def decoder_recipe() -> Recipe:
    """The demo's decoder, from the weights that it starts from."""
    from crest.models.decoder import KIND, DecoderSpec

    return _recipe("decoder_64", KIND, DecoderSpec)


def prior_recipe() -> Recipe:
    """The demo's prior, from the weights that it starts from."""
    from crest.models.prior import KIND, PriorSpec

    return _recipe("prior", KIND, PriorSpec)


def _recipe(name: str, kind: str, spec_class: Any) -> Recipe:
    from crest.checkpoint import locate_weights, read_card

    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    start = config["model"].get("start")
    values = read_card(locate_weights(start, kind), kind)["spec"] if start else config["model"]["scratch"]
    return Recipe(spec_class.model_validate(values), int(config["optim"]["batch_size"]))


def inputs(
    batch_size: int, side_px: int, image_embed_dim: int, text_width: int, device: str = "cpu"
) -> Inputs:
    """Random pictures, unit vectors and captions of 12 to 28 tokens, the same every time."""
    import torch
    import torch.nn.functional as F

    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(12, 29, (batch_size, 1), generator=draw)
    encodings = torch.randn(batch_size, TOKENS, text_width, generator=draw)
    encodings = encodings * (torch.arange(TOKENS)[None] < lengths)[..., None]
    return Inputs(
        torch.rand(batch_size, 3, side_px, side_px, generator=draw).to(device),
        F.normalize(torch.randn(batch_size, image_embed_dim, generator=draw), dim=-1).to(device),
        F.normalize(torch.randn(batch_size, image_embed_dim, generator=draw), dim=-1).to(device),
        encodings.to(device),
    )


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of a forward pass, "fp32" or "bf16"."""
    import torch

    return contextlib.nullcontext() if precision == "fp32" else torch.autocast(device, torch.bfloat16)


def _step(
    loss: Callable[[], Tensor], weights: Iterable[Tensor], precision: str, device: str, ours: bool
) -> Step:
    import torch

    trained = [weight for weight in weights if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, fused=True if ours else None)
    fast = "high" if device == "cuda" else "medium"  # what open_world() sets; "highest" is torch's default

    def step() -> float:
        torch.set_float32_matmul_precision(fast if ours else "highest")
        with autocast(precision, device):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, CLIP_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


def our_decoder(recipe: Recipe, precision: str, device: str = "cpu") -> Step:
    """A step of crest.models.decoder with the stage's loss."""
    import torch

    from crest.diffusion.noise_schedule import add_noise
    from crest.diffusion.prediction import target
    from crest.models.decoder import Decoder

    spec: DecoderSpec = recipe.spec
    torch.manual_seed(0)
    decoder = Decoder(spec).to(device).train()
    data = inputs(recipe.batch_size, spec.side_px, spec.image_embed_dim, spec.text_width or 1, device)
    text = None if spec.text_width is None else data.text_encodings
    schedule = decoder.noise_schedule

    def loss() -> Tensor:
        x_start = data.images * 2 - 1
        noise = torch.randn_like(x_start)
        t = torch.randint(spec.timesteps, (len(noise),), device=device)
        keep = torch.rand(2, len(noise), device=device) >= 0.1
        predicted = decoder(
            add_noise(schedule, x_start, noise, t), t, data.image_embed, text, keep[0], keep[1]
        )
        wanted = target(spec.prediction, x_start, noise, schedule.alpha(t, 4), schedule.sigma(t, 4))
        error: Tensor = (predicted - wanted).square().mean()
        return error

    return _step(loss, decoder.parameters(), precision, device, ours=True)


def upstream_decoder(recipe: Recipe, precision: str, device: str = "cpu") -> Step:
    """A step of dalle2_pytorch.Decoder around the same U-Net."""
    import torch
    from dalle2_pytorch import Decoder as UpstreamDecoder
    from dalle2_pytorch import Unet

    spec: DecoderSpec = recipe.spec
    torch.manual_seed(0)
    unet = Unet(
        dim=spec.dim,
        dim_mults=spec.dim_mults,
        image_embed_dim=spec.image_embed_dim,
        text_embed_dim=spec.text_width,
        cond_dim=spec.cond_dim,
        num_resnet_blocks=spec.num_resnet_blocks,
        self_attn=spec.self_attn,
        attn_heads=spec.attn_heads,
        attn_dim_head=spec.attn_dim_head,
        cond_on_text_encodings=spec.text_width is not None,
        max_text_len=spec.max_text_len,
        memory_efficient=spec.memory_efficient,
        init_cross_embed=False,
        init_conv_kernel_size=spec.init_kernel_px,
    )
    decoder = UpstreamDecoder(
        unet=unet,
        image_size=spec.side_px,
        timesteps=spec.timesteps,
        beta_schedule=spec.noise_schedule,
        learned_variance=False,
        predict_v=spec.prediction == "v",
        predict_x_start=spec.prediction == "x_start",
        image_cond_drop_prob=0.1,
        text_cond_drop_prob=0.1,
    ).to(device)
    decoder.train()
    data = inputs(recipe.batch_size, spec.side_px, spec.image_embed_dim, spec.text_width or 1, device)
    text = None if spec.text_width is None else data.text_encodings

    def loss() -> Tensor:
        value: Tensor = decoder(data.images, image_embed=data.image_embed, text_encodings=text, unet_number=1)
        return value

    return _step(loss, decoder.parameters(), precision, device, ours=False)


def our_prior(recipe: Recipe, precision: str, device: str = "cpu") -> Step:
    """A step of crest.models.prior with the stage's loss."""
    import torch

    from crest.diffusion.noise_schedule import add_noise
    from crest.models.prior import Prior

    spec: PriorSpec = recipe.spec
    torch.manual_seed(0)
    prior = Prior(spec).to(device).train()
    data = inputs(recipe.batch_size, 8, spec.image_embed_dim, spec.text_width or spec.image_embed_dim, device)

    def loss() -> Tensor:
        x_start = data.image_embed * prior.scale
        noise = torch.randn_like(x_start)
        t = torch.randint(spec.timesteps, (len(noise),), device=device)
        keep = torch.rand(len(noise), device=device) >= 0.1
        x_t = add_noise(prior.noise_schedule, x_start, noise, t)
        predicted = prior(x_t, t, data.text_embed, data.text_encodings, keep, torch.ones_like(keep))
        error: Tensor = (predicted - x_start).square().mean()
        return error

    return _step(loss, prior.parameters(), precision, device, ours=True)


def upstream_prior(recipe: Recipe, precision: str, device: str = "cpu") -> Step:
    """A step of dalle2_pytorch.DiffusionPrior around the same network.

    It has no projection for text encodings of another width than the embedding, so it is given that width.
    """
    import torch
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    spec: PriorSpec = recipe.spec
    torch.manual_seed(0)
    net = DiffusionPriorNetwork(
        dim=spec.image_embed_dim,
        max_text_len=spec.max_text_len,
        depth=spec.depth,
        heads=spec.heads,
        dim_head=spec.dim_head,
        ff_mult=spec.ff_mult,
    )
    prior = DiffusionPrior(
        net,
        image_embed_dim=spec.image_embed_dim,
        timesteps=spec.timesteps,
        beta_schedule=spec.noise_schedule,
        text_cond_drop_prob=0.1,
        image_cond_drop_prob=0.0,
        condition_on_text_encodings=True,
    ).to(device)
    prior.train()
    data = inputs(recipe.batch_size, 8, spec.image_embed_dim, spec.image_embed_dim, device)

    def loss() -> Tensor:
        value: Tensor = prior(
            text_embed=data.text_embed,
            image_embed=data.image_embed.clone(),  # the library scales the caller's tensor in place
            text_encodings=data.text_encodings,
        )
        return value

    return _step(loss, prior.parameters(), precision, device, ours=False)
