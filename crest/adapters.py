"""Low-rank adapters: a few trained numbers beside weight matrices that stay as they are.

Works on any module's named weights through torch's parametrizations, knows no network and trains nothing. An
adapter's file names the weights that it belongs to, and fits no others: by the hash of their file where they
came from one (`Base`), else by their content. What is done with such files is crest/adapter_files.py's.

Paper: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from crest.config import Export, LoraConfig
from crest.errors import ConfigError, WeightsError
from crest.records import hash_of, write_bytes

ADAPTER: Final = "adapter.safetensors"
_RECORD: Final = "adapted_record"
_SAMPLED: Final = 16
"""Numbers of each adapted matrix that an adapter's file remembers its base by, besides the hash."""


@dataclass(frozen=True)
class Base:
    """Weights that came from a file; the adapters that learn beside them are saved without them."""

    kind: str
    """prior or decoder"""
    hash: str
    """16 digits, as `crest.checkpoint.load_model` gave them"""
    place: str
    """as a config names them"""
    card: Mapping[str, Any]
    """theirs"""


@dataclass(frozen=True)
class _Record:
    """How a model was adapted; hangs on it, and is copied with it."""

    base: Base
    rank: int
    alpha: float
    targets: tuple[str, ...]
    sample: str


class LowRank(nn.Module):
    """W + (alpha / rank) up down, for a weight of any shape as the matrix of its first axis by the others.

    `up` (rows, rank) starts at zero, so that an untrained adapter changes nothing; `down` (rank, columns) at
    random. Both are float32, whatever the weight is: a frozen weight may be in half precision.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        columns = weight[0].numel()
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank, dtype=torch.float32))
        self.down = nn.Parameter(weight.new_empty(rank, columns, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with what was learned added; any shape, the same comes back.

        The sum is made in float32: in the arithmetic of autocast, a change smaller than the weight's last
        digit would be lost altogether, where rounding the sum loses it only on average.
        """
        device = weight.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return self._sum(weight).to(weight.dtype)
        with torch.autocast(device, enabled=False):
            return self._sum(weight)

    def _sum(self, weight: Tensor) -> Tensor:
        if weight.ndim == 2:
            return torch.addmm(weight.float(), self.up, self.down, alpha=self.scale)
        return weight.float() + self.scale * (self.up @ self.down).view_as(weight)


def adapt(model: nn.Module, lora: LoraConfig, defaults: Sequence[str], base: Base) -> list[str]:
    """`inject` as a config asks for it, beside weights that came from a file.

    Args:
        defaults: the family's patterns; a network without some of those matrices has adapters at the others.
    """
    targets = lora.targets
    if targets is None:
        names = [name for name, weight in model.named_parameters() if weight.ndim >= 2]
        targets = [pattern for pattern in defaults if any(fnmatchcase(name, pattern) for name in names)]
        if not targets:
            raise ConfigError(
                f"model.lora: {base.place} has none of the matrices that adapters usually sit beside "
                f"({', '.join(defaults)}); name some in model.lora.targets."
            )
    weights = dict(model.named_parameters())
    alpha = lora.alpha or lora.rank
    names = inject(model, lora.rank, alpha, targets)
    sample = sample_of({name: weights[name] for name in names})
    setattr(model, _RECORD, _Record(base, lora.rank, alpha, tuple(targets), sample))
    return names


def base_of(model: nn.Module) -> Base | None:
    """The file that a model's adapters sit beside; None without one, or where more than they learns."""
    record: _Record | None = getattr(model, _RECORD, None)
    if record is None:
        return None
    ours = {id(weight) for _, adapter in adapters(model) for weight in adapter.parameters()}
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    return record.base if all(id(weight) in ours for weight in learning) else None


def exports_adapters(setting: Export, model: nn.Module) -> bool:
    """Whether a run exports adapters without the weights beside them.

    Raises:
        ConfigError: it is to, and can't.
    """
    if setting == "adapter" and base_of(model) is None:
        raise ConfigError(
            'run.export: found "adapter", expected "auto" or "merged" for a run that trains more than the '
            "adapters of a prior or decoder; change it, or set model.lora."
        )
    return setting != "merged" and base_of(model) is not None


def sample_of(tensors: Mapping[str, Tensor]) -> str:
    """16 digits of names, shapes and a few numbers of each: told in milliseconds, whatever their size."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.is_meta:
            continue  # sizes are looked at, without numbers
        flat = tensor.detach().reshape(-1)
        few = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float().cpu()
        digest.update(few.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def inject(model: nn.Module, rank: int, alpha: float, patterns: Sequence[str]) -> list[str]:
    """Freeze a model and give the weight matrices of these names adapters, which alone learn.

    Every parameter of two axes or more can have one: linear layers, a transformer's Conv1D, an attention's
    in_proj_weight, convolutions (flattened).

    Args:
        rank: of the change that can be learned.
        alpha: the change is scaled by alpha / rank.
        patterns: shell patterns of dotted names, such as "decoder.*.attn.*.weight".
    Returns:
        the names that were adapted.
    Raises:
        ConfigError: a pattern that matches no matrix, a matrix that two modules share, or one too small for
            the rank.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim >= 2}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise ConfigError(
                f"{pattern}: matches no weight matrix of this model; see its named_parameters()."
            )
    chosen = [name for name in weights if any(fnmatchcase(name, pattern) for pattern in patterns)]
    everywhere = [id(weight) for _, weight in model.named_parameters(remove_duplicate=False)]
    for name in chosen:
        rows, columns = len(weights[name]), weights[name][0].numel()
        if everywhere.count(id(weights[name])) > 1:
            raise ConfigError(
                f"{name}: two modules share this weight, so one's adapter would be lost; leave it."
            )
        if rank > min(rows, columns):
            raise ConfigError(
                f"{name}: is {rows} x {columns}, which has no adapter of rank {rank}; lower the rank."
            )
    model.requires_grad_(False)
    for name in chosen:
        _adapt(model, name, LowRank(weights[name].detach(), rank, alpha))
    return chosen


