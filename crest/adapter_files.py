"""Adapters as files: several beside one base, each at a scale, and how a config names that.

A place of a prior or decoder is written `BASE+ADAPTER:scale+ADAPTER:scale…`: after the base each adapter, a
run folder or a file, at scale 1 where none is given. An adapter alone stands for itself beside the base that
its file names. What is named exists as it is called, even with a plus in its name.

The changes are summed in an order that does not depend on how they were named, then added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from crest.adapters import ADAPTER, read_adapter_card, sample_of
from crest.errors import WeightsError
from crest.records import file_hash, hash_of

ADAPTED: Final = ("prior", "decoder")
"""Kinds of weights that are loaded so; runs of the others export theirs with the adapters in them."""
_SUFFIX: Final = ".safetensors"
_WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True)
class Adapter:
    """A file of what adapters learned, and how much of it is wanted."""

    path: Path
    scale: float
    card: Mapping[str, Any]

    @cached_property
    def hash(self) -> str:
        """16 digits of the file's content."""
        return file_hash(self.path)[:16]

    @property
    def base(self) -> str:
        """16 digits of what it was trained beside."""
        return str(self.card["base"])

    @property
    def said(self) -> str:
        """As a place would name it."""
        return f"{self.path}:{self.scale:g}"


@dataclass(frozen=True)
class Named:
    """What a place names."""

    base: str
    """a place without adapters"""
    adapters: tuple[Adapter, ...] = ()
    alone: bool = False
    """whether the base was not written, and is what the first adapter's file says"""


def parse(place: str | Path) -> Named:
    """Read a place; adapters are looked for, the base is not.

    Raises:
        WeightsError: an adapter that is not there or is none, or a scale that is no number.
    """
    pieces = _pieces(str(place))
    first, rest = _leading(pieces[0]), tuple(_following(piece) for piece in pieces[1:])
    if first is None:
        return Named(pieces[0], rest)
    inner = parse(str(first.card["place"]))
    return replace(inner, adapters=(*inner.adapters, first, *rest), alone=True)


def _pieces(text: str) -> list[str]:
    """A place cut at each plus, but for those that belong to the name of something that exists."""
    parts, pieces = text.split("+"), []
    while parts:
        exists = (n for n in range(len(parts), 1, -1) if _exists(scaled("+".join(parts[:n]))[0]))
        taken = next(exists, 1)
        pieces.append("+".join(parts[:taken]))
        parts = parts[taken:]
    return pieces


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than a name can be
        return False


def scaled(piece: str) -> tuple[str, float | None]:
    """A name without the scale behind it, and that where there is one."""
    name, colon, number = piece.rpartition(":")
    if not colon or _exists(piece):
        return piece, None
    try:
        scale = float(number)
    except ValueError:
        return piece, None
    return (name, scale) if math.isfinite(scale) else (piece, None)


def _leading(piece: str) -> Adapter | None:
    """The adapter that a place begins with; None where it begins with weights, or with nothing."""
    name, scale = scaled(piece)
    path = Path(name)
    if path.is_dir() and not (path / _WEIGHTS).exists():
        path = path / ADAPTER
    if path.suffix != _SUFFIX or not path.is_file():
        return None
    try:
        return read_adapter(path, 1.0 if scale is None else scale)
    except WeightsError:
        if scale is not None or path.name.endswith(ADAPTER):
            raise
        return None  # weights; who loads them tells what is wrong with them


def _following(piece: str) -> Adapter:
    """The adapter that is written behind a base."""
    name, scale = scaled(piece)
    path = Path(name) / ADAPTER if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise WeightsError(
            f"{piece}: there is no adapter; expected a run folder with {ADAPTER} or such a file, written "
            "BASE+ADAPTER or BASE+ADAPTER:scale with a number."
        )
    return read_adapter(path, 1.0 if scale is None else scale)


def read_adapter(path: Path, scale: float = 1.0) -> Adapter:
    """An adapter's file, of a prior or decoder.

    Raises:
        WeightsError: it is none.
    """
    card = read_adapter_card(path)
    if "of" not in card:
        raise WeightsError(
            f"{path}: is an adapter of a run that exports its weights whole, expected one of a prior or "
            "decoder; name the weights beside it."
        )
    return Adapter(path, scale, card)


def refuse_other_kind(named: Named, kind: str) -> None:
    """Raise where an adapter is one of another kind of weights."""
    for adapter in named.adapters:
        if adapter.card["of"] != kind:
            raise WeightsError(
                f"{adapter.path}: is an adapter of a {adapter.card['of']}, expected one of a {kind}; name "
                "the right file."
            )


