"""What memory a pass would take, counted without taking any: tensors that have a shape and no numbers.

Networks are built on torch's meta device and run as fake tensors; every storage that an operation makes is
booked until it dies. What a kernel takes for itself meanwhile is not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FULL_PRECISION: Final = frozenset(
    (
        *(F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.normalize, F.mse_loss),
        *(F.cosine_similarity, torch.exp, Tensor.exp, Tensor.pow, torch.pow, Tensor.norm, Tensor.sum),
    )
)
"""Of what the networks use, that which CUDA's autocast computes in float32 and a CPU's does not."""
ROUND: Final = {"cpu": 64, "cuda": 512}
"""Bytes that a tensor is rounded up to."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books storages while it is entered: `live` bytes now, and two peaks since `reset`.

    `peak` is of all that is booked; `peak_of_passes` leaves out what is kept (gradients).

    Args:
        round_to: bytes that each storage is rounded up to.
    """

    def __init__(self, round_to: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.round_to = round_to
        self.live = self.kept = self.peak = self.peak_of_passes = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            # which rows a mask keeps is not known: all, and of its opposite none, which takes the most
            rows = 0 if getattr(args[0], "is_opposite", False) else args[0].numel()
            return args[0].new_empty((rows, args[0].ndim), dtype=torch.int64)
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bitwise_not.default:
            out.is_opposite = True
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._book(leaf.untyped_storage())
        return out

    def reset(self) -> None:
        """Forget the peaks: another phase begins."""
        self.peak, self.peak_of_passes = self.live, self.live - self.kept

    def ignore(self, tensor: Tensor) -> None:
        """Leave out a tensor that is counted elsewhere (a weight)."""
        storage = tensor.untyped_storage()
        self._book(storage)
        self.live -= self._known[storage._cdata]
        self._known[storage._cdata] = 0

    def keep(self, tensor: Tensor) -> None:
        """Tell a tensor that outlives the pass that made it (a gradient) from what a pass holds."""
        storage = tensor.untyped_storage()
        self._book(storage)
        size = self._known[storage._cdata]
        self.kept += size
        weakref.finalize(storage, self._forget, size)

    def _book(self, storage: Any) -> None:
        if storage._cdata in self._known:
            return
        size = -(-storage.nbytes() // self.round_to) * self.round_to
        self._known[storage._cdata] = size
        self.live += size
        weakref.finalize(storage, self._died, storage._cdata)
        self.peak = max(self.peak, self.live)
        self.peak_of_passes = max(self.peak_of_passes, self.live - self.kept)

    def _died(self, key: int) -> None:
        self.live -= self._known.pop(key)

    def _forget(self, size: int) -> None:
        self.kept -= size


class _CudaRules(TorchFunctionMode):
    """Has tensors that pretend to be on a CPU obey CUDA's autocast and take its attention kernel.

    Without a GPU, fake CUDA tensors have no backward pass; with one they would, but then what is tested here
    would not be what runs there.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # what is checkpointed runs forward in there, and under these rules
            ones = torch.ones_like(args[0])
            with self:  # the public function would come back here
                _engine_run_backward(
                    (args[0],), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
            return None
        if func is F.scaled_dot_product_attention:
            return _attention_of_cuda(*args, **kwargs)
        if func in _FULL_PRECISION and torch.is_autocast_enabled("cpu"):
            args = tuple(_full(value) for value in args)
            kwargs = {name: _full(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _full(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value


def _attention_of_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The kernel that keeps no weights but a sum a row; its mask is one for every row of every head."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (part.to(dtype) for part in (query, key, value))
    if attn_mask is not None:
        width = key.shape[-2]
        padded = F.pad(attn_mask.to(query.dtype), (0, -width % 16))[..., :width]
        attn_mask = padded.expand(*query.shape[:-1], width)
    kept = torch.is_grad_enabled()
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, kept, dropout_p, is_causal, scale=scale
    )[0]
    return out


@contextlib.contextmanager
def pretence(device_type: str) -> Iterator[Ledger]:
    """Inside, tensors have no numbers, and the ledger that is given books what they would take."""
    ledger = Ledger(ROUND[device_type])
    rules: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if device_type == "cuda":
        rules = _CudaRules()
    with FakeTensorMode(allow_non_fake_inputs=True), ledger, rules:
        yield ledger


def without_numbers(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose weights take no memory, to be used within `pretence`."""
    with torch.device("meta"):
        return build()


def pretend(model: nn.Module, ledger: Ledger) -> None:
    """Let a network of `without_numbers` take part, inside `pretence`."""
    given: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if id(tensor) not in given:
            made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
            ledger.ignore(made)
            is_weight = isinstance(tensor, nn.Parameter)
            given[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
        return given[id(tensor)]

    seen: set[int] = set()

    def walk(holder: Any) -> None:
        """Modules, and plain objects of ours that hold tensors (such as a noise schedule)."""
        if id(holder) in seen:
            return
        seen.add(id(holder))
        items = holder if isinstance(holder, dict) else vars(holder)
        for name, value in list(items.items()):
            if isinstance(value, Tensor):
                items[name] = stand_in(value)
            elif isinstance(value, dict | nn.Module) or (
                type(value).__module__.startswith("crest.") and hasattr(value, "__dict__")
            ):
                walk(value)

    walk(model)
    ledger.reset()
    for weight in model.parameters():
        if weight.requires_grad:
            register: Any = weight.register_post_accumulate_grad_hook
            register(lambda own: _keep_gradient(ledger, own))


def _keep_gradient(ledger: Ledger, weight: Tensor) -> None:
    gradient = weight.grad
    if gradient is not None and not hasattr(gradient, "is_kept"):
        gradient.is_kept = True  # type: ignore[attr-defined]
        ledger.keep(gradient)
