"""fit(): the one training loop, and the Stage protocol that it drives.

The loop owns time: steps, accumulation, precision, EMA, saving, logging, resuming. A stage owns meaning.
Every random draw is a pure function of (seed, step, position), so a resumed run ends with the same weights,
bit for bit on a CPU, as one that never stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crest.adapters import ADAPTER, exports_adapters
from crest.checkpoint import (
    BEST,
    WEIGHTS,
    State,
    export_weights,
    exported,
    has_exported,
    load_state,
    remove_states,
    restore_exported,
)
from crest.config import OptimConfig, RunConfig
from crest.ema import Ema
from crest.errors import RunError
from crest.going_on import PENDING, SCALE, Keeper
from crest.interruption import heed, held_back
from crest.optimizers import build_optimizer
from crest.records import Split, read_json, write_json
from crest.sharding import Sharding
from crest.tracker import Tracker
from crest.train_step import Trained, is_due, train_step
from crest.world import World, mix_seed, open_world

Metrics = Mapping[str, float]
Batch = TypeVar("Batch")
WATCHED = frozenset(
    f"run.{name}"
    for name in ("dir", "log_every", "preview_every", "save_every", "device", "device_memory_gb", "export")
) | {"optim.ema_device"}
"""Settings that say where and how finely a run is watched, not what it is."""
STOPPED = "stopped"
"""Why a stage wanted to stop, in a state's `extra`."""


class Stage(Protocol[Batch]):
    """What learns, from what, by which measure: its answers, and the card that travels with the weights.

    Three further attributes are read where a stage has them:

    - `patience` (int, default 0): stop after so many validations without a better `best_by`; 0: never.
    - `loss_limit` (float, default infinity): a loss above it stops the run as one that is not finite does.
    - `stop_reason` (str, default ""): why the last validation says to stop; the same on every process.

    A batch may have `ids` (one string a sample), by which such an error names them.
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


def stop_reason_of(stage: Stage[Any]) -> str:
    """Why a stage wants to stop after its last validation (its `stop_reason`); empty: it does not."""
    return str(getattr(stage, "stop_reason", ""))


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
        RunError: another recipe's run folder, or a loss or gradient that is not finite (before the step).
    """
    world = world or open_world(run.device, run.precision)
    _refuse_other_recipe(run.dir, recipe)
    done = exported(run.dir)
    if done is not None:
        if world.is_main:
            print(f"{run.dir}: finished before; nothing to do (remove the folder to train again)")
        return done
    torch.manual_seed(mix_seed(run.seed))
    state, sharding = _start(stage, run, optim, world)
    exports_adapters(run.export, state.model)  # refused before a step is made
    model, optimizer = world.prepare(state.model, state.optimizer)
    world.restore_scale(state.extra.get(SCALE, {}))
    batches = _begun(stage.batches("train", world, state.step), wanted=state.step < run.steps)
    _claim(run.dir, recipe, world)
    progress = tqdm(
        total=run.steps,
        initial=state.step,
        desc=run.dir.name,
        unit="step",
        disable=None if world.is_main else True,
    )
    # split weights are saved by all processes together: a signal waits until all have agreed to stop
    with (
        contextlib.nullcontext() if sharding is None else held_back(),
        progress,
        Keeper(run.dir, state, world, sharding) as keeper,
        contextlib.closing(
            Tracker(run.dir, state.step, active=world.is_main, again=PENDING in state.extra)
        ) as tracker,
    ):
        trained = Trained(stage, state, model, optimizer, world, run, optim, accumulation, keeper)
        if state.step == 0:
            _validate(stage, state, world, tracker, run)
        if PENDING in state.extra:  # it was stopped after its last step, before what was due then
            _do_what_is_due(stage, trained, keeper, tracker)
        model.train()
        while state.step < run.steps and not _is_hopeless(stage, state, run):
            heed()
            train_step(trained, batches)
            progress.update()
            shown = _do_what_is_due(stage, trained, keeper, tracker)
            if shown:
                progress.set_postfix(loss=f"{shown['train/loss']:.4f}", refresh=False)
        if state.step < run.steps:  # stopped early: what it shows is due now
            if world.is_main and STOPPED in state.extra:
                tqdm.write(
                    f"{run.dir}: stopped at step {state.step}: {state.extra[STOPPED]}", file=sys.stderr
                )
            _preview(stage, state, world, tracker)
    _export(stage, state, run, recipe, world, export_best)
    world.barrier()
    return run.dir / (ADAPTER if exports_adapters(run.export, state.model) else WEIGHTS)


