"""How far a CLIP has moved away from what it knew, told by its answers to things that are not logos.

The probe shows 64 drawn pictures, asks 100 general prompts and compares the answers of two sets of weights.
It measures that answers moved, not whether they got worse: it has no labels, its pictures are drawn by
formula and far from photographs, its prompts are English. A small drift says that answers to such things are
nearly as they were; a large one that they are not, and what that costs only a zero-shot benchmark can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_train.probe_bank import PROMPTS, VERSION, draw_pictures
from clip_train.retrieval import exact_products
from crest.models.clip import ClipModel
from crest.models.clip_towers import DONE, image_tower, text_tower

MOST = 2.0
"""The largest drift: every answer turned into its opposite, or into no number at all."""
_AT_ONCE = 32
_FLAT = 1e-6  # similarities that spread by less than this are the same for all, as far as float32 tells


@dataclass(frozen=True)
class ProbeEmbeddings:
    """What one set of weights makes of the bank; float32, unit length, on the CPU."""

    image_embed: Tensor
    """(64, D)"""
    text_embed: Tensor
    """(100, D)"""
    version: int = VERSION
    """of the bank"""

    def similarities(self) -> NDArray[np.float64]:
        """Every picture with every prompt, (64, 100) cosines."""
        return np.asarray((self.image_embed.double() @ self.text_embed.double().T).numpy())


class Probe:
    """The bank at one picture size.

    Args:
        side_px: the models' picture size, `ClipModel.side_px`.
        prompts: asked instead of the bank's, for a probe of one's own, whose drifts compare with no others.
    """

    def __init__(self, side_px: int, prompts: Sequence[str] = PROMPTS) -> None:
        self.prompts = tuple(prompts)
        self.pictures = torch.from_numpy(draw_pictures(side_px).copy())
        """(64, 3, side_px, side_px) uint8"""
        self._entered: dict[tuple[str, int, int], Tensor] = {}

    @torch.no_grad()
    def embed(self, model: ClipModel) -> ProbeEmbeddings:
        """Ask a model, in true float32 and evaluation mode whatever it is in; it is left as it was.

        Where its towers are cut, what lies below is taken to be the same in every model that is asked, and is
        computed once.
        """
        device, modes = model.mean.device, {module: module.training for module in model.modules()}
        model.eval()
        images, texts = [], []
        try:
            with exact_products(device):
                for first in range(0, len(self.pictures), _AT_ONCE):
                    images.append(model.enter_image(self._pictures(model, first, device)))
                for first in range(0, len(self.prompts), _AT_ONCE):
                    tokens = model.tokenize(self.prompts[first : first + _AT_ONCE])
                    texts.append(model.enter_text(tokens, self._states(model, first, tokens)))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return ProbeEmbeddings(torch.cat(images).float().cpu(), torch.cat(texts).float().cpu())

    def _pictures(self, model: ClipModel, first: int, device: torch.device) -> Tensor:
        """Pictures, or what enters the upper part of a cut image tower."""

        def shown() -> Tensor:
            return self.pictures[first : first + _AT_ONCE].to(device).float() / 255

        cut = model.cuts.image
        if cut is None:
            return shown()
        key = ("image", cut, first)
        if key not in self._entered:
            if cut == DONE:
                self._entered[key] = model.embed_images(shown())
            else:
                normal = (shown() - model.mean) / model.std
                self._entered[key] = image_tower(model.clip).lower(normal, cut)
        return self._entered[key]

    def _states(self, model: ClipModel, first: int, tokens: Tensor) -> Tensor | None:
        """What enters the upper part of a cut text tower."""
        cut = model.cuts.text
        if cut is None:
            return None
        key = ("text", cut, first)
        if key not in self._entered:
            self._entered[key] = text_tower(model.clip).lower(tokens, cut)
        return self._entered[key]


def drift(before: ProbeEmbeddings, after: ProbeEmbeddings) -> dict[str, float]:
    """How far the answers moved from one set of weights to another, in one number and its parts.

    Returns:
        drift: 1 - r, with r the correlation of the similarities before and after: over the prompts for each
            picture (as zero-shot classification asks) and over the pictures for each prompt (as retrieval
            asks), averaged. 0: every order and every relative distance as before, which a change of scale
            leaves so; 0.5: all answers have become one; 1: they have nothing to do with those before; 2:
            turned round.
        probe_image_cosine, probe_text_cosine: mean cosine of each embedding with what it was. They fall too
            where both towers turn alike, which changes no answer; what was made with the old embeddings (a
            prior, an index) meets it nevertheless.
        probe_top_kept: share of the pictures whose nearest prompt is the same.
        probe_version: of the bank.
    """
    assert before.version == after.version, "drifts of two versions of the bank can't be compared"
    figures = {
        "probe_image_cosine": _mean_cosine(before.image_embed, after.image_embed),
        "probe_text_cosine": _mean_cosine(before.text_embed, after.text_embed),
    }
    old, new = before.similarities(), after.similarities()
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return {"drift": MOST, **dict.fromkeys(figures, -1.0), "probe_top_kept": 0.0, **_version(before)}
    distances = [((_standard(old, axis) - _standard(new, axis)) ** 2).sum(axis).mean() / 2 for axis in (0, 1)]
    kept = (old.argmax(axis=1) == new.argmax(axis=1)).mean()
    return {"drift": float(np.mean(distances)), **figures, "probe_top_kept": float(kept), **_version(before)}


def _version(asked: ProbeEmbeddings) -> dict[str, float]:
    return {"probe_version": float(asked.version)}


def _mean_cosine(before: Tensor, after: Tensor) -> float:
    # by the distance of unit vectors, which is 0 without rounding for equal ones
    return 1 - float((before.double() - after.double()).square().sum(dim=1).mean()) / 2


def _standard(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Centred and of unit length along an axis, so that half a squared distance is 1 - the correlation."""
    centred = values - values.mean(axis, keepdims=True)
    length = np.sqrt((centred**2).sum(axis, keepdims=True))
    flat = length <= _FLAT * np.sqrt(values.shape[axis])
    return np.asarray(np.where(flat, 0.0, centred / np.where(flat, 1.0, length)))
