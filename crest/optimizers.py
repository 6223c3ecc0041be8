"""The optimizers: AdamW, and AdamW whose averages are kept in 8 bits.

The only file that knows bitsandbytes. Its kernels are used and its optimizer is not: that one lays every
weight out anew (channels-last is lost), waits for the device once a weight and nests its state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from crest.config import MovingConfig, OptimConfig
from crest.errors import ConfigError

EXTRA: Final = "8bit"
"""Name of the optional dependency (pyproject.toml)."""
BLOCK: Final = 256
"""Numbers that share one scale."""
SMALL: Final = 4096
"""Weights of fewer numbers keep their averages in 32 bits, as in the paper."""


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only (norms, biases and single vectors are left alone).

    A parameter with an attribute `lr_scale` learns at that share of the rate.

    Raises:
        ConfigError: 8 bits are asked for and bitsandbytes is not there.
    """
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for weight in model.parameters():
        if weight.requires_grad:
            key = (weight.ndim >= 2, getattr(weight, "lr_scale", 1.0))
            decay = optim.weight_decay if weight.ndim >= 2 else 0.0
            group = groups.setdefault(key, {"params": [], "weight_decay": decay, "lr_scale": key[1]})
            group["params"].append(weight)
    ordered = [groups[key] for key in sorted(groups, reverse=True)]
    if optim.optimizer == "adamw_8bit":
        return AdamW8bit(ordered, lr=optim.lr, betas=optim.betas)
    return torch.optim.AdamW(ordered, lr=optim.lr, betas=optim.betas, fused=True)


def optimizer_bytes(weight: Tensor, optim: MovingConfig) -> int:
    """Bytes that the optimizer keeps for one weight that learns."""
    numbers = weight.numel()
    if optim.optimizer == "adamw_8bit" and numbers >= SMALL:
        return 2 * (numbers + 4 * -(-numbers // BLOCK))
    return 2 * numbers * weight.element_size()


def flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state for a file: tensors by number and name, and its groups, JSON-able."""
    saved = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in saved["state"].items()
        for name, value in entry.items()
    }
    return tensors, saved["param_groups"]


def restore(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Take up what `flatten` gave."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        weight = weights[int(index)]
        if tensor.shape == weight.shape:
            # the fused step walks memory: moments in another order than their weight's meet wrong numbers
            tensor = torch.empty_strided(weight.size(), weight.stride(), dtype=tensor.dtype).copy_(tensor)
        entries.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with both averages in 8 bits, block by block.

    State of a weight: `step`; `first` and `second`, its averages in the order in which its numbers lie in
    memory, uint8 with `first_scale` and `second_scale` (one a block), or float32 where the weight is small.

    Paper: Dettmers et al. 2021 (arXiv 2110.02861), sections 2.1 (blocks) and 2.2 (dynamic quantisation).

    Raises:
        ConfigError: bitsandbytes is not there.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
    ) -> None:
        self._kernels = _kernels()
        self._maps: dict[torch.device, tuple[Tensor, Tensor]] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        numbers = in_memory_order(weight)
        # a gradient that lies otherwise than its weight would meet wrong numbers
        fits = weight.grad is not None and weight.grad.stride() == weight.stride()
        gradient = weight.grad if fits else torch.empty_like(weight).copy_(weight.grad)  # type: ignore[arg-type]
        if not state:
            state.update(_fresh(numbers))
        state["step"] += 1
        (beta1, beta2), settings = group["betas"], (group["lr"], group["eps"], group["weight_decay"])
        lr, eps, decay = (float(value) for value in settings)
        step = int(state["step"])
        gradient = in_memory_order(gradient)  # type: ignore[arg-type]
        first, second = state["first"], state["second"]
        if first.dtype != torch.uint8:
            self._kernels.optimizer_update_32bit(
                "adam", gradient, numbers, first, beta1, eps, step, lr, second, beta2, weight_decay=decay
            )
            return
        maps = self._maps_on(weight.device)
        scales = (state["first_scale"], state["second_scale"])
        self._kernels.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            numbers,
            first,
            second,
            beta1,
            beta2,
            0.0,
            0.0,
            eps,
            step,
            lr,
            *maps,
            *scales,
            decay,
        )

    def _maps_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # which number each of the 256 codes stands for; the second average has no sign
        if device not in self._maps:
            first, second = (self._kernels.create_dynamic_map(signed=signed) for signed in (True, False))
            self._maps[device] = (first.to(device), second.to(device))
        return self._maps[device]

    def load_state_dict(self, state_dict: Any) -> None:
        """Take up a saved state; torch's own way would make floats of the codes."""
        whole = {index: dict(entry) for index, entry in state_dict["state"].items()}
        codes = {
            index: {
                name: entry.pop(name)
                for name in ("first", "second")
                if name in entry and entry[name].dtype == torch.uint8
            }
            for index, entry in whole.items()
        }
        super().load_state_dict({**state_dict, "state": whole})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            for name, tensor in codes.get(number, {}).items():
                self.state[weight][name] = tensor.to(weight.device, copy=True)
            if "step" in self.state[weight]:
                self.state[weight]["step"] = int(self.state[weight]["step"])


def in_memory_order(tensor: Tensor) -> Tensor:
    """A tensor's numbers as one row, as they lie in memory (a view; the tensor has no gaps)."""
    flat = tensor.detach()
    return flat.as_strided((flat.numel(),), (1,), flat.storage_offset())


def _fresh(numbers: Tensor) -> dict[str, Any]:
    if numbers.numel() < SMALL:
        plain = {name: torch.zeros_like(numbers, dtype=torch.float32) for name in ("first", "second")}
        return {"step": 0, **plain}
    blocks = -(-numbers.numel() // BLOCK)
    codes = {name: torch.zeros_like(numbers, dtype=torch.uint8) for name in ("first", "second")}
    scales = {
        name: torch.zeros(blocks, dtype=torch.float32, device=numbers.device)
        for name in ("first_scale", "second_scale")
    }
    return {"step": 0, **codes, **scales}


def _kernels() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # on a CPU it tells of 4-bit kernels that nobody asked for
    try:
        import bitsandbytes.functional as kernels
    except ImportError:
        raise ConfigError(
            'optim.optimizer: found "adamw_8bit", which needs bitsandbytes, expected it to be installed; '
            f'pip install "crest-logos[{EXTRA}]", or set it to "adamw".'
        ) from None
    finally:
        logger.setLevel(level)
    return kernels
