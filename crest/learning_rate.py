"""Learning rate as a pure function of the step: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math

import torch

from crest.config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The learning rate that step `step` (from 0) of `steps` uses."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = min(1.0, (step - optim.warmup_steps) / max(1, steps - 1 - optim.warmup_steps))
    falling = 1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * falling)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group its share (`lr_scale`, 1 by default) of `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)
