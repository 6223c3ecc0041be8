"""Drawing with both sides of benchmarks/prior.py: a guided timestep, and a whole draw."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Step
from benchmarks.prior_setup import Setup, apart, same_weights

if TYPE_CHECKING:
    from torch import Tensor

    from crest.models.clip import TextFeatures
    from crest.models.prior import Prior
    from prior_train.data import PriorBatch

DRAWN, STEPS, COND_SCALE = 8, 16, 2.0
"""Embeddings, denoising steps and guidance of a draw."""


def sample_proof(setup: Setup) -> float:
    """Distance between both sides' outputs of one guided timestep, over the length of upstream's."""
    ours, theirs, batch = same_weights(setup)
    return apart(_our_denoiser(ours, batch)(), _their_denoiser(theirs, batch)(), "outputs")


def upstream_sample_step(setup: Setup) -> Step:
    """One guided prediction of the library's network."""
    _, theirs, batch = same_weights(setup)
    return _their_denoiser(theirs, batch)


def crest_sample_step(setup: Setup) -> Step:
    """One guided prediction of ours, after the text was run."""
    ours, _, batch = same_weights(setup)
    return _our_denoiser(ours, batch)


def _their_denoiser(prior: Any, batch: PriorBatch) -> Callable[[], Tensor]:
    import torch

    net, scale = prior.net.eval(), batch.image_embed.shape[1] ** 0.5
    x_t, t = _noised(batch)
    words = None if batch.text_encodings is None else batch.text_encodings[:DRAWN]
    text_embed = batch.text_embed[:DRAWN] * scale

    @torch.no_grad()
    def step() -> Tensor:
        torch.set_float32_matmul_precision("highest")
        out: Tensor = net.forward_with_cond_scale(
            x_t, t, text_embed=text_embed, text_encodings=words, cond_scale=COND_SCALE
        )
        return out

    return step


def _our_denoiser(prior: Prior, batch: PriorBatch) -> Callable[[], Tensor]:
    import torch

    from crest.models.prior import guided_prediction

    torch.set_float32_matmul_precision("medium")
    with torch.no_grad():
        predict = guided_prediction(prior.eval(), _features(batch), candidates=1, cond_scale=COND_SCALE)
    x_t, t = _noised(batch)

    @torch.no_grad()
    def step() -> Tensor:
        torch.set_float32_matmul_precision("medium")
        return predict(x_t, t, None)

    return step


def _noised(batch: PriorBatch) -> tuple[Tensor, Tensor]:
    import torch

    shape = batch.image_embed[:DRAWN].shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.full((shape[0],), 500)


def _features(batch: PriorBatch) -> TextFeatures:
    from crest.models.clip import TextFeatures

    words = batch.text_encodings
    return TextFeatures(
        batch.text_embed[:DRAWN],
        batch.text_embed.new_zeros(DRAWN, 0, 0) if words is None else words[:DRAWN],
    )


def upstream_draw(setup: Setup) -> Step:
    """DiffusionPrior.p_sample_loop with guidance, in DDIM steps as ours."""
    import torch

    _, prior, batch = same_weights(setup)
    prior.eval()
    cond = {"text_embed": batch.text_embed[:DRAWN]}
    if batch.text_encodings is not None:
        cond["text_encodings"] = batch.text_encodings[:DRAWN]
    shape = tuple(batch.image_embed[:DRAWN].shape)

    def step() -> object:
        torch.set_float32_matmul_precision("highest")
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars; it asks once less than told
            return prior.p_sample_loop(shape, cond, timesteps=STEPS + 1, cond_scale=COND_SCALE)

    return step


def crest_draw(setup: Setup) -> Step:
    """`crest.models.prior.sample_image_embed` with guidance."""
    import torch

    from crest.models.prior import sample_image_embed

    prior, _, batch = same_weights(setup)
    prior.eval()
    text = _features(batch)

    def step() -> object:
        torch.set_float32_matmul_precision("medium")
        return sample_image_embed(
            prior, text, seeds=range(DRAWN), cond_scale=COND_SCALE, steps=STEPS, candidates=1
        )

    return step
