"""Reads pickles as data: a stack machine of its own that knows what files of tensors need, and runs nothing.

Python's unpickler imports and calls what a file names. This one can't: a name is a word here, compared with
the few words below, and what stands for it is built by this file alone. Every other name, and every step
that tensor files do not take, is refused by name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from crest.errors import WeightsError

MAX_BYTES: Final = 32 << 20
"""Of one pickle without its tensors: a training checkpoint has about 1 kB for each of its weights."""
MAX_STEPS: Final = 2_000_000
"""Of one pickle: a training checkpoint takes about 240 for each of its weights."""

STORAGES: Final[Mapping[str, torch.dtype]] = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_TENSORS: Final = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER: Final = "torch._utils _rebuild_parameter"
_DICTS: Final = ("collections OrderedDict", "__builtin__ dict", "builtins dict")
_DEFAULTDICT: Final = "collections defaultdict"
VERSION: Final = "packaging.version Version"
VERSION_PARTS: Final = "packaging.version _Version"
INERT: Final = frozenset(
    (
        VERSION,
        VERSION_PARTS,
        "packaging._structures InfinityType",
        "packaging._structures NegativeInfinityType",
        # what checkpoints of prior training hold beside their tensors
        "pytorch_warmup.base LinearWarmup",
        "torch.optim.adam Adam",
        "torch.optim.adamw AdamW",
    )
)
"""Classes whose instances are kept as words: what was said of them, and nothing that it could do."""
KNOWN: Final = frozenset((*STORAGES, *_TENSORS, _PARAMETER, *_DICTS, _DEFAULTDICT, *INERT))


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        ...

    def readline(self) -> bytes:
        """The next line."""
        ...


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle speaks of; nothing but its name."""

    text: str
    """module and name, "collections OrderedDict"."""


@dataclass(eq=False)
class Inert:
    """An instance of a class that is not built."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """Numbers of one type that lie together in a file."""

    key: str
    dtype: torch.dtype
    count: int
    """numbers in it"""
    view: tuple[str, int, int] | None = None
    """in files from before torch 1.6: own key, first number and count of the part that is meant"""

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return self.count * self.dtype.itemsize


@dataclass(eq=False)
class PlannedTensor:
    """A tensor as the pickle describes it, found to lie within its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class RefusedError(WeightsError):
    """The pickle holds what no file of tensors needs."""


