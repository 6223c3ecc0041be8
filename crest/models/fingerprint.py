"""Noticing weights in the wrong arithmetic, where every name and shape agrees and yet only noise comes out.

With a record, made when weights were converted, any difference is noticed: a fingerprint of names, shapes and
arithmetic, and a probe, what the network answered to a fixed question. Without one only this can be told: a
trained network answers to what it is shown, one that is random, scrambled or dead does not. A mismatch that
leaves a network half alive is then not noticed; docs/formats.md says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest.errors import WeightsError

TOLERANCE: Final = 1e-3
"""Largest relative difference between a probe and its record: another processor differs by about 1e-5."""
ROWS: Final = 64
"""Embeddings that an untrained prior is told by."""


def fingerprint(model: nn.Module) -> str:
    """Sixteen digits of every name and shape, and of what the numbers mean."""
    spec: Any = model.spec
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    meaning = f"arithmetic {getattr(spec, 'arithmetic', '')} prediction {spec.prediction}"
    return hashlib.sha256("\n".join([*lines, meaning]).encode()).hexdigest()[:16]


@torch.no_grad()
def probe(model: nn.Module) -> list[float]:
    """What the network answers to a fixed question: sixteen of its numbers, and the size of all."""
    spec: Any = model.spec
    was_training = model.training
    model.eval()
    try:
        answer = _asked(model, 1, int(spec.timesteps * 0.4), 0)[1].flatten().double()
    finally:
        model.train(was_training)
    some = answer[:: max(1, len(answer) // 16)][:16]
    return [*(float(value) for value in some), float(answer.square().mean().sqrt())]


def verify(model: nn.Module, card: Mapping[str, Any], file: str) -> None:
    """Compare loaded weights with the record on their card, where it has one.

    Raises:
        WeightsError: they are not what was recorded, or run in another arithmetic.
    """
    if "fingerprint" in card and card["fingerprint"] != fingerprint(model):
        raise WeightsError(
            f"{file}: has the fingerprint {fingerprint(model)}, its card says {card['fingerprint']}: names, "
            "shapes or arithmetic are others; convert it again from the published file."
        )
    if "probe" in card:
        found, recorded = torch.tensor(probe(model)), torch.tensor(card["probe"])
        off = float((found - recorded).norm() / recorded.norm().clamp(min=1e-12))
        if not off <= TOLERANCE:  # not a number is no answer either
            raise WeightsError(
                f"{file}: answers a fixed question otherwise than when it was converted (by {off:.1%}, "
                f"expected at most {TOLERANCE:.1%}): it is damaged or in the wrong arithmetic; convert it "
                "again."
            )


@torch.no_grad()
def refuse_untrained(model: nn.Module, file: str) -> None:
    """Refuse a network that does not look at what it is shown.

    A predictor of noise is shown noise alone, which is its answer: half of it must be right. A predictor of
    x_start is shown x_start: the cosine to its answer must exceed chance, by five standard deviations.

    Raises:
        WeightsError: it does not.
    """
    spec: Any = model.spec
    if spec.prediction == "epsilon":
        shown, answer = _asked(model, 1, spec.timesteps - 1, 0)
        score, least = 1 - float((answer[:, : shown.shape[1]] - shown).norm() / shown.norm()), 0.5
    elif spec.prediction == "x_start":
        shown, answer = _asked(model, ROWS, 0, 0)
        answer = answer[:, : shown.shape[1]].flatten(1)
        score = float(F.cosine_similarity(answer, shown.flatten(1), dim=1).mean())
        least = 5 / math.sqrt(shown.numel())
    else:
        return
    if not score >= least:
        raise WeightsError(
            f"{file}: does not look at what it is shown ({score:.3f}, expected at least {least:.3f}), as a "
            "random network does or one in the wrong arithmetic; check the file and its config."
        )


def _asked(model: nn.Module, count: int, t: int, seed: int) -> tuple[Tensor, Tensor]:
    """x_t and the prediction for it, of fixed inputs; a small picture stands for a decoder's whole one."""
    spec: Any = model.spec
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    embed = F.normalize(draw(count, spec.image_embed_dim), dim=-1)
    words = None if spec.text_width is None else draw(count, 4, spec.text_width)
    keep, times = torch.ones(count, dtype=torch.bool, device=device), torch.full((count,), t, device=device)
    if not hasattr(spec, "side_px"):
        x_t = F.normalize(draw(count, spec.image_embed_dim), dim=-1) * spec.image_embed_dim**0.5
        return x_t, model(x_t, times, embed, words, keep, keep)
    side = min(spec.side_px, max(32, spec.stride_px))
    shown = {}
    if spec.lowres_side_px is not None:
        small = side * spec.lowres_side_px // spec.side_px
        shown["lowres"] = draw(count, 3, small, small).clamp(-1, 1)
        if spec.lowres_noise_cond:
            shown["lowres_noise_level"] = torch.full((count,), 100, device=device)
    x_t = draw(count, 3, side, side)
    return x_t, model(x_t, times, embed, words, keep, keep, **shown)
