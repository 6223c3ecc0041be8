"""A tiny prior and decoder with random weights, and adapters beside them that learned random numbers."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from crest.adapters import Base, adapt, adapters
from crest.checkpoint import export_weights
from crest.config import LoraConfig
from crest.models.decoder import Decoder, DecoderSpec, load_decoder
from crest.models.fingerprint import fingerprint, probe
from crest.models.prior import Prior, PriorSpec, load_prior

PRIOR: dict[str, Any] = {
    "image_embed_dim": 16, "text_width": 16, "max_text_len": 4, "depth": 2, "heads": 2, "dim_head": 8,
    "timesteps": 20, "saw_dropped_conditions": False,
}  # fmt: skip
UNET: dict[str, Any] = {
    "side_px": 8, "image_embed_dim": 16, "text_width": 24, "dim": 8, "dim_mults": [1, 2], "cond_dim": 8,
    "self_attn": [False, True], "attn_heads": 2, "attn_dim_head": 8, "timesteps": 20, "max_text_len": 4,
}  # fmt: skip
QUERY = "unet.mid_block1.cross_attn.to_q.weight"
"""One of the matrices that a decoder's adapters sit beside."""


def write_base(folder: Path, kind: str = "decoder", seed: int = 0, *, half: bool = False) -> str:
    """The place of a base, whose card has a probe."""
    torch.manual_seed(seed)
    model: nn.Module
    if kind == "prior":
        model = Prior(PriorSpec.model_validate(PRIOR))
    else:
        model = Decoder(DecoderSpec.model_validate(UNET))
        nn.init.normal_(model.unet.to_out.weight, std=0.2)
    if half:
        model.half().float()
    spec = cast(Any, model).spec.model_dump(mode="json")
    card = {"kind": kind, "spec": spec, "parents": {"clip": "c" * 16}}
    proof = {"fingerprint": fingerprint(model), "probe": probe(model)}
    export_weights(folder, model, {**card, **proof}, half=half)
    return str(folder)


def adapted(place: str, seed: int, kind: str = "decoder", rank: int = 2) -> nn.Module:
    """A model with adapters as a stage makes them, which learned something."""
    model, digest, card = (load_prior if kind == "prior" else load_decoder)(place)
    adapt(model, LoraConfig(rank=rank, alpha=3.0), model.lora_targets, Base(kind, digest, place, card))
    generator = torch.Generator().manual_seed(seed)
    for _, adapter in adapters(model):
        adapter.up.data = 0.1 * torch.randn(adapter.up.shape, generator=generator)
        adapter.down.data = torch.randn(adapter.down.shape, generator=generator)
    return model


def write_adapter(
    place: str, folder: Path, seed: int, kind: str = "decoder", clip: str = "c" * 16, **spec: Any
) -> str:
    """The folder of a run that exported adapters alone."""
    model = cast(Any, adapted(place, seed, kind))
    told = {**model.spec.model_dump(mode="json"), **spec}
    card = {"kind": kind, "family": "crest", "spec": told, "parents": {"clip": clip}, "step": 7}
    export_weights(folder, model, {**card, "recipe": {"seed": seed}}, adapters_alone=True)
    return str(folder)