@dataclass
class _Machine:
    where: str
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    """one stack for every open MARK"""
    memo: dict[int, Any] = field(default_factory=dict)

    def refuse(self, what: str) -> RefusedError:
        return RefusedError(
            f"{self.where}: {what}, which no file of tensors needs and which could run code or exhaust "
            "memory; do not load it, take the same weights as safetensors or from their makers."
        )

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, text: str) -> Name:
        if text not in KNOWN:
            raise self.refuse(f"names {'.'.join(text.split(' '))[:200]}")
        return Name(text)

    def call(self, called: Any, args: Any, build: str) -> Any:
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise self.refuse(f"calls a {type(called).__name__} on a {type(args).__name__}")
        text = called.text
        if text in _TENSORS:
            return self.tensor(*args) if 4 <= len(args) <= 7 else self.odd(text)
        if text == _PARAMETER:
            return args[0] if args and isinstance(args[0], PlannedTensor) else self.odd(text)
        if text in INERT:
            return Inert(text, args)
        if text == _DEFAULTDICT:
            return {} if all(isinstance(arg, Name) and arg.text in _DICTS for arg in args) else self.odd(text)
        if text in _DICTS:
            return self.pairs(text, args)
        raise self.refuse(f"calls {text.replace(' ', '.')} ({build})")

    def odd(self, text: str) -> Any:
        raise self.refuse(f"calls {text.replace(' ', '.')} with arguments that torch never writes")

    def pairs(self, text: str, args: tuple[Any, ...]) -> dict[Any, Any]:
        if not args:
            return {}
        items = args[0] if len(args) == 1 and isinstance(args[0], list) else self.odd(text)
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in items):
            self.odd(text)
        return {self.key(pair[0]): pair[1] for pair in items}

    def key(self, key: Any) -> Any:
        if isinstance(key, (str, int, float, PlannedTensor)) or key is None:
            return key
        raise self.refuse(f"names an entry by a {type(key).__name__}")

    def tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> PlannedTensor:
        if not (
            isinstance(storage, Storage)
            and _is_count(offset)
            and _are_counts(shape)
            and _are_counts(stride)
            and len(shape) == len(stride)
            and not hooks
            and not metadata
        ):
            self.odd(_TENSORS[0])
        held = storage.count if storage.view is None else storage.view[2]
        size = math.prod(shape)
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        # a step of 0 repeats a number without end: what is told must not be larger than what is held
        if size and (size > held or last >= held):
            raise self.refuse(f"declares a tensor of {size:.3g} numbers in a storage of {held:.3g}")
        return PlannedTensor(storage, offset, shape, stride)

    def storage(self, told: Any) -> Storage:
        if not isinstance(told, tuple) or len(told) not in (5, 6) or told[0] != "storage":
            raise self.refuse("asks for something that is kept outside and is no storage of numbers")
        _, kind, key, _, count, *more = told
        view = more[0] if more else None
        good = isinstance(kind, Name) and kind.text in STORAGES and isinstance(key, str) and _is_count(count)
        if good and view is not None:
            good = isinstance(view, tuple) and len(view) == 3 and isinstance(view[0], str)
            good = good and _are_counts(view[1:]) and view[1] + view[2] <= count
        if not good:
            raise self.refuse("describes a storage as torch never does")
        return Storage(key, STORAGES[kind.text], count, view)

    def build(self, state: Any) -> None:
        built = self.stack[-1]
        if isinstance(built, Inert):
            built.state = state
        elif not (isinstance(built, dict) and isinstance(state, dict)):
            # what a dict was given as attributes (torch's _metadata) is dropped
            raise self.refuse(f"changes the inside of a {type(built).__name__}")

    def items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse(f"puts named entries into a {type(target).__name__}")
        for at in range(0, len(items), 2):
            target[self.key(items[at])] = items[at + 1]

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise self.refuse(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def step(self, op: str, arg: Any) -> None:
        stack = self.stack
        if op in _PUSHED:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif op == "MARK":
            self.below.append(stack)
            self.stack = []
        elif op == "GLOBAL":
            stack.append(self.name(arg))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self.name(f"{module} {name}" if isinstance(module, str) else ""))
        elif op in ("REDUCE", "NEWOBJ"):
            args = stack.pop()
            stack.append(self.call(stack.pop(), args, op))
        elif op == "BUILD":
            self.build(stack.pop())
        elif op == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif op == "SETITEM":
            value = stack.pop()
            self.items([stack.pop(), value])
        elif op == "SETITEMS":
            self.items(self.marked())
        elif op == "APPEND":
            self.append([stack.pop()])
        elif op == "APPENDS":
            self.append(self.marked())
        elif op == "TUPLE":
            items = self.marked()
            self.stack.append(tuple(items))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.tuple_of(int(op[-1]))
        elif op not in ("PROTO", "FRAME", "STOP"):
            raise self.refuse(f"takes the step {op}")


_PUSHED: Final = frozenset(
    (
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
    )
)
_CONSTANTS: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 16 and all(_is_count(value) for value in values)


def read_data(stream: Stream, where: str) -> Any:
    """The one value of a pickle, of dicts, lists, tuples, text, numbers, planned tensors and inert instances.

    Args:
        stream: stands behind the pickle's STOP afterwards.
        where: the file, for messages.
    Raises:
        RefusedError: something else is in it.
        WeightsError: it ends early or is none.
    """
    machine = _Machine(where)
    steps = 0
    try:
        for opcode, arg, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            steps += 1
            if steps > MAX_STEPS:
                raise machine.refuse(f"takes more than {MAX_STEPS} steps")
            machine.step(opcode.name, arg)
        value = machine.stack.pop()
        if machine.stack or machine.below:
            raise ValueError("something is left on its stack")
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(
            f"{where}: is not a whole file of tensors ({reason}); copy or download it again."
        ) from None
    return value
