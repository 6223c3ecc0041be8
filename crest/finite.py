"""Whether the losses and the gradient of a step are numbers, asked of the device once, before the step.

Where they are not, the samples that did it are named and the run stops. fp16 is different: its loss is scaled
up until gradients overflow, so such a step is skipped, and only a scale that has collapsed stops the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from crest.world import World

NAMED: Final = 8
"""Samples that an error names at most."""
SMALLEST_SCALE: Final = 1.0
"""A loss that overflows in fp16 without being scaled up overflows for good."""


@dataclass
class Watch:
    """What one step's micro-batches said of themselves.

    Args:
        limit: a loss above it is not fine either.
    """

    world: World
    limit: float
    losses: list[Tensor] = field(default_factory=list)
    ids: list[Sequence[str]] = field(default_factory=list)

    def note(self, loss: Tensor, batch: Any) -> None:
        """Remember the loss of a micro-batch, and its samples' `ids` where it has them."""
        self.losses.append(loss.detach().float())
        self.ids.append(getattr(batch, "ids", None) or ())

    def verdict(self, grad_norm: Tensor, asked: bool) -> Verdict:
        """What all processes together found; the one time that a step waits for the device.

        Args:
            grad_norm: of the whole gradient, the same on every process.
            asked: whether this process was asked to stop.
        """
        losses = torch.stack(self.losses)
        fine = torch.isfinite(losses) & (losses <= self.limit)
        stays = torch.tensor([not asked], device=losses.device)
        all_fine = torch.cat((fine, torch.isfinite(grad_norm)[None].to(losses.device), stays)).float()
        if self.world.size > 1:
            torch.distributed.all_reduce(all_fine, op=torch.distributed.ReduceOp.MIN)
        found = torch.cat((all_fine, fine.float(), losses)).tolist()
        count = len(losses)
        return Verdict(
            [bool(value) for value in found[:count]],
            bool(found[count]),
            not found[count + 1],
            [bool(value) for value in found[count + 2 : 2 * count + 2]],
            found[2 * count + 2 :],
        )


@dataclass(frozen=True)
class Verdict:
    """What one step's losses and gradient are."""

    losses_fine: list[bool]
    """of each micro-batch, on every process"""
    gradient_fine: bool
    is_asked: bool
    """whether any process was asked to stop"""
    own_fine: list[bool]
    """of each micro-batch, on this process"""
    own_losses: list[float]

    @property
    def is_fine(self) -> bool:
        """Whether the step may be made."""
        return all(self.losses_fine) and self.gradient_fine


def said_of(verdict: Verdict, limit: float, step: int) -> str:
    """What is wrong with a step, as the middle of a sentence."""
    if all(verdict.losses_fine):
        return f"the gradient at step {step} is not finite, though the loss is"
    wrong = [loss for loss, fine in zip(verdict.own_losses, verdict.own_fine, strict=True) if not fine] or [
        math.nan
    ]  # another process found it
    value = wrong[0]
    what = f"{value:.4g}, more than {limit:.4g}" if math.isfinite(value) else f"{value}, not a finite number"
    return f"the loss at step {step} is {what}"


def culprits(
    verdict: Verdict,
    ids: Sequence[Sequence[str]],
    world: World,
    again: Callable[[], Iterator[bool]],
) -> list[str]:
    """The samples of the micro-batches that did it, over all processes, in the order of the batch.

    Args:
        ids: of each micro-batch of this process.
        again: the micro-batches' gradients once more, one by one: whether each is fine. A gradient that is
            summed over micro-batches and processes does not tell who spoilt it.
    """
    fine = verdict.own_fine if not all(verdict.losses_fine) else list(again())
    own = [name for names, is_fine in zip(ids, fine, strict=True) if not is_fine for name in names]
    if world.size == 1:
        return own
    everyone: list[list[str]] = [[] for _ in range(world.size)]
    torch.distributed.all_gather_object(everyone, own)
    return [name for names in everyone for name in names]


def named(ids: Sequence[str]) -> str:
    """Up to eight samples in words; empty when nobody knows them."""
    if not ids:
        return ""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f" in the micro-batch of {', '.join(ids[:NAMED])}{more}"


def has_finite_gradients(model: nn.Module) -> bool:
    """Whether every number of every gradient is one (this process's part of them where they are split)."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    local = [getattr(gradient, "_local_tensor", gradient) for gradient in gradients]
    return all(bool(torch.isfinite(gradient).all()) for gradient in local)
