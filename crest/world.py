"""Rank, world size, device and precision: who computes, on what, in which arithmetic.

The only file that knows accelerate. It prepares model and optimizer only: accelerate would broadcast a
streamed loader from rank 0 and step a scheduler once per process, so batches and learning rate stay ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crest.config import Precision
from crest.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from accelerate import Accelerator

_MIX = 0x9E3779B97F4A7C15  # golden-ratio increment: neighbouring (seed, step) pairs get distant streams
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h
_TRIM_BYTES = (1 << 31) - 1
DRAW_CHUNK = 8
"""Samples that share one random stream: small enough to split over devices, large enough to draw fast."""


def mix_seed(*parts: int) -> int:
    """Fold integers into one 63-bit seed, each part changing it thoroughly (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + _MIX + (part & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Draw:
    """Random numbers that depend on (seed, step, position in the global batch) and on nothing else.

    A run that was stopped, or that is split over other devices, draws the same numbers for the same sample.

    Args:
        seed: of the run.
        step: optimizer step.
        first: position of this device's first sample in the global batch; a multiple of DRAW_CHUNK or the
        batch
            is drawn with a partly used chunk.
        count: samples on this device.
    """

    def __init__(
        self, seed: int, step: int, first: int, count: int, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.first, self.count = seed, step, first, count
        self.device = torch.device(device)

    def _chunks(self, purpose: int, shape: tuple[int, ...], kind: str) -> Tensor:
        begin, end = self.first // DRAW_CHUNK, -(-(self.first + self.count) // DRAW_CHUNK)
        pieces = []
        for chunk in range(begin, end):
            generator = torch.Generator(device=self.device)
            generator.manual_seed(mix_seed(self.seed, self.step, purpose, chunk))
            draw = torch.randn if kind == "normal" else torch.rand
            pieces.append(draw((DRAW_CHUNK, *shape), generator=generator, device=self.device))
        offset = self.first - begin * DRAW_CHUNK
        return torch.cat(pieces)[offset : offset + self.count]

    def normal(self, purpose: int, *shape: int) -> Tensor:
        """Standard normal numbers (count, *shape) float32."""
        return self._chunks(purpose, shape, "normal")

    def uniform(self, purpose: int, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (count, *shape) float32."""
        return self._chunks(purpose, shape, "uniform")

    def keep(self, purpose: int, drop_prob: float) -> Tensor:
        """Boolean mask (count,): False where a condition is to be dropped."""
        return self.uniform(purpose) >= drop_prob


@dataclass
class World:
    """This process among all that train together."""

    rank: int
    size: int
    device: torch.device
    precision: str
    accelerator: Accelerator

    is_split: bool = False
    """whether each process holds a part of the model (FSDP) rather than a copy; see crest/sharding.py"""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Place the model and make its gradients meet over all processes; what is split has all that."""
        if self.is_split:
            return model, optimizer
        model, optimizer = self.accelerator.prepare(model, optimizer)
        return model, optimizer

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of the forward pass."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def accumulate(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold gradients back from the other processes until the last micro-batch.

        Those of split weights meet at once: whole gradients kept until then would take the memory that is
        saved.
        """
        if last or self.size == 1 or self.is_split:
            return contextlib.nullcontext()
        held: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return held

    def backward(self, loss: Tensor) -> None:
        """Backpropagate, scaled where fp16 needs it."""
        self.accelerator.backward(loss)

    def clip(self, weights: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients down to a length (and off fp16's scale); returns that before, over all weights."""
        if not self.is_split:
            length: Tensor = self.accelerator.clip_grad_norm_(weights, limit)
            return length.detach()
        parts: list[Any] = [weight.grad.to_local() for weight in weights if weight.grad is not None]  # type: ignore[attr-defined]
        total = torch.stack(torch._foreach_norm(parts)).square().sum()
        torch.distributed.all_reduce(total)
        length = total.sqrt()
        torch._foreach_mul_(parts, (limit / (length + 1e-6)).clamp(max=1.0))
        return length

    def loss_scale(self) -> float | None:
        """What fp16's loss is multiplied by; None in other arithmetic. Waits for the device."""
        return None if self.accelerator.scaler is None else float(self.accelerator.scaler.get_scale())

    def scale_state(self) -> dict[str, Any]:
        """What fp16's scaling must know to go on; empty in other arithmetic."""
        return {} if self.accelerator.scaler is None else dict(self.accelerator.scaler.state_dict())

    def restore_scale(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `scale_state`."""
        if saved and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(saved))

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Average plain numbers over all processes."""
        if self.size == 1:
            return dict(metrics)
        values = torch.tensor([metrics[name] for name in metrics], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values)
        return {name: float(value) / self.size for name, value in zip(metrics, values, strict=True)}

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model without its distributed wrapper."""
        plain: nn.Module = self.accelerator.unwrap_model(model)
        return plain

    def share(self, batch_size: int, device_batch_size: int | None) -> tuple[int, int]:
        """This process's samples per step and how many go through the model at once.

        Raises:
            ConfigError: the numbers do not divide.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"optim.batch_size: {batch_size} over {self.size} processes does not divide; take a multiple "
                f"of {self.size}."
            )
        mine = batch_size // self.size
        micro = min(device_batch_size or mine, mine)
        if mine % micro:
            raise ConfigError(
                f"optim.device_batch_size: {micro} does not divide the {mine} samples of one process; "
                f"take a divisor of {mine}."
            )
        return mine, micro


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware here, rather than being emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags()


def cpu_flags() -> frozenset[str]:
    """Instruction sets that the processor names (Linux); empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def machine() -> str:
    """One line that says what this computes on, for figures that must name their machine."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cuda = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{cuda}, torch {torch.__version__}"


def pick_device(name: str) -> torch.device:
    """The device that a config asks for.

    Raises:
        DeviceError: a CUDA device is asked for where there is none.
        ConfigError: not the name of a device.
    """
    if name == "auto":
        return torch.device("cuda", _local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f'run.device: found "{name}", expected "auto", "cpu", "cuda" or "cuda:N".'
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f'run.device: "{name}" was asked for, but this machine has no CUDA device that torch can '
                "use; "
                'take "auto" or "cpu".'
            )
        index = _local_rank() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f'run.device: "{name}" was asked for, but there are {torch.cuda.device_count()} CUDA '
                "devices; count from cuda:0."
            )
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise ConfigError(f'run.device: found "{name}", expected "auto", "cpu", "cuda" or "cuda:N".')
    return device


def pick_precision(name: Precision, device: torch.device) -> str:
    """The arithmetic that a config asks for, or the fastest safe one.

    Raises:
        ConfigError: fp16 on a CPU, which is slower than fp32 there by an order of magnitude.
    """
    if name == "auto":
        if fast_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            'run.precision: "fp16" on a CPU is slower than fp32; take "auto", "bf16" or "fp32".'
        )
    return name


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next tensor (glibc only; nothing happens elsewhere).

    By default it gives every large tensor back to the system, which then hands out zeroed pages one by one:
    on a virtual machine that costs more than filling a batch of pictures does. What is kept still counts
    as used; what was measured of peaks stands in docs/decisions.md.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def open_world(device_name: str = "auto", precision: Precision = "auto") -> World:
    """Join the other processes, if `torchrun` or `accelerate launch` started some.

    Raises:
        ConfigError: accelerate was told to split the model in a way that is not there.
    """
    from accelerate import Accelerator

    wants_split = _is_told("ACCELERATE_USE_FSDP")
    if _is_told("ACCELERATE_USE_DEEPSPEED") or (wants_split and os.environ.get("FSDP_VERSION", "2") != "2"):
        what = "FSDP version 1" if wants_split else "DeepSpeed"
        raise ConfigError(
            f"accelerate launch: found {what}, expected FSDP version 2; give it --config_file "
            "configs/accelerate/fsdp.yaml."
        )

    device = pick_device(device_name)
    arithmetic = pick_precision(precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "medium")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="fp16" if arithmetic == "fp16" else "no",
        step_scheduler_with_optimizer=False,
    )
    return World(
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        arithmetic,
        accelerator,
        wants_split and torch.distributed.is_initialized(),
    )


def _is_told(name: str) -> bool:
    """Whether `accelerate launch` set this switch."""
    return os.environ.get(name, "false").lower() in ("true", "1")
