"""Resumable state and exported weights, all of it safetensors and JSON: nothing is ever pickled or unpickled.

A state is a folder `state/step-00000200/` that appears whole (written beside, then renamed). Exported weights
are `weights.safetensors` with `weights.json`: architecture, preprocessing, hashes of the parents, recipe.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from crest.adapter_files import (
    ADAPTED,
    Named,
    add_changes,
    parse,
    read_adapter,
    refuse_misfits,
    refuse_other_kind,
    refuse_other_numbers,
    stack_hash,
    stacked_card,
)
from crest.adapters import (
    ADAPTER,
    base_of,
    is_adapted,
    load_adapter,
    own_state,
    plain_state,
    save_adapter,
)
from crest.config import Config
from crest.ema import Ema
from crest.errors import RunError, WeightsError
from crest.hub_files import converted, is_published
from crest.optimizers import flatten, restore
from crest.records import file_hash, read_json, write_bytes, write_json
from crest.tensor_files import write_tensors

WEIGHTS = "weights.safetensors"
CARD = "weights.json"
BEST = "best.safetensors"
S = TypeVar("S", bound=Config)
M = TypeVar("M")


@dataclass
class State:
    """All that a run needs to go on as if it had never stopped."""

    step: int
    """optimizer steps done"""
    model: nn.Module
    """unwrapped"""
    ema: Ema
    optimizer: torch.optim.Optimizer
    best: float | None = None
    """best validation figure so far"""
    best_step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """what else the loop must know to go on (crest/going_on.py); JSON-able"""


def save_state(run_dir: Path, state: State) -> None:
    """Save a state whole; older ones are removed once it is there.

    Of adapters beside a file's weights, those weights are named and not saved.
    """
    folder = run_dir / "state" / f"step-{state.step:08d}"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        base = base_of(state.model)
        saved_of = own_state if base is not None else nn.Module.state_dict
        write_tensors(part / "model.safetensors", saved_of(state.model))
        write_tensors(part / "ema.safetensors", saved_of(state.ema.model))
        optimizer, groups = flatten(state.optimizer)
        write_tensors(part / "optimizer.safetensors", optimizer)
        write_json(
            part / "state.json",
            {"step": state.step, "best": state.best, "best_step": state.best_step, "groups": groups}
            | ({"extra": state.extra} if state.extra else {})
            | ({} if base is None else {"base": {"hash": base.hash, "place": base.place}}),
        )
        if folder.exists():  # never none at all: a kill between the two renames leaves the old one
            old = folder.with_suffix(".old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def load_state(run_dir: Path, state: State) -> bool:
    """Bring model, EMA and optimizer back to the newest saved state; False when there is none.

    Raises:
        RunError: the saved state does not fit the model, or is one of adapters beside other weights.
    """
    folder = newest_state(run_dir)
    if folder is None:
        return False
    saved = read_json(folder / "state.json")
    is_partial = "base" in saved
    if is_partial:
        _refuse_other_base(folder, saved["base"], state.model)
    try:
        _fill(state.model, load_file(folder / "model.safetensors"), is_partial)
        _fill(state.ema.model, load_file(folder / "ema.safetensors"), is_partial)
        restore(state.optimizer, load_file(folder / "optimizer.safetensors"), saved["groups"])
    except (RuntimeError, KeyError, IndexError, SafetensorError) as error:
        first_line = str(error).splitlines()[0]
        raise RunError(
            f"{folder}: does not fit this run's model ({first_line}); name another run.dir."
        ) from None
    state.step, state.best, state.best_step = saved["step"], saved["best"], saved["best_step"]
    state.extra = saved.get("extra", {})
    return True


def _refuse_other_base(folder: Path, saved: Mapping[str, str], model: nn.Module) -> None:
    base = base_of(model)
    if base is None or base.hash != saved["hash"]:
        found = "has none" if base is None else f"is {base.hash} ({base.place})"
        raise RunError(
            f"{folder}: holds adapters beside the weights {saved['hash']} ({saved['place']}), but model.start"
            f" {found}; put those back, or name another run.dir."
        )


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], is_partial: bool) -> None:
    """Fill a model with a saved state; a partial one is told by its names, all of which must be there."""
    if is_partial and tensors.keys() != own_state(model).keys():
        raise RuntimeError(f"{min(tensors.keys() ^ own_state(model).keys())} is in one of the two only")
    model.load_state_dict(tensors, strict=not is_partial)


def newest_state(run_dir: Path) -> Path | None:
    """The newest whole state of a run."""
    whole = [path for path in (run_dir / "state").glob("step-*") if path.suffix != ".part"]
    return max(whole, default=None, key=lambda path: (path.stem, path.suffix == ""))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def export_weights(
    folder: Path,
    model: nn.Module,
    card: Mapping[str, Any],
    *,
    name: str = WEIGHTS,
    half: bool = False,
    adapters_alone: bool = False,
) -> Path:
    """Write a model's weights and the card that says what they are; what adapters learned is merged in.

    Adapters are also written by themselves, as (best.)adapter.safetensors. A model may have `companions()`:
    relative name -> content of what else must travel with its weights; and a `file_prefix`, which its own
    names begin with and those in the file do not.

    Args:
        card: JSON-able; at least `kind` and `spec`, enough to build the model again.
        half: store floating weights as fp16 (half the size, what ships inside the package).
        adapters_alone: write nothing but them, and the card beside them.
    Returns:
        the weights file.
    """
    path, base = folder / name, base_of(model)
    if is_adapted(model):
        save_adapter(_adapter_path(path), model, card)
    if adapters_alone:
        return _export_alone(_adapter_path(path), card)
    if base is not None:
        named = Named(base.place, (read_adapter(_adapter_path(path)),))
        card = {**card, "merged": stacked_card(named, base.hash, base.card)["merged"]}
    prefix: str = getattr(model, "file_prefix", "")
    tensors = {key.removeprefix(prefix): tensor for key, tensor in plain_state(model).items()}
    if half:
        tensors = {
            key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()
        }
    write_tensors(path, tensors, {"kind": str(card["kind"])})
    for companion, content in getattr(model, "companions", dict)().items():
        write_bytes(folder / companion, content)
    write_json(folder / name.replace(".safetensors", ".json"), {**card, "sha256": file_hash(path)})
    return path


def _export_alone(path: Path, card: Mapping[str, Any]) -> Path:
    told = {**card, "kind": "adapter", "of": card["kind"], "sha256": file_hash(path)}
    write_json(path.with_suffix(".json"), told)
    return path


def exported(run_dir: Path) -> Path | None:
    """What a run that is done exported: weights, or adapters alone."""
    for name in (WEIGHTS, ADAPTER):
        path = run_dir / name
        if path.exists() and path.with_suffix(".json").exists():
            return path
    return None


def _adapter_path(path: Path) -> Path:
    return path.with_name(ADAPTER if path.name == WEIGHTS else f"{path.stem}.{ADAPTER}")


def has_exported(path: Path) -> bool:
    """Whether weights were exported to a file, or adapters to the one that stands for it."""
    return path.exists() or _adapter_path(path).exists()


def remove_states(run_dir: Path) -> None:
    """Remove what a run that is done would have gone on from."""
    shutil.rmtree(run_dir / "state", ignore_errors=True)


def restore_exported(model: nn.Module, path: Path) -> None:
    """Bring a model, adapted or not, back to the weights that it once exported."""
    if is_adapted(model):
        load_adapter(_adapter_path(path), model)
    else:
        load_weights(model, path)


def locate_weights(place: str | Path, kind: str) -> Path:
    """The weights file behind a run folder, a file, or a name of the shipped stock ("stock/clip").

    A prior or decoder may also be a published file (see crest/hub_files.py) that crest.convert was run on,
    and adapters may stand behind it (see crest/adapter_files.py): they are compared with it, and left out.

    Raises:
        WeightsError: nothing there, or an adapter of other weights.
    """
    return _locate(parse(place), kind) if kind in ADAPTED else _locate_plain(place, kind)


def _locate(named: Named, kind: str) -> Path:
    refuse_other_kind(named, kind)
    try:
        path = _locate_plain(named.base, kind)
    except WeightsError as error:
        if not named.alone:
            raise
        adapter, why = named.adapters[0], str(error).rstrip(".")
        raise WeightsError(
            f"{adapter.path}: its base {adapter.base} can't be had ({why}); write PLACE+{adapter.path}."
        ) from None
    if named.adapters:
        refuse_misfits(named, kind, short_hash(path), read_card(path, kind))
    return path


def _locate_plain(place: str | Path, kind: str) -> Path:
    text = str(place)
    if kind in ADAPTED and is_published(text):
        return converted(text, kind)
    folder = Path(__file__).parent / text if text.startswith("stock/") else Path(place)
    path = folder / WEIGHTS if folder.is_dir() or text.startswith("stock/") else folder
    if path.exists():
        return path
    if folder.is_dir():
        raise WeightsError(f"{folder}: holds no {WEIGHTS}; finish the run that makes this {kind} first.")
    raise WeightsError(
        f"{text}: there are no {kind} weights; expected a run folder, a .safetensors file or stock/{kind}."
    )


def load_model(
    place: str | Path,
    kind: str,
    build: Callable[[Path, dict[str, Any]], M],
    verify: Callable[[nn.Module, Mapping[str, Any], str], None],
) -> tuple[M, str, dict[str, Any]]:
    """A prior or decoder from a place: model, the 16 digits that name its weights, card.

    Adapters that the place names are added to the weights; card and digits are then of the sum.

    Args:
        build: weights file and card -> a network that they fit.
        verify: looks at the network with its file's weights, card and file.
    Raises:
        WeightsError: nothing there, weights of another architecture, or an adapter of other weights.
    """
    named = parse(place)
    path = _locate(named, kind)
    plain, own = read_card(path, kind), short_hash(path)
    card = stacked_card(named, own, plain)
    model = build(path, card)
    assert isinstance(model, nn.Module)
    load_weights(model, path)
    verify(model, plain, str(path))
    if named.adapters:
        tensors = model.state_dict()
        refuse_other_numbers(named, own, tensors)
        add_changes(tensors, named.adapters)
    return model, stack_hash(own, named.adapters), card


def read_card(path: Path, kind: str) -> dict[str, Any]:
    """The JSON beside a weights file, checked for kind.

    Raises:
        WeightsError: no card, or weights of another kind.
    """
    card_path = path.with_suffix(".json")
    if not card_path.exists():
        raise WeightsError(
            f"{path}: has no {card_path.name} beside it, so its architecture is unknown; copy both files."
        )
    card: dict[str, Any] = read_json(card_path)
    if card.get("kind") != kind:
        raise WeightsError(f"{path}: holds a {card.get('kind')}, expected a {kind}; name the right weights.")
    return card


def card_spec(path: Path, card: Mapping[str, Any], spec_class: type[S]) -> S:
    """What to build before a weights file fits in, out of its card.

    Raises:
        WeightsError: the card holds no such spec.
    """
    try:
        return spec_class.model_validate(card["spec"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path.with_suffix('.json')}: its spec is no {spec_class.__name__} ({reason}); copy it again."
        ) from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a built model with a file's weights; every name and shape must agree.

    Raises:
        WeightsError: damaged file, or weights of another architecture (the first difference is named).
    """
    prefix: str = getattr(model, "file_prefix", "")
    try:
        with safe_open(path, framework="pt") as stream:
            found = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: is not a whole safetensors file ({error}); copy or export it again."
        ) from None
    if any(name.startswith(prefix) for name in found):
        prefix = ""  # a file from before there were prefixes, or a model without
    wanted = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in wanted.items():
        if name not in found:
            raise WeightsError(
                f"{path}: lacks {name}, which this architecture has; the weights are of another one."
            )
        if found[name] != tuple(tensor.shape):
            raise WeightsError(
                f"{path}: {name} is {found[name]}, expected {tuple(tensor.shape)}; the weights are of "
                "another architecture."
            )
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise WeightsError(
            f"{path}: holds {extra[0]}, which this architecture has not; the weights are of another one."
        )
    if all(tensor.is_meta for tensor in wanted.values()):
        return  # without numbers, for a plan: they fit, and that is all it asks
    tensors = load_file(path)
    model.load_state_dict(
        {prefix + name: tensors[name].to(tensor.dtype) for name, tensor in wanted.items()}, strict=True
    )


def short_hash(path: Path) -> str:
    """The 16 digits by which other files name these weights."""
    card = path.with_suffix(".json")
    digest: str = json.loads(card.read_text(encoding="utf-8"))["sha256"] if card.exists() else file_hash(path)
    return digest[:16]
