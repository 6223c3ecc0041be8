"""How much memory a training run will take, before any is taken, for `--dry-run`.

The pass itself is run with tensors that have no numbers (`crest.ledger`), through the stage's own loss, so
that what a backward pass holds for a moment counts too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from crest.config import MovingConfig
from crest.ema import CHUNK
from crest.ledger import pretence, pretend
from crest.optimizers import SMALL, optimizer_bytes

GAPS: Final = 1.17
"""Resident memory of a CPU over that of its tensors: gaps in the heap and what kernels take for themselves.
One factor fitted to ten runs that spread from 1.08 to 1.28, no law; docs/decisions.md has the rest."""
CUDA_WORKSPACE_BYTES: Final = 1 << 23
"""What cuBLAS asks torch for, once. Assumed, not measured: no GPU was at hand."""
CONTEXT_BYTES: Final = 600_000_000
"""What CUDA and its libraries take of a device before the first tensor. Assumed, not measured."""
SHARE: Final = 0.95
"""Of the rest, what tensors can fill: there are gaps between them. Assumed, not measured."""
MANY: Final = 10_000_000
"""Numbers from which on millions are told."""
T = TypeVar("T")


@dataclass(frozen=True)
class Passes:
    """What a network holds while it learns, in bytes, beside what it always does."""

    parameters: int
    buffer_bytes: int
    weight_bytes: int
    learning: tuple[Tensor, ...]
    """shapes and types of what learns, without numbers"""
    activation_bytes: int
    """the most that a pass holds but for gradients: its batch, what it keeps and what backward needs for a
    moment"""
    peak_bytes: int
    """the most with gradients"""
    judged_bytes: int
    """the most in a validation"""

    @property
    def learning_bytes(self) -> int:
        """Of the weights that learn, and of their gradients."""
        return sum(weight.nbytes for weight in self.learning)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a run takes, in bytes; parts do not all peak at once, `peak_bytes` is when most is held."""

    parameters: int
    trained: int
    weights_bytes: int
    """with buffers"""
    gradients_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    """averages of what learns, and buffers"""
    ema_device: str
    activations_bytes: int
    """see `Passes.activation_bytes`"""
    peak_bytes: int
    """on the device"""
    peak_at: str
    """when that is"""
    device_type: str
    precision: str
    samples: int
    """at once on a device"""

    def fits(self, capacity_bytes: int) -> bool:
        """Whether so much memory suffices."""
        return self.peak_bytes <= usable_bytes(capacity_bytes, self.device_type)

    def table(self) -> str:
        """Lines for a terminal."""
        where = ", in the host's memory" if self.ema_device == "cpu" and self.device_type != "cpu" else ""
        at_once = f"{self.samples} sample{'s' * (self.samples != 1)} at once, {self.precision}"
        rows = [
            ("parameters", f"{_count(self.parameters)}, of which {_count(self.trained)} learn"),
            ("weights", shown(self.weights_bytes)),
            ("gradients", shown(self.gradients_bytes)),
            ("optimizer", shown(self.optimizer_bytes)),
            ("averages", shown(self.ema_bytes) + where),
            ("activations", f"{shown(self.activations_bytes)} ({at_once})"),
            ("peak", f"{shown(self.peak_bytes)}, {self.peak_at}"),
        ]
        return "\n".join(f"{name:<12} {value}" for name, value in rows)


