"""Averaged weights: what is validated, previewed and exported."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
        self._trained = [name for name, weight in model.named_parameters() if weight.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        source = dict(model.named_parameters())
        target = dict(self.model.named_parameters())
        torch._foreach_lerp_(
            [target[name].data for name in self._trained],
            [source[name].data for name in self._trained],
            1 - decay,
        )
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