def refuse_misfits(named: Named, kind: str, own: str, card: Mapping[str, Any]) -> None:
    """Compare what adapters belong to with the base that is named.

    An adapter fits weights of the same file, weights that were merged or brought back to be the same (their
    card says so), or a base with the adapters that are named before it.

    Args:
        own: 16 digits of the base's file.
        card: the base's.
    Raises:
        WeightsError: an adapter of another base, or adapters of two CLIPs.
    """
    others = (card.get("merged", {}).get("hash"), card.get("restored", {}).get("base"))
    same = {own, *(digest for digest in others if digest)}
    clip: tuple[str, Adapter] | None = None
    for count, adapter in enumerate(named.adapters):
        fits = same | {stack_hash(own, named.adapters[:count])}
        if adapter.base not in fits:
            place = adapter.card["place"]
            remedy = f"write the place of {adapter.base} before it, as in PLACE+{adapter.path}"
            if not named.alone:
                remedy = f"write {place}+{adapter.path}, or train an adapter beside {named.base}"
            raise WeightsError(
                f"{adapter.path}: belongs to the {kind} {adapter.base} ({place}), but {named.base} is {own}; "
                f"{remedy}."
            )
        trained_with = adapter.card.get("parents", {}).get("clip")
        if clip is not None and trained_with not in (None, clip[0]):
            raise WeightsError(
                f"{adapter.path}: was trained with CLIP {trained_with}, but {clip[1].path} with {clip[0]}; "
                "stack adapters of one CLIP."
            )
        clip = clip if trained_with is None else (trained_with, adapter)


def refuse_other_numbers(named: Named, own: str, tensors: Mapping[str, Tensor]) -> None:
    """Notice a base whose card belongs to other weights.

    Raises:
        WeightsError: the hash is right and numbers are not.
    """
    for adapter in named.adapters:
        if adapter.base != own:
            continue
        missing = next((name for name in adapter.card["scales"] if name not in tensors), None)
        if missing or sample_of({name: tensors[name] for name in adapter.card["scales"]}) != adapter.card.get(
            "sample"
        ):
            raise WeightsError(
                f"{named.base}: has the card of {own}, but not the numbers that {adapter.path} was trained "
                "beside; copy weights and card again."
            )


def stack_hash(own: str, adapters: Sequence[Adapter]) -> str:
    """16 digits of a base with adapters, whatever their order; the base's where none of them counts."""
    counted = sorted((adapter.hash, adapter.scale) for adapter in adapters if adapter.scale)
    return hash_of(own, counted) if counted else own


def stacked_card(named: Named, own: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a base with adapters: its parents, and what they changed of its spec, are theirs."""
    if not named.adapters:
        return dict(card)
    parents, spec = dict(card.get("parents", {})), dict(card.get("spec", {}))
    for adapter in named.adapters:
        parents |= adapter.card.get("parents", {})
        spec |= adapter.card.get("spec", {})
    merged = {
        "base": own,
        "place": named.base,
        "hash": stack_hash(own, named.adapters),
        "adapters": [_line(adapter) for adapter in named.adapters],
        "parents": card.get("parents", {}),
        "spec": card.get("spec", {}),
        "before": card.get("merged"),
    }
    return {**card, "spec": spec, "parents": parents, "merged": merged}


def _line(adapter: Adapter) -> dict[str, Any]:
    return {"hash": adapter.hash, "scale": adapter.scale, "path": str(adapter.path)}


@torch.no_grad()
def add_changes(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter], sign: float = 1.0) -> None:
    """Add what adapters learned to a model's tensors, in place: (alpha / rank) up down, at their scales.

    Args:
        tensors: name -> weight, as of `state_dict`; float32.
        sign: -1 takes it away again.
    Raises:
        WeightsError: an adapter with a matrix that is not there, or of another shape.
    """
    ordered = sorted((one for one in adapters if one.scale), key=lambda one: (one.hash, one.scale))
    loaded = [(adapter, load_file(adapter.path)) for adapter in ordered]
    for name in sorted({name for adapter in ordered for name in adapter.card["scales"]}):
        total: Tensor | None = None
        for adapter, parts in loaded:
            if name not in adapter.card["scales"]:
                continue
            up, down = parts[f"{name}.up"].float(), parts[f"{name}.down"].float()
            weight = tensors.get(name)
            if weight is None or (len(up), down.shape[1]) != (len(weight), weight[0].numel()):
                found = "nothing" if weight is None else f"{tuple(weight.shape)}"
                raise WeightsError(
                    f"{adapter.path}: changes {name}, {len(up)} x {down.shape[1]}, expected such a matrix, "
                    f"found {found}; name the base that it was trained beside."
                )
            change = (adapter.scale * adapter.card["scales"][name] * up) @ down
            total = change if total is None else total.add_(change)
        assert total is not None
        weight = tensors[name]
        weight.add_(total.view_as(weight).to(weight.device), alpha=sign)
