"""What `--dry-run` of a training room prints: what a run takes, whether that fits, and what to change if not.

Each piece of advice has been tried by the same estimate, so that following it makes the run fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import torch

from crest.config import LoraConfig, RunConfig
from crest.errors import ConfigError
from crest.memory import MemoryEstimate, Passes, estimate, free_bytes, shown, usable_bytes
from crest.world import pick_device, pick_precision

Config = TypeVar("Config", bound=Any)
"""A training room's, with the sections run, model and optim."""
BATCH: Final = "optim.device_batch_size"


@dataclass(frozen=True)
class PlannedDevice:
    """What a run will compute on, whether it is here or not."""

    device_type: str
    precision: str
    capacity_bytes: int
    place: str


@dataclass(frozen=True)
class Change:
    """A setting that takes less memory."""

    name: str
    value: Any
    cost: str

    def __str__(self) -> str:
        if isinstance(self.value, LoraConfig):
            return f"--set {self.name}.rank={self.value.rank}"
        return f"--set {self.name}={str(self.value).lower()}"


PassesOf = Callable[[Any, PlannedDevice, int, int], Passes]
"""(config, device, samples of a pass, passes of a step) -> what its network holds"""


def planned_device(run: RunConfig) -> PlannedDevice:
    """The device of a config: this machine's, or another of `run.device_memory_gb`."""
    if run.device_memory_gb is not None:
        kind = "cpu" if run.device == "cpu" else "cuda"
        precision = run.precision
        if precision == "auto":
            precision = "fp32" if kind == "cpu" else "fp16"  # bf16 takes the same
        size = int(run.device_memory_gb * 1e9)
        return PlannedDevice(kind, precision, size, f"a device of {run.device_memory_gb:g} GB")
    device = pick_device(run.device)
    size = free_bytes(device)
    place = f"this machine's {device}, {shown(size)} free"
    return PlannedDevice(device.type, pick_precision(run.precision, device), size, place)


def plan(config: Config, passes_of: PassesOf) -> str:
    """Lines for a terminal: what a config's run takes, whether it fits, and what makes it fit.

    Raises:
        ConfigError: device_batch_size does not divide this process's share of batch_size.
    """
    device = planned_device(config.run)
    known: dict[Any, Passes] = {}

    def sizes(changes: list[Change], empty: bool = False) -> MemoryEstimate:
        tried = config
        for change in changes:
            tried = _with(tried, change.name, change.value)
        processes, samples, accumulation = _shares(tried.optim)
        key = (samples, accumulation > 1, repr(tried.model))
        if empty:  # what passes hold but for their samples is the same for any number of them
            found = next(passes for other, passes in known.items() if other[2] == key[2])
            passes = replace(found, activation_bytes=0, peak_bytes=found.learning_bytes, judged_bytes=0)
        else:
            if key not in known:
                known[key] = passes_of(tried, device, samples, accumulation)
            passes = known[key]
        return estimate(
            passes,
            tried.optim,
            precision=device.precision,
            device_type=device.device_type,
            samples=samples,
            processes=processes,
        )

    first = sizes([])
    usable = usable_bytes(device.capacity_bytes, device.device_type)
    verdict = f"of {shown(usable)} usable on {device.place}"
    if first.fits(device.capacity_bytes):
        return f"{first.table()}\nfits         {verdict}"
    taken, best = _fitting(sizes, _changes(config, device), device.capacity_bytes)
    lines = [f"  {change!s:<44} {change.cost}" for change in taken]
    if best.fits(device.capacity_bytes):
        advice = f"It would take {shown(best.peak_bytes)} and fit with"
    else:
        advice = f"Nothing makes it fit; it would still take {shown(best.peak_bytes)} with"
        lines = lines or ["  no change"]
    return "\n".join((first.table(), f"does not fit {verdict}", advice, *lines))


def _fitting(
    sizes: Callable[..., MemoryEstimate], changes: list[Change], capacity_bytes: int
) -> tuple[list[Change], MemoryEstimate]:
    """As few changes as will do, those that hurt least first."""
    taken: list[Change] = []
    best = sizes(taken)
    for change in changes:
        if best.fits(capacity_bytes):
            break
        # a smaller batch takes the place of a larger one
        tried = [*(other for other in taken if other.name != change.name), change]
        if change.name == BATCH and not sizes(taken, empty=True).fits(capacity_bytes):
            continue  # weights and what belongs to them are too many by themselves
        found = sizes(tried)
        if found.peak_bytes < best.peak_bytes:
            taken, best = tried, found
    if not best.fits(capacity_bytes):
        return taken, best
    for change in taken[::-1]:
        others = [other for other in taken if other is not change]
        instead = [other for other in changes if other.name == change.name]
        for gentler in ([], *([other] for other in instead[: instead.index(change)])):
            found = sizes(others + gentler)
            if found.fits(capacity_bytes):
                taken, best = others + gentler, found
                break
    return sorted(taken, key=changes.index), best


def _changes(config: Any, device: PlannedDevice) -> list[Change]:
    """What could be changed, in the order in which it hurts."""
    optim, model = config.optim, config.model
    changes: list[Change] = []
    if device.device_type == "cuda" and optim.ema_device == "same":
        changes.append(Change("optim.ema_device", "cpu", "averages in the host's memory, the same numbers"))
    if not model.checkpointing:
        changes.append(Change("model.checkpointing", True, "the same gradients, each step takes longer"))
    _, samples, _ = _shares(optim)
    batches: list[Change] = []
    smaller = samples
    for divisor in range(samples - 1, 0, -1):
        if samples % divisor == 0 and 3 * divisor <= 2 * smaller:
            smaller = divisor
            batches.append(Change(BATCH, divisor, "the same gradient in smaller passes, slower"))
    changes += batches
    if optim.optimizer == "adamw":
        changes += [Change("optim.optimizer", "adamw_8bit", "the optimizer's averages are rounded"), *batches]
    if getattr(model, "lora", 0) is None and model.start is not None:
        changes += [Change("model.lora", LoraConfig(rank=8), "adapters learn, the weights stay"), *batches]
    return changes


def _with(config: Any, name: str, value: Any) -> Any:
    section, _, field = name.partition(".")
    changed = getattr(config, section).model_copy(update={field: value})
    return config.model_copy(update={section: changed})


def _shares(optim: Any) -> tuple[int, int, int]:
    """Processes, samples of a pass and passes of a step."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    mine = optim.batch_size // processes
    samples = min(optim.device_batch_size or mine, mine)
    if mine % samples:
        raise ConfigError(
            f"optim.device_batch_size: {samples} does not divide the {mine} samples of one process; take a "
            f"divisor of {mine}."
        )
    return processes, samples, mine // samples


def unit_rows(*shape: int) -> torch.Tensor:
    """Made-up embeddings for a pass that is only counted."""
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