def shown(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _count(numbers: int) -> str:
    return f"{numbers / 1e6:,.1f} M" if numbers >= MANY else f"{numbers:,}"


def usable_bytes(capacity_bytes: int, device_type: str) -> int:
    """What tensors can fill of a device's memory."""
    taken = CONTEXT_BYTES if device_type == "cuda" else 0
    return int(SHARE * (capacity_bytes - taken))


def try_passes(
    model: nn.Module,
    batch: Callable[[], T],
    loss: Callable[[nn.Module, T], Tensor],
    *,
    precision: str,
    device_type: str,
    accumulation: int = 1,
    judged: Callable[[], T] | None = None,
) -> Passes:
    """Run a network forward and backward without numbers and count what it holds.

    Args:
        model: of `crest.ledger.without_numbers`; it is used up.
        batch: makes the inputs of one pass (on a CPU, whatever the device).
        loss: of a pass; the stage's.
        precision: "fp32", "bf16" or "fp16".
        device_type: "cpu" or "cuda", whether there is one here or not.
        accumulation: passes per optimizer step.
        judged: makes the inputs of a validation.
    """
    weights, buffers = list(model.parameters()), list(model.buffers())
    learning = [weight.detach() for weight in weights if weight.requires_grad]
    with pretence(device_type) as ledger:
        pretend(model, ledger)
        model.train()
        for _ in range(min(accumulation, 2)):
            inputs = batch()  # held until the pass is over, as the loop does
            with _autocast(precision):
                value = loss(model, inputs)
            value.backward()  # type: ignore[no-untyped-call]
            del inputs, value
        peak, activations, judging = ledger.peak, ledger.peak_of_passes, 0
        model.zero_grad(set_to_none=True)
        if judged is not None:
            ledger.reset()
            model.eval()
            with torch.no_grad(), _autocast(precision):
                loss(model, judged())
            judging = ledger.peak
    return Passes(
        parameters=sum(weight.numel() for weight in weights),
        buffer_bytes=sum(buffer.nbytes for buffer in buffers),
        weight_bytes=sum(weight.nbytes for weight in weights),
        learning=tuple(learning),
        activation_bytes=activations,
        peak_bytes=peak,
        judged_bytes=judging,
    )


def _autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16 if precision == "bf16" else torch.float16)


def estimate(
    passes: Passes, optim: MovingConfig, *, precision: str, device_type: str, samples: int, processes: int = 1
) -> MemoryEstimate:
    """Add what is held all the time to what passes hold.

    Args:
        passes: of `try_passes`, of the same precision and device.
        samples: of one pass.
        processes: that train together; their gradients meet in copies.
    """
    learning = passes.learning_bytes
    kept = sum(optimizer_bytes(weight, optim) for weight in passes.learning)
    average = learning + passes.buffer_bytes
    away = optim.ema_device == "cpu" and device_type == "cuda"
    constant = passes.weight_bytes + passes.buffer_bytes + kept + (passes.buffer_bytes if away else average)
    constant += learning if processes > 1 else 0
    phases = {
        "in a training pass": passes.peak_bytes,
        "in an optimizer step": learning + _step_bytes(passes.learning, optim, device_type),
        "in a validation": passes.judged_bytes + (learning if away and passes.judged_bytes else 0),
    }
    at = max(phases, key=lambda name: phases[name])
    peak = constant + phases[at]
    return MemoryEstimate(
        parameters=passes.parameters,
        trained=sum(weight.numel() for weight in passes.learning),
        weights_bytes=passes.weight_bytes + passes.buffer_bytes,
        gradients_bytes=learning,
        optimizer_bytes=kept,
        ema_bytes=average,
        ema_device=optim.ema_device,
        activations_bytes=passes.activation_bytes,
        peak_bytes=peak + CUDA_WORKSPACE_BYTES if device_type == "cuda" else int(GAPS * peak),
        peak_at=at,
        device_type=device_type,
        precision=precision,
        samples=samples,
    )


def _step_bytes(learning: Sequence[Tensor], optim: MovingConfig, device_type: str) -> int:
    """What an optimizer step and the averaging after it hold for a moment."""
    largest = max((weight.nbytes for weight in learning), default=0)
    if device_type == "cuda":
        trained = sum(weight.nbytes for weight in learning)
        return max(largest, min(4 * CHUNK, trained)) if optim.ema_device == "cpu" else 0
    if optim.optimizer == "adamw_8bit" and largest >= 4 * SMALL:
        return 5 * largest  # two averages in 32 bits, the gradient scaled, a root and what divides by it
    return 0


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = None
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        found, taken = _lines(Path(limit)), _lines(Path(used))
        if found and taken and found[0].isdigit():
            room = int(found[0]) - int(taken[0])
            free = room if free is None else min(free, room)
    return 1 << 62 if free is None else max(free, 0)  # a system that does not tell


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