def _do_what_is_due(
    stage: Stage[Any], trained: Trained, keeper: Keeper, tracker: Tracker
) -> dict[str, float]:
    """Log, validate, show and save what the step just made asks for; returns the figures that were logged."""
    state, world, run = trained.state, trained.world, trained.run
    figures: dict[str, float] = state.extra.get(PENDING, {})
    if figures:
        tracker.scalars(state.step, figures)
    if is_due(state.step, run.validate_every, run.steps):
        _validate(stage, state, world, tracker, run)
        trained.model.train()
    if is_due(state.step, run.preview_every, run.steps):
        _preview(stage, state, world, tracker)
    state.extra.pop(PENDING, None)
    if is_due(state.step, run.save_every, run.steps):
        keeper.save()
        world.barrier()
    return figures


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


def _start(
    stage: Stage[Any], run: RunConfig, optim: OptimConfig, world: World
) -> tuple[State, Sharding | None]:
    if not world.is_split:
        return _whole_start(stage, run, optim, world, world.device), None
    sharding = Sharding(world, optim)
    for rank in range(world.size):  # one after the other: for a moment each holds everything
        if rank == world.rank:
            state = sharding.split(_whole_start(stage, run, optim, world, torch.device("cpu")))
        world.barrier()
    return state, sharding


def _whole_start(
    stage: Stage[Any], run: RunConfig, optim: OptimConfig, world: World, device: torch.device
) -> State:
    model = stage.model().to(device)
    ema = Ema(model, optim.ema_decay, optim.ema_device)
    state = State(0, model, ema, build_optimizer(model, optim))
    ema.guard(state.optimizer)
    if load_state(run.dir, state) and world.is_main:
        print(f"{run.dir}: going on from step {state.step} of {run.steps}", file=sys.stderr)
    return state


def _is_hopeless(stage: Stage[Any], state: State, run: RunConfig) -> bool:
    """Whether the stage wants to stop: it said so, or many validations have brought nothing better."""
    if STOPPED in state.extra:
        return True
    waited = (state.step - state.best_step) // run.validate_every
    return 0 < patience_of(stage) <= waited


@torch.no_grad()
def _validate(stage: Stage[Any], state: State, world: World, tracker: Tracker, run: RunConfig) -> None:
    with state.ema.on(world.device) as average, world.autocast():
        metrics = stage.validate(average, world)
    tracker.scalars(state.step, {f"val/{name}": value for name, value in metrics.items()})
    if stop_reason_of(stage):
        state.extra[STOPPED] = stop_reason_of(stage)
    value = metrics.get(stage.best_by)
    if value is None:
        return
    lower = stage.best_by.endswith("loss")
    if state.best is None or (value < state.best if lower else value > state.best):
        if world.is_main or world.is_split:
            with state.ema.on(world.device) as average:
                if world.is_main:
                    card, alone = stage.card(average), exports_adapters(run.export, state.model)
                    export_weights(run.dir, average, card, name=BEST, adapters_alone=alone)
        # afterwards: stopped before, a run that goes on judges this step once more
        state.best, state.best_step = value, state.step


def _preview(stage: Stage[Any], state: State, world: World, tracker: Tracker) -> None:
    if world.is_main or world.is_split:
        with state.ema.on(world.device) as average:
            if world.is_main:
                tracker.images(state.step, stage.preview(average))


def _export(
    stage: Stage[Any],
    state: State,
    run: RunConfig,
    recipe: Mapping[str, Any],
    world: World,
    export_best: bool,
) -> None:
    if not (world.is_main or world.is_split):
        return
    with state.ema.on(world.device) as average:
        if not world.is_main:
            return
        card = {
            **stage.card(average),
            "step": state.step,
            "best": {"by": stage.best_by, "value": state.best, "step": state.best_step},
            "world": {"processes": world.size, "device": world.device.type, "precision": world.precision},
            "recipe": dict(recipe),
            **({STOPPED: state.extra[STOPPED]} if STOPPED in state.extra else {}),
        }
        if export_best and state.best_step != state.step and has_exported(run.dir / BEST):
            restore_exported(average, run.dir / BEST)
            card["step"] = state.best_step
        alone = exports_adapters(run.export, state.model)
        export_weights(run.dir, average, card, adapters_alone=alone)
        if alone:
            remove_states(run.dir)
