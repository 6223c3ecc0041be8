"""Averaged weights: what is validated, previewed and exported."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model's weights.

    The factor starts low, min(decay, (1 + step) / (10 + step)), so that a short run does not export its
    random start. Frozen weights and buffers are copied, never averaged (averaging would blur a noise
    schedule).

    Args:
        model: the unwrapped model.
        decay: the factor reached in the long run; 0 follows the model exactly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._followed: nn.Module | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self._follow(model)
        averages, currents = zip(*((one.data, other.data) for one, other in self._pairs), strict=True)
        torch._foreach_lerp_(averages, currents, 1 - decay)
        for average, current in self._buffers:
            average.copy_(current)

    def _follow(self, model: nn.Module) -> None:
        """Pair what learns with its average, once a model: looking takes longer than averaging a head."""
        if model is self._followed:
            return
        averages = dict(self.model.named_parameters())
        learning = ((name, own) for name, own in model.named_parameters() if own.requires_grad)
        self._pairs = [(averages[name], own) for name, own in learning]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))
        self._followed = model
