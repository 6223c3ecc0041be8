"""A model that is split over processes: each holds a part of the weights, gradients, averages and moments.

For models whose training does not fit one card (`accelerate launch --config_file
configs/accelerate/fsdp.yaml`). The only file that knows torch's FSDP2. Whole weights and whole gradients are
there in a forward and backward pass only. States and exports are whole, for any number of processes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crest.checkpoint import State
from crest.config import OptimConfig
from crest.ema import Ema
from crest.errors import ConfigError
from crest.optimizers import build_optimizer
from crest.world import World


class SplitEma(Ema):
    """Averages of this process's part of the weights; a whole model is put together when it is asked for."""

    def __init__(
        self, decay: float, parts: dict[str, Tensor], model: nn.Module, whole: Callable[..., nn.Module]
    ) -> None:
        self.decay, self.parts, self._split, self._whole = decay, parts, model, whole

    @property
    def model(self) -> nn.Module:
        """The architecture alone: its weights are nowhere whole."""
        return self._whole(None, torch.device("meta"))

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[nn.Module]:
        """The whole average, put together by all processes at once, for this long."""
        yield self._whole(self.parts, device).eval().requires_grad_(False)

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing waits: averages lie beside the weights."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the averages of this part after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [
            (_local(self.parts[name]), _local(weight))
            for name, weight in model.named_parameters()
            if weight.requires_grad
        ]
        averages, currents = zip(*pairs, strict=True)
        torch._foreach_lerp_(averages, currents, 1 - decay)


class Sharding:
    """Splits a state over all processes and puts it together again.

    Raises:
        ConfigError: an optimizer, average or arithmetic that is not there for split weights.
    """

    def __init__(self, world: World, optim: OptimConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        _refuse(world, optim)
        self._world, self._optim = world, optim
        self._mesh = init_device_mesh(world.device.type, (world.size,))
        self._skeleton: nn.Module = nn.Module()
        self._split: nn.Module = nn.Module()

    def split(self, state: State) -> State:
        """This process's part of a whole state, which is not to be used any more.

        Raises:
            ConfigError: a weight of one number, which can't be split.
        """
        from torch.distributed.fsdp import fully_shard

        model = state.model
        names = {id(weight): name for name, weight in model.named_parameters()}
        self._skeleton = copy.deepcopy(
            model, {id(weight): _parameter(weight, "meta") for weight in model.parameters()}
        )
        averages = {name: weight.detach() for name, weight in state.ema.model.named_parameters()}
        moments = {names[id(weight)]: dict(entry) for weight, entry in state.optimizer.state.items()}
        for name, weight in model.named_parameters():
            if not weight.ndim:
                raise ConfigError(
                    f"{name}: a weight of one number can't be split over processes (FSDP); start this run by "
                    "torchrun or accelerate launch without that config file."
                )
            weight.data = weight.data.contiguous()  # FSDP2 splits rows
        fully_shard(model, mesh=self._mesh)
        self._split = model.to(self._world.device)
        parts = {
            name: self._part(weight, averages[name]) if weight.requires_grad else weight.detach()
            for name, weight in model.named_parameters()
        }
        optimizer = build_optimizer(model, self._optim)
        _copy_groups(state.optimizer, optimizer)
        for name, weight in model.named_parameters():
            if name in moments:
                optimizer.state[weight] = {
                    key: self._part(weight, value) for key, value in moments[name].items()
                }
        ema = SplitEma(self._optim.ema_decay, parts, model, self._whole)
        return State(state.step, model, ema, optimizer, state.best, state.best_step, state.extra)

    def _part(self, weight: Tensor, whole: Any) -> Any:
        """What belongs to this process's part of a weight."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(weight, DTensor)
        if whole.shape != weight.shape:
            return whole.to(self._world.device)
        there = whole.to(self._world.device).contiguous()
        return distribute_tensor(there, self._mesh, weight.placements, src_data_rank=None)

    def whole_state(self, state: State) -> State | None:
        """The whole state in the first process's host memory; None in the others, which all take part."""
        assert isinstance(state.ema, SplitEma)
        host = torch.device("cpu")
        model = self._whole(dict(state.model.named_parameters()), host)
        average = self._whole(state.ema.parts, host)
        optimizer = build_optimizer(model, self._optim) if self._world.is_main else None
        wholes = dict(model.named_parameters())
        for name, weight in state.model.named_parameters():
            for key, value in state.optimizer.state.get(weight, {}).items():
                together = self._together(value, host)
                if optimizer is not None:
                    optimizer.state[wholes[name]][key] = together
        if optimizer is None:
            return None
        _copy_groups(state.optimizer, optimizer)
        ema = Ema(average, self._optim.ema_decay)
        return State(state.step, model, ema, optimizer, state.best, state.best_step, state.extra)

    def _together(self, part: Tensor, device: torch.device) -> Tensor:
        """A whole tensor on a device; on the host only the first process keeps it."""
        whole = part.detach()
        whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
        if device.type == "cpu" and self._world.device.type != "cpu" and not self._world.is_main:
            return torch.empty_like(whole, device="meta")
        return whole.to(device)

    def _whole(self, parts: Mapping[str, Tensor] | None, device: torch.device) -> nn.Module:
        """A plain model of these parts, or the bare architecture."""
        empty = dict(self._skeleton.named_parameters())
        memo: dict[int, Any] = {}
        for name, weight in empty.items():
            filled = weight if parts is None else self._together(parts[name], device)
            memo[id(weight)] = nn.Parameter(filled, requires_grad=weight.requires_grad)
        if parts is not None:
            now = dict(self._split.named_buffers())
            memo |= {
                id(buffer): now[name].detach().clone().to(device)
                for name, buffer in self._skeleton.named_buffers()
            }
        return copy.deepcopy(self._skeleton, memo)


def _parameter(weight: Tensor, device: str) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(weight, device=device), requires_grad=weight.requires_grad)


def _local(part: Tensor) -> Tensor:
    """The numbers that this process holds."""
    held: Tensor = part.detach().to_local()  # type: ignore[attr-defined]
    return held


def _copy_groups(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    for source, group in zip(one.param_groups, other.param_groups, strict=True):
        group.update({key: value for key, value in source.items() if key != "params"})


def _refuse(world: World, optim: OptimConfig) -> None:
    found = {
        "optim.optimizer": (optim.optimizer, "adamw"),
        "optim.ema_device": (optim.ema_device, "same"),
        "run.precision": (world.precision, world.precision if world.precision != "fp16" else "bf16 or fp32"),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise ConfigError(
                f"{name}: found {value}, expected {expected} where weights are split over processes (FSDP): "
                "they take a share of the memory there anyway; change it."
            )
