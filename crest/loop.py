"""fit(): the one training loop, and the Stage protocol that it drives.

The loop owns time: steps, accumulation, precision, EMA, saving, logging, resuming. A stage owns meaning.
Every random draw is a pure function of (seed, step, position), so a resumed run ends with the same weights,
bit for bit on a CPU, as one that never stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crest.adapters import exports_adapters
from crest.checkpoint import (
    BEST,
    State,
    export_weights,
    exported,
    has_exported,
    load_state,
    remove_states,
    restore_exported,
    save_state,
)
from crest.config import OptimConfig, RunConfig
from crest.ema import Ema
from crest.errors import RunError
from crest.interruption import heed
from crest.learning_rate import learning_rate, set_learning_rate
from crest.optimizers import build_optimizer
from crest.records import Split, read_json, write_json
from crest.tracker import Tracker
from crest.world import World, mix_seed, open_world

Metrics = Mapping[str, float]
Batch = TypeVar("Batch")
WATCHED = frozenset(
    f"run.{name}"
    for name in ("dir", "log_every", "preview_every", "save_every", "device", "device_memory_gb", "export")
) | {"optim.ema_device"}
"""Settings that say where and how finely a run is watched, not what it is."""


class Stage(Protocol[Batch]):
    """What learns, from what, by which measure: its answers, and the card that travels with the weights.

    Two further attributes are read where a stage has them:

    - `patience` (int, default 0): stop after so many validations without a better `best_by`; 0: never.
    - `loss_limit` (float, default infinity): a loss above it stops the run as one that is not finite does.
    """

    best_by: str
    """the validation figure that `best.safetensors` keeps; a name ending in "loss" is better when lower"""

    def model(self) -> nn.Module:
        """What learns, built and filled with its starting weights."""
        ...

    def batches(self, split: Split, world: World, start: int) -> Iterator[Batch]:
        """What it reads, from step `start`: micro-batches, `accumulation` of them a step."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What it minimises, with figures to log; all of them scalars."""
        ...

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """What this step leaves as it is, even where several processes had to give it a gradient of zero."""
        ...

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """How it is judged (EMA weights), the same on every process."""
        ...

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """What it shows: name -> (N, 3, H, W) in [0, 1]."""
        ...

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are: kind, spec, parents, preprocessing."""
        ...


def patience_of(stage: Stage[Any]) -> int:
    """Validations without a better one after which a stage wants to stop (its `patience`); 0: never."""
    return int(getattr(stage, "patience", 0))


def fit(
    stage: Stage[Any],
    run: RunConfig,
    optim: OptimConfig,
    *,
    recipe: Mapping[str, Any],
    world: World | None = None,
    accumulation: int = 1,
    export_best: bool = False,
) -> Path:
    """Train a stage to its last step and export its weights; run again after a stop, it goes on.

    Args:
        recipe: the resolved config, stored with the run; a folder of another recipe is refused.
        accumulation: micro-batches per optimizer step, as `stage.batches` yields them.
        export_best: export the best validated EMA weights instead of the last.
    Returns:
        the exported weights file, or that of adapters alone.
    Raises:
        ConfigError: adapters alone are to be exported where there are none.
        RunError: another recipe's run folder, or a loss that is not finite (before the optimizer step).
    """
    world = world or open_world(run.device, run.precision)
    _refuse_other_recipe(run.dir, recipe)
    before = exported(run.dir)
    if before is not None:
        if world.is_main:
            print(f"{run.dir}: finished before; nothing to do (remove the folder to train again)")
        return before
    torch.manual_seed(mix_seed(run.seed))
    state = _start(stage, run, optim, world)
    model, optimizer = world.prepare(state.model, state.optimizer)
    batches = _begun(stage.batches("train", world, state.step), wanted=state.step < run.steps)
    _claim(run.dir, recipe, world)
    progress = tqdm(
        total=run.steps,
        initial=state.step,
        desc=run.dir.name,
        unit="step",
        disable=None if world.is_main else True,
    )
    with progress, contextlib.closing(Tracker(run.dir, state.step, active=world.is_main)) as tracker:
        if state.step == 0:
            _validate(stage, state, world, tracker, run)
        model.train()
        while state.step < run.steps and not _is_hopeless(stage, state, run):
            heed()
            lr = learning_rate(state.step, run.steps, optim)
            set_learning_rate(optimizer, lr)
            figures = _train_step(
                stage, model, optimizer, batches, world, run, optim, state.step, accumulation
            )
            state.ema.update(state.model, state.step)
            state.step += 1
            progress.update()
            if _due(state.step, run.log_every, run.steps):
                metrics = world.mean({f"train/{name}": float(value) for name, value in figures.items()})
                tracker.scalars(state.step, {**metrics, "train/lr": lr})
                progress.set_postfix(loss=f"{metrics['train/loss']:.4f}", refresh=False)
            if _due(state.step, run.validate_every, run.steps):
                _validate(stage, state, world, tracker, run)
                model.train()
            if _due(state.step, run.preview_every, run.steps) and world.is_main:
                _preview(stage, state, world, tracker)
            if _due(state.step, run.save_every, run.steps):
                if world.is_main:
                    save_state(run.dir, state)
                world.barrier()
        if state.step < run.steps and world.is_main:  # stopped early: what it shows is due now
            _preview(stage, state, world, tracker)
    if world.is_main:
        _export(stage, state, run, recipe, world, export_best)
    world.barrier()
    done = exported(run.dir)
    assert done is not None
    return done


def _refuse_other_recipe(run_dir: Path, recipe: Mapping[str, Any]) -> None:
    path = run_dir / "config.json"
    if not path.exists():
        return
    found, wanted = _settings(read_json(path)), _settings(recipe)
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            raise RunError(
                f"{run_dir}: belongs to a run with {name} = {found.get(name)}, this config has "
                f"{wanted.get(name)}; name another run.dir or remove the folder."
            )


def _settings(recipe: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    # all that makes a run what it is, under dotted names
    settings: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping) and value:
            settings |= _settings(value, f"{section}{key}.")
        elif f"{section}{key}" not in WATCHED:
            settings[f"{section}{key}"] = value
    return settings


def _begun(batches: Iterator[Batch], wanted: bool) -> Iterator[Batch]:
    # the first batch is read before the folder is claimed: what is wrong with the data shows in it
    return itertools.chain([next(batches)], batches) if wanted else batches


def _claim(run_dir: Path, recipe: Mapping[str, Any], world: World) -> None:
    world.barrier()
    if world.is_main and not (run_dir / "config.json").exists():
        write_json(run_dir / "config.json", recipe)


def _start(stage: Stage[Any], run: RunConfig, optim: OptimConfig, world: World) -> State:
    model = stage.model().to(world.device)
    exports_adapters(run.export, model)
    ema = Ema(model, optim.ema_decay, optim.ema_device)
    state = State(0, model, ema, build_optimizer(model, optim))
    ema.guard(state.optimizer)
    if load_state(run.dir, state) and world.is_main:
        print(f"{run.dir}: going on from step {state.step} of {run.steps}", file=sys.stderr)
    return state


def _train_step(
    stage: Stage[Any],
    model: nn.Module,
    optimizer: Any,
    batches: Iterator[Any],
    world: World,
    run: RunConfig,
    optim: OptimConfig,
    step: int,
    accumulation: int,
) -> dict[str, Tensor]:
    torch.manual_seed(mix_seed(run.seed, step, world.rank))  # dropout inside a network, if any
    sums: dict[str, Tensor] = {}
    for micro in range(accumulation):
        batch = next(batches)
        with world.accumulate(model, last=micro == accumulation - 1):
            with world.autocast():
                loss, figures = stage.loss(model, batch)
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=value.device))
                    + value.detach().float() / accumulation
                )
            _refuse_exploded(loss, run, optim, step, world, getattr(stage, "loss_limit", math.inf))
            world.backward(loss / accumulation)
    for weight in stage.resting(step):
        weight.grad = None
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    sums["grad_norm"] = world.accelerator.clip_grad_norm_(learning, optim.clip_grad_norm).detach()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _refuse_exploded(
    loss: Tensor, run: RunConfig, optim: OptimConfig, step: int, world: World, limit: float
) -> None:
    is_fine = (torch.isfinite(loss.detach()) & (loss.detach() <= limit)).float()
    if world.size > 1:
        torch.distributed.all_reduce(is_fine, op=torch.distributed.ReduceOp.MIN)
    if not math.isclose(float(is_fine), 1.0):
        value = float(loss.detach())
        is_number = math.isfinite(value)
        what = f"{value:.4g}, more than {limit:.4g}" if is_number else f"{value}, not a finite number"
        raise RunError(
            f"{run.dir}: the loss at step {step} is {what}; the weights are those of the step before. Lower "
            f"optim.lr (it is {optim.lr:g}; a tenth of it, say) or look at that batch, and run again."
        )


def _is_hopeless(stage: Stage[Any], state: State, run: RunConfig) -> bool:
    """Whether so many validations have brought nothing better that the stage wants to stop."""
    waited = (state.step - state.best_step) // run.validate_every
    return 0 < patience_of(stage) <= waited


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


@torch.no_grad()
def _validate(stage: Stage[Any], state: State, world: World, tracker: Tracker, run: RunConfig) -> None:
    with state.ema.on(world.device) as average, world.autocast():
        metrics = stage.validate(average, world)
    tracker.scalars(state.step, {f"val/{name}": value for name, value in metrics.items()})
    value = metrics.get(stage.best_by)
    if value is None:
        return
    lower = stage.best_by.endswith("loss")
    if state.best is None or (value < state.best if lower else value > state.best):
        state.best, state.best_step = value, state.step
        if world.is_main:
            with state.ema.on(world.device) as average:
                card, alone = stage.card(average), exports_adapters(run.export, state.model)
                export_weights(run.dir, average, card, name=BEST, adapters_alone=alone)


def _preview(stage: Stage[Any], state: State, world: World, tracker: Tracker) -> None:
    with state.ema.on(world.device) as average:
        tracker.images(state.step, stage.preview(average))


def _export(
    stage: Stage[Any],
    state: State,
    run: RunConfig,
    recipe: Mapping[str, Any],
    world: World,
    export_best: bool,
) -> None:
    card = {
        **stage.card(state.ema.model),
        "step": state.step,
        "best": {"by": stage.best_by, "value": state.best, "step": state.best_step},
        "world": {"processes": world.size, "device": world.device.type, "precision": world.precision},
        "recipe": dict(recipe),
    }
    if export_best and state.best_step != state.step and has_exported(run.dir / BEST):
        restore_exported(state.ema.model, run.dir / BEST)
        card["step"] = state.best_step
    with state.ema.on(world.device) as average:
        alone = exports_adapters(run.export, state.model)
        export_weights(run.dir, average, card, adapters_alone=alone)
    if alone:
        remove_states(run.dir)
