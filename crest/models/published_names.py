"""Names of published weights (dalle2-pytorch up to release 1.1) turned into names of our modules.

Every tensor of the file becomes one of ours, or is counted under the reason why it is none, or is refused.
Every tensor of ours is filled, but for those that came later and that those weights never had.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from crest.errors import WeightsError

_BUFFERS: Final = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "p2_loss_weight",
)  # fmt: skip
_SCHEDULE: Final = re.compile(
    r"(?:(?:noise_scheduler|noise_schedulers\.(?P<unet>\d+))\.)?(?P<name>" + "|".join(_BUFFERS) + ")"
)
_ADDED: Final = ("net.null_text_embeds", "net.null_image_embed")
"""What later releases put in a dropped condition's place; published priors never saw one dropped."""


@dataclass(frozen=True)
class Renamed:
    """Published weights under our names."""

    tensors: dict[str, Tensor]
    dropped: dict[str, int]
    """reason -> how many tensors were left out for it"""
    added: tuple[str, ...]
    """tensors of ours that the file lacks, which are zero"""
    betas: Tensor | None
    """(T,) the noise schedule that the file carries"""


def unpacked(container: Mapping[str, Any], file: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The state dict in a file, and the config beside it where there is one.

    Args:
        container: a state dict, or one under "model" beside "config" and "version", or a training checkpoint.
    Raises:
        WeightsError: neither.
    """
    state: Any = container
    if isinstance(container.get("model"), Mapping):
        # a checkpoint of a prior holds the average as well, which is what was judged
        state = container.get("ema_model", container["model"])
    config = container.get("config") if state is not container else None
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        found = next((name for name in state if name not in tensors), "nothing")
        raise WeightsError(
            f"{file}: found {found}, expected a state dict, or one under model; name a prior or decoder."
        )
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, dict(config) if isinstance(config, Mapping) else None


def renamed(
    tensors: Mapping[str, Tensor], model: nn.Module, kind: str, unet_number: int, file: str
) -> Renamed:
    """Published tensors under the names of `model`, complete.

    Args:
        model: a Prior or a Decoder of arithmetic 1.1; only names and shapes are read.
        kind: "prior" or "decoder".
        unet_number: which U-Net of the file the decoder is, from 1.
    Raises:
        WeightsError: a tensor that has no place, another shape, or one that is missing.
    """
    wanted = model.state_dict()
    found: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    betas: Tensor | None = None
    bare = not any(name.startswith(("net.", "unets.")) for name in tensors)
    for name, tensor in tensors.items():
        schedule = _SCHEDULE.fullmatch(name)
        if schedule is not None:
            dropped["noise schedule, computed here"] += 1
            if schedule["name"] == "betas" and int(schedule["unet"] or unet_number - 1) == unet_number - 1:
                betas = tensor
            continue
        ours, reason = _placed(name, tensor, kind, unet_number, bare)
        if ours is None:
            dropped[reason] += 1
        elif ours not in wanted:
            raise WeightsError(
                f"{file}: {name} has no place in this {kind}; the config beside it is of other weights."
            )
        elif found.get(ours) is not None:
            raise WeightsError(f"{file}: {name} is there twice, under an old name and a new; copy it again.")
        else:
            found[ours] = tensor
    added = tuple(name for name in wanted if kind == "prior" and name in _ADDED and name not in found)
    for name, like in wanted.items():
        if name in added:
            found[name] = torch.zeros(like.shape, dtype=torch.float32)
        if name not in found:
            raise WeightsError(f"{file}: lacks {name}; it is no {kind} of this config, or not copied whole.")
        if found[name].shape != like.shape:
            raise WeightsError(
                f"{file}: {name} is {tuple(found[name].shape)}, expected {tuple(like.shape)}; the config "
                "beside it is of other weights."
            )
    return Renamed({name: found[name] for name in wanted}, dict(dropped), added, betas)


def _placed(name: str, tensor: Tensor, kind: str, unet_number: int, bare: bool) -> tuple[str | None, str]:
    """Our name for a published one; None and the reason where it has none."""
    if name.startswith("clip."):
        return None, "clip, which stands in a file of its own"
    if name.startswith("lowres_conds."):
        return None, "noise schedule, computed here"
    if name == "_dummy":
        return None, "a marker of the device"
    if name.endswith(".beta") and not tensor.any():
        return None, "zeros that old norms carried"
    name = re.sub(r"\.gamma$", ".g", name)
    if kind == "prior":
        if bare:
            name = f"net.{name}"
        return name.replace("net.null_text_embed", "net.null_text_encodings", 1) if name.endswith(
            "null_text_embed"
        ) else name, ""
    if bare:
        name = f"unets.{unet_number - 1}.{name}"
    ours = re.fullmatch(r"unets\.(\d+)\.(.+)", name)
    if ours is None:
        return name, ""
    if int(ours[1]) != unet_number - 1:
        return None, "other U-Nets of the cascade"
    return "unet." + ours[2].replace(".cross_attn.fn.", ".cross_attn."), ""
