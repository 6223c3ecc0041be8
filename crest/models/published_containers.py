"""What files of dalle2-pytorch's trainers hold beside a model, and which of its weights are the ones to take.

A container is what crest/pickles.py read: a state dict, one beside its version and config, or a whole
training checkpoint. Averaged weights are preferred, as its authors judged those; whatever is not taken is
counted under a reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from crest.errors import WeightsError

AS_SAVED: Final = "as they were saved"
AVERAGED: Final = "the average (EMA) of a training checkpoint"
NOT_AVERAGED: Final = "a training checkpoint's last ones, for its average had not begun"
_STATES: Final = re.compile(r"optimizer|scheduler|warmup_scheduler|optim\d+|sched\d+|scaler")
_UNET: Final = re.compile(r"(?:module\.)*unets\.(\d+)\.")


@dataclass(frozen=True)
class Chosen:
    """The weights of a container."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    """what was published with them, where it lies in the file"""
    release: str
    """of dalle2-pytorch, where the file names it"""
    which: str
    """AS_SAVED, AVERAGED, NOT_AVERAGED; of a decoder of several U-Nets the first that is true of one"""
    dropped: dict[str, int]
    """reason -> how many tensors of the container were left out for it"""

    @property
    def unets(self) -> list[int]:
        """Numbers, from 1, of the U-Nets that are in it; empty for a prior and for a bare U-Net."""
        found = {match[1] for name in self.tensors if (match := _UNET.match(name))}
        return sorted(int(number) + 1 for number in found)


def choose(container: Mapping[Any, Any], file: str) -> Chosen:
    """The weights to take of what a file holds.

    Args:
        file: its name, for messages.
    Raises:
        WeightsError: there are none.
    """
    state = container.get("model") if isinstance(container.get("model"), Mapping) else container
    assert isinstance(state, Mapping)
    dropped: Counter[str] = Counter()
    which = AS_SAVED
    if state is not container:
        averages = _named(container.get("ema"))
        whole = _named(container.get("ema_model")) or _below("ema_model.", averages)
        copies = {name: value for name, value in averages.items() if whole or ".ema_model." not in name}
        if whole:
            if not container.get("ema_model"):
                copies = {name: value for name, value in copies.items() if not name.startswith("ema_model.")}
            state, which = _averaged_prior(state, whole, averages, dropped)
        elif averages:
            state, which = _averaged_unets(state, averages, dropped)
        dropped["copies and counters of the average"] += _tensors(copies)
        for key, value in container.items():
            if key in ("model", "ema", "ema_model", "config", "version"):
                continue
            is_state = _STATES.fullmatch(str(key)) is not None
            reason = "optimizer and schedules of training" if is_state else f"{key}, no part of a model"
            dropped[reason] += max(1, _tensors(value))
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        found = next((name for name in state if str(name) not in tensors), "nothing")
        raise WeightsError(
            f"{file}: found {str(found)[:60]}, expected a state dict, or one under model; name a prior or "
            "decoder."
        )
    config, version = container.get("config"), container.get("version")
    return Chosen(
        tensors,
        dict(config) if isinstance(config, Mapping) and state is not container else None,
        version if isinstance(version, str) else "",
        which,
        {reason: count for reason, count in dropped.items() if count},
    )


def _named(value: Any) -> dict[str, Any]:
    return {str(name): part for name, part in value.items()} if isinstance(value, Mapping) else {}


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _averaged_prior(
    state: Mapping[Any, Any], average: Mapping[Any, Any], counters: Mapping[str, Any], dropped: Counter[str]
) -> tuple[Mapping[Any, Any], str]:
    if not _has_begun(counters.get("initted")):
        dropped["an average that had not begun"] += _tensors(average)
        return state, NOT_AVERAGED
    dropped["weights before averaging"] += _tensors(state)
    return average, AVERAGED


def _averaged_unets(
    state: Mapping[Any, Any], averages: Mapping[str, Any], dropped: Counter[str]
) -> tuple[Mapping[Any, Any], str]:
    """Each U-Net's average in the place of its weights, where it has begun: a run trains one of them."""
    taken = dict(state)
    which = NOT_AVERAGED
    for name, value in averages.items():
        number, _, rest = name.partition(".")
        if not rest.startswith("ema_model."):
            continue
        ours = f"unets.{number}.{rest.removeprefix('ema_model.')}"
        if _has_begun(averages.get(f"{number}.initted")) and ours in taken:
            dropped["weights before averaging"] += 1
            taken[ours], which = value, AVERAGED
        else:
            dropped["an average that had not begun"] += 1
    return taken, which


def _has_begun(initted: Any) -> bool:
    return not isinstance(initted, Tensor) or bool(initted.any())  # releases before it always had begun


def _tensors(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, Mapping):
        return sum(_tensors(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensors(part) for part in value)
    return 0