def _adapt(model: nn.Module, name: str, adapter: LowRank) -> None:
    place, _, attribute = name.rpartition(".")
    # unsafe: torch's check would run the adapter once more for the shape that view_as keeps
    parametrize.register_parametrization(model.get_submodule(place), attribute, adapter, unsafe=True)


def adapters(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Every adapter of a model under the dotted name of its weight."""
    for place, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            owner, _, attribute = place.rpartition(".parametrizations.")
            if not owner and place.startswith("parametrizations."):
                attribute = place.removeprefix("parametrizations.")
            for adapter in module:
                if isinstance(adapter, LowRank):
                    yield f"{owner}.{attribute}".lstrip("."), adapter


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(True for _ in adapters(model))


@torch.no_grad()
def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights as a model without adapters would hold them: what they learned is added in."""
    return _plain_state(model, merged=True)


def _plain_state(model: nn.Module, merged: bool) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, adapter in adapters(model):
        place, _, attribute = name.rpartition(".")
        inner = f"{place}.parametrizations.{attribute}".lstrip(".")
        original = state.pop(f"{inner}.original")
        for part in adapter.state_dict():
            del state[f"{inner}.0.{part}"]
        state[name] = adapter(original) if merged else original
    return state


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add what the adapters learned to the weights, in place, and remove them."""
    for name, _ in list(adapters(model)):
        place, _, attribute = name.rpartition(".")
        parametrize.remove_parametrizations(model.get_submodule(place), attribute, leave_parametrized=True)


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without the frozen weights that it shares with its base: adapters and buffers."""
    ours = {id(weight) for _, adapter in adapters(model) for weight in adapter.parameters()}
    shared = {name for name, weight in model.named_parameters() if id(weight) not in ours}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


@torch.no_grad()
def base_hash(model: nn.Module) -> str:
    """16 digits that name a model's weights without what its adapters learned.

    Of weights that came from a file, those of the file (see `adapt`); of others, of their content, which
    takes about a second a gigabyte.
    """
    record: _Record | None = getattr(model, _RECORD, None)
    if record is not None:
        return record.base.hash
    digest = hashlib.sha256()
    for name, tensor in sorted(_plain_state(model, merged=False).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_adapter(path: Path, model: nn.Module, card: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the adapters of a model, and nothing of the weights beside them but their hash and place.

    Args:
        card: what the model is, as its weights' own card would say.
    """
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name, adapter in adapters(model):
        scales[name] = adapter.scale
        for part, tensor in adapter.state_dict().items():
            tensors[f"{name}.{part}"] = tensor.detach().cpu().contiguous().clone()
    told = {"kind": "adapter", "base": base_hash(model), "scales": scales, **_told(model, card)}
    # one entry, because the library writes several in no fixed order
    write_bytes(path, save(tensors, {"card": json.dumps(told, sort_keys=True)}))


def _told(model: nn.Module, card: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of an adapter beside a file's weights says of itself."""
    record: _Record | None = getattr(model, _RECORD, None)
    if record is None:
        return {}
    spec = card.get("spec", {})
    theirs = list(record.base.card.get("spec", {}).items())
    return {
        "of": record.base.kind,
        "family": card.get("family", record.base.card.get("family")),
        "spec": {name: value for name, value in spec.items() if (name, value) not in theirs},
        "unet_number": spec.get("unet_number"),
        "place": record.base.place,
        "sample": record.sample,
        "rank": record.rank,
        "alpha": record.alpha,
        "targets": list(record.targets),
        "parents": card.get("parents", {}),
        "step": card.get("step"),
        "recipe": hash_of(card["recipe"]) if "recipe" in card else None,
    }


def load_adapter(path: Path, model: nn.Module) -> None:
    """Give a model the adapters of a file; those that it has take the file's numbers.

    Raises:
        WeightsError: no adapter, or one of other weights than this model's.
    """
    card, tensors = read_adapter_card(path), load_file(path)
    found = base_hash(model)
    if card["base"] != found:
        raise WeightsError(
            f"{path}: belongs to the weights {card['base']}, but these are {found}; load those that it was "
            "trained on."
        )
    present = dict(adapters(model))
    for name, scale in card["scales"].items():
        up, down = tensors[f"{name}.up"], tensors[f"{name}.down"]
        if name not in present:
            place, _, attribute = name.rpartition(".")
            weight = getattr(model.get_submodule(place), attribute).detach()
            _adapt(model, name, LowRank(weight, up.shape[1], scale * up.shape[1]))
            present = dict(adapters(model))
        present[name].load_state_dict({"up": up, "down": down})


def read_adapter_card(path: Path) -> dict[str, Any]:
    """What an adapter's file says of itself.

    Raises:
        WeightsError: damaged, or no adapter.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            card: dict[str, Any] = json.loads((stream.metadata() or {}).get("card", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: is not a whole safetensors file ({error}); copy it again.") from None
    if card.get("kind") != "adapter":
        raise WeightsError(f"{path}: holds a {card.get('kind')}, expected an adapter; name the right file.")
    return card
