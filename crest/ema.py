"""Averaged weights: what is validated, previewed and exported."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

CHUNK: Final = 1 << 24
"""Numbers that travel at once; a power of two, because pinned memory is handed out in such pieces."""


@dataclass(frozen=True)
class _Piece:
    """Neighbours in host memory that are brought to the device, moved and taken back together."""

    memory: Tensor
    """(numbers,) pinned where the device is CUDA"""
    layout: list[tuple[int, torch.Size, tuple[int, ...]]]
    """offset, shape and strides of each average in it"""
    weights: list[Tensor]
    """the weights that they follow"""


class Ema:
    """An exponential moving average of a model's weights.

    The factor starts low, min(decay, (1 + step) / (10 + step)), so that a short run does not export its
    random start. Buffers are copied, never averaged (averaging would blur a noise schedule). Weights that do
    not learn share the model's memory: an adapted model has no second base.

    On the host, averages cost the device nothing but a few pieces of CHUNK numbers: piece by piece they are
    brought to the device, moved there by the same kernel (hence the same numbers) and taken back, on a stream
    of their own while the next forward and backward pass run. Only the next optimizer step waits for them
    (`guard`).

    Args:
        model: the unwrapped model, on its device.
        decay: the factor reached in the long run; 0 follows the model exactly.
        device: "same" keeps averages beside the model, "cpu" in the host's memory.
    """

    def __init__(self, model: nn.Module, decay: float, device: Literal["same", "cpu"] = "same") -> None:
        self.decay = decay
        # other parameters in the same memory: whatever is done to one model's, the other's stays itself
        shared: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in model.parameters()
            if not weight.requires_grad or device == "cpu"
        }
        self._model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self._followed: nn.Module | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._stream: torch.cuda.Stream | None = None
        self._pieces: list[_Piece] | None = None
        if device == "cpu":
            self._pieces = _on_host(model, self._model)
            if any(weight.is_cuda for piece in self._pieces for weight in piece.weights):
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def model(self) -> nn.Module:
        """The average; where it is kept on the host, what learns lies there (see `on`)."""
        if self._stream is not None:
            self._stream.synchronize()
        return self._model

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[nn.Module]:
        """The average as a model on a device, to be looked through and not to be changed.

        Where it lies there already it is lent, else what learned is copied there for this long.
        """
        kept = self.model
        if all(weight.device == device for weight in kept.parameters()):
            yield kept
            return
        lent: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach().to(device), requires_grad=False)
            for weight in kept.parameters()
        }
        lent |= {id(buffer): buffer.to(device) for buffer in kept.buffers()}
        yield copy.deepcopy(kept, lent).eval()

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Have an optimizer's steps wait until the weights that they change have been averaged."""
        if self._stream is not None:
            optimizer.register_step_pre_hook(lambda *_: self._hold())

    def _hold(self) -> None:
        assert self._stream is not None
        torch.cuda.current_stream().wait_stream(self._stream)  # the device waits, not this thread

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self._follow(model)
        if self._pieces is None:
            averages, currents = zip(*((one.data, other.data) for one, other in self._pairs), strict=True)
            torch._foreach_lerp_(averages, currents, 1 - decay)
        else:
            self._update_on_host(self._pieces, 1 - decay)
        for average, current in self._buffers:
            average.copy_(current)

    def _update_on_host(self, pieces: list[_Piece], share: float) -> None:
        aside: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            aside = torch.cuda.stream(self._stream)
        with aside:
            for piece in pieces:
                there = piece.memory.to(piece.weights[0].device, non_blocking=True)
                averages = [there.as_strided(size, stride, offset) for offset, size, stride in piece.layout]
                torch._foreach_lerp_(averages, [weight.data for weight in piece.weights], share)
                if there is not piece.memory:
                    piece.memory.copy_(there, non_blocking=True)

    def _follow(self, model: nn.Module) -> None:
        """Pair what learns with its average, once a model: looking takes longer than averaging a head."""
        if model is self._followed:
            return
        averages = dict(self._model.named_parameters())
        learning = [(name, own) for name, own in model.named_parameters() if own.requires_grad]
        for name, own in learning:
            if averages[name].data_ptr() == own.data_ptr() and own.numel():
                raise AssertionError(f"{name} did not learn when its average was made; make that afterwards")
        self._pairs = [(averages[name], own) for name, own in learning]
        self._buffers = list(zip(self._model.buffers(), model.buffers(), strict=True))
        self._followed = model


def _on_host(model: nn.Module, average: nn.Module) -> list[_Piece]:
    """Lay the averages of what learns out in host memory, filled with the weights, in pieces of CHUNK."""
    pieces: list[_Piece] = []
    averages = dict(average.named_parameters())
    waiting: list[tuple[nn.Parameter, Tensor]] = []

    def close() -> None:
        if waiting:
            pieces.append(_piece(waiting))
            waiting.clear()

    for name, weight in model.named_parameters():
        if weight.requires_grad:
            first = waiting[0][1] if waiting else weight
            numbers = sum(other.numel() for _, other in waiting) + weight.numel()
            if numbers > CHUNK or (first.dtype, first.device) != (weight.dtype, weight.device):
                close()
            waiting.append((averages[name], weight))
    close()
    return pieces


@torch.no_grad()
def _piece(pairs: list[tuple[nn.Parameter, Tensor]]) -> _Piece:
    first = pairs[0][1]
    numbers = sum(weight.numel() for _, weight in pairs)
    memory = torch.empty(numbers, dtype=first.dtype, pin_memory=first.is_cuda)
    layout: list[tuple[int, torch.Size, tuple[int, ...]]] = []
    offset = 0
    for average, weight in pairs:
        stride = torch.empty_like(weight, device="meta").stride()  # dense, in the weight's own order
        average.data = memory.as_strided(weight.size(), stride, offset)
        average.data.copy_(weight)
        layout.append((offset, weight.size(), stride))
        offset += weight.numel()
    return _Piece(memory, layout, [weight for _, weight in pairs])
