"""Published weights of dalle2-pytorch up to release 1.1: a file and its config, as a model of ours.

They are loaded into the arithmetic that they were trained with, and what can be noticed of a mismatch is: see
crest/models/fingerprint.py. Downloading is crest/hub.py's, unpickling crest/pickles.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from crest.checkpoint import export_weights
from crest.errors import WeightsError
from crest.models.decoder import Decoder
from crest.models.decoder_spec import DecoderSpec
from crest.models.fingerprint import fingerprint, probe, refuse_untrained
from crest.models.prior import Prior
from crest.models.prior_spec import PriorSpec
from crest.models.published_configs import Translation, read_translation, translate
from crest.models.published_names import Renamed, renamed, unpacked


@dataclass(frozen=True)
class Published:
    """A published model in our modules."""

    model: nn.Module
    """a Prior or a Decoder"""
    translation: Translation
    weights: Renamed

    def card(self, source: str = "") -> dict[str, Any]:
        """What stands beside the converted weights; nothing else is needed to load them again."""
        return {
            "kind": self.translation.kind,
            "family": "crest",
            "spec": self.translation.spec.model_dump(mode="json"),
            "parents": {},
            "published": {
                "source": source,
                "clip": self.translation.clip,
                "dropped": self.weights.dropped,
                "added": list(self.weights.added),
                "config": [[line.field, line.fate] for line in self.translation.lines],
            },
            "fingerprint": fingerprint(self.model),
            "probe": probe(self.model),
        }


def fill(
    container: Mapping[str, Any],
    config: Mapping[str, Any] | Path | None,
    *,
    file: str,
    unet_number: int = 1,
    trained: bool = True,
) -> Published:
    """Published tensors in our modules.

    Args:
        container: what the file holds: a state dict, or one beside its config.
        config: the JSON that belongs to it; None takes the one in the container.
        file: its name, for messages.
        unet_number: which U-Net of a decoder, from 1.
        trained: refuse weights that answer as random ones do; False is for weights that are random.
    Raises:
        ConfigError: a field of the config that Crest cannot translate.
        WeightsError: tensors that do not fit the config, another noise schedule, or an untrained network.
    """
    tensors, inside = unpacked(container, file)
    if isinstance(config, Path):
        translation = read_translation(config, unet_number=unet_number)
    else:
        values = config if config is not None else inside
        if values is None:
            raise WeightsError(f"{file}: holds no config; name the JSON that was published with it.")
        translation = translate(values, file, unet_number=unet_number)
    spec = translation.spec
    model = Prior(spec) if isinstance(spec, PriorSpec) else Decoder(_decoder_spec(spec))
    weights = renamed(tensors, model, translation.kind, unet_number, file)
    _compare_schedules(model, weights.betas, file)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.tensors.items()}, strict=True)
    model.eval()
    if trained:
        refuse_untrained(model, file)
    return Published(model, translation, weights)


def convert(
    published: Published, folder: Path, source: str = "", facts: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Write `weights.safetensors` and its card, which `model.start` of a training config can name.

    Numbers that were published in half precision stay so: half the size, and nothing is lost.

    Args:
        facts: what else the card says of where they are from.
    """
    theirs = [t for name, t in published.weights.tensors.items() if name not in published.weights.added]
    half = all(tensor.dtype == torch.float16 for tensor in theirs if tensor.is_floating_point())
    card = published.card(source)
    card["published"] |= facts
    return export_weights(folder, published.model, card, half=half)


def read_published(
    file: Path, config: Path | None = None, *, unet_number: int = 1, trained: bool = True
) -> Published:
    """A published model from its file and the JSON beside it; see `fill`."""
    return fill(_read(file), config, file=str(file), unet_number=unet_number, trained=trained)


def load_published_prior(file: Path, config: Path | None = None, *, trained: bool = True) -> Prior:
    """`read_published`, for a prior."""
    model = read_published(file, config, trained=trained).model
    if not isinstance(model, Prior):
        raise WeightsError(f"{file}: its config is a decoder's, expected a prior's; name the right one.")
    return model


def load_published_decoder(
    file: Path, config: Path | None = None, *, unet_number: int = 1, trained: bool = True
) -> Decoder:
    """`read_published`, for a decoder."""
    model = read_published(file, config, unet_number=unet_number, trained=trained).model
    if not isinstance(model, Decoder):
        raise WeightsError(f"{file}: its config is a prior's, expected a decoder's; name the right one.")
    return model


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    from crest.pickles import read_pickle

    return dict(read_pickle(file))


def _decoder_spec(spec: object) -> DecoderSpec:
    assert isinstance(spec, DecoderSpec)
    return spec


def _compare_schedules(model: Prior | Decoder, betas: Tensor | None, file: str) -> None:
    """Raise where the file's own noise schedule is not the one that its config names."""
    if betas is None:
        return
    ours = model.noise_schedule.alpha_bar
    theirs = torch.cumprod(1 - betas.double(), dim=0)
    if len(ours) != len(theirs) or not torch.allclose(ours.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-6):
        raise WeightsError(
            f"{file}: carries another noise schedule ({len(theirs)} timesteps) than its config's "
            f'"{model.spec.noise_schedule}" with {model.spec.timesteps}; name the config that belongs to it.'
        )
