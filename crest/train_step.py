"""One optimizer step: accumulate, clip, look whether all is finite, move weights and averages; or nothing.

Until the weights move, a step can be given up at any moment; from there to the count of steps, signals wait.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crest.checkpoint import State
from crest.config import OptimConfig, RunConfig
from crest.errors import RunError
from crest.finite import SMALLEST_SCALE, Verdict, Watch, culprits, has_finite_gradients, named, said_of
from crest.going_on import PENDING, SKIPPED, Keeper
from crest.interruption import Ended, held_back, is_asked
from crest.learning_rate import learning_rate, set_learning_rate
from crest.records import Split
from crest.world import World, mix_seed


class Learner(Protocol):
    """What a step asks of a stage (crest/loop.py)."""

    def batches(self, split: Split, world: World, start: int) -> Iterator[Any]:
        """Micro-batches from a step on."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What it minimises."""
        ...

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """What the step leaves as it is."""
        ...


@dataclass(frozen=True)
class Trained:
    """What the steps of one run work on."""

    stage: Learner
    state: State
    model: nn.Module
    """as it is called in training; `state.model` is the same without a wrapper"""
    optimizer: Any
    world: World
    run: RunConfig
    optim: OptimConfig
    accumulation: int = 1
    """micro-batches a step"""
    keeper: Keeper | None = None
    """told when a step is finished, and when all processes agreed to stop"""


def train_step(trained: Trained, batches: Iterator[Any]) -> None:
    """Make one optimizer step, or leave everything as it was."""
    state, world, run, optim = trained.state, trained.world, trained.run, trained.optim
    lr = learning_rate(state.step, run.steps, optim)
    set_learning_rate(trained.optimizer, lr)
    watch = Watch(world, loss_limit_of(trained.stage))
    sums = _accumulate(trained, batches, watch)
    for weight in trained.stage.resting(state.step):
        weight.grad = None
    learning = [weight for group in trained.optimizer.param_groups for weight in group["params"]]
    sums["grad_norm"] = world.clip(learning, optim.clip_grad_norm)
    verdict = watch.verdict(sums["grad_norm"], is_asked())
    if verdict.is_asked:
        _agree(trained)
        raise Ended
    if not verdict.is_fine and not _is_skipped(trained, verdict):
        _refuse_exploded(trained, watch, verdict)
    figures: dict[str, float] = {}
    if is_due(state.step + 1, run.log_every, run.steps):
        figures = world.mean({f"train/{name}": float(value) for name, value in sums.items()})
        figures |= {"train/lr": lr} | _scaling(trained)
    with held_back() if world.size == 1 or world.is_main else contextlib.nullcontext():
        trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.model, state.step)
        state.step += 1
        state.extra[PENDING] = figures
        if trained.keeper is not None:
            trained.keeper.finished_step()


def _accumulate(trained: Trained, batches: Iterator[Any], watch: Watch) -> dict[str, Tensor]:
    """The gradient of one batch, micro-batch by micro-batch, and the figures over it."""
    stage, world, accumulation = trained.stage, trained.world, trained.accumulation
    # dropout inside a network, if any
    torch.manual_seed(mix_seed(trained.run.seed, trained.state.step, world.rank))
    sums: dict[str, Tensor] = {}
    for micro in range(accumulation):
        batch = next(batches)
        with world.accumulate(trained.model, last=micro == accumulation - 1):
            with world.autocast():
                loss, figures = stage.loss(trained.model, batch)
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=value.device))
                    + value.detach().float() / accumulation
                )
            watch.note(loss, batch)
            world.backward(loss / accumulation)
    return sums


def _is_skipped(trained: Trained, verdict: Verdict) -> bool:
    """Whether fp16's scaling answers for a gradient that is not finite: it skips the step and scales less."""
    scale = trained.world.loss_scale()
    if scale is None or not all(verdict.losses_fine) or scale < SMALLEST_SCALE:
        return False
    trained.state.extra[SKIPPED] = trained.state.extra.get(SKIPPED, 0) + 1
    return True


def _scaling(trained: Trained) -> dict[str, float]:
    scale = trained.world.loss_scale()
    if scale is None:
        return {}
    return {"train/loss_scale": scale, "train/skipped_steps": float(trained.state.extra.get(SKIPPED, 0))}


def _refuse_exploded(trained: Trained, watch: Watch, verdict: Verdict) -> None:
    stage, state, run, optim = trained.stage, trained.state, trained.run, trained.optim
    trained.optimizer.zero_grad(set_to_none=True)

    def again() -> Iterator[bool]:
        batches = stage.batches("train", trained.world, state.step)
        torch.manual_seed(mix_seed(run.seed, state.step, trained.world.rank))
        for _ in range(trained.accumulation):
            with trained.world.autocast():
                loss, _ = stage.loss(state.model, next(batches))
            loss.backward()  # type: ignore[no-untyped-call]
            yield has_finite_gradients(state.model)
            state.model.zero_grad(set_to_none=True)

    whom = culprits(verdict, watch.ids, trained.world, again)
    _agree(trained)
    raise RunError(
        f"{run.dir}: {said_of(verdict, watch.limit, state.step)}{named(whom)}; the weights are those of the "
        f"step before, and saved. Lower optim.lr (it is {optim.lr:g}; a tenth of it, say) under another "
        "run.dir, or mend those samples, and run again."
    )


def _agree(trained: Trained) -> None:
    if trained.keeper is not None:
        trained.keeper.agreed = True


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something is done after a step; after the last one, all is."""
    return step % every == 0 or step == steps


def loss_limit_of(stage: Learner) -> float:
    """The loss above which a stage's run stops as one that is not finite does (its `loss_limit`)."""
    return float(getattr(stage, "loss_limit", math.inf))
