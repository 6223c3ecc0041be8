"""What of a CLIP learns: six modes, each a choice of parameters and of where activations are kept.

A mode ends in a whole CLIP, whatever it trained: what is locked is locked (no gradient, no statistic moves),
and what lies below a cut is computed once and kept. Refuses a mode that a model cannot have.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from clip_train.config import ClipModelConfig, ClipOptimConfig, Mode
from crest.adapters import inject
from crest.config import OptimConfig
from crest.errors import ConfigError
from crest.models.clip import ClipModel
from crest.models.clip_towers import DONE, HEAD, Cuts, Tower, image_tower, text_tower

FEW: Final = 200
"""Pairs up to which only the heads learn."""
SOME: Final = 5000
"""Pairs up to which adapters learn; more of them move everything."""
WHOLE_SET: Final = 4096
"""Pairs of the largest batch that is taken without being asked for."""
LEARNING_RATES: Final[dict[Mode, float]] = {
    "features": 1e-3,
    "lit": 5e-5,
    "lora": 3e-4,
    "top_k": 3e-5,
    "full": 1e-5,
    "scratch": 5e-4,
}
"""Peak learning rates where the config names none."""
_ATTENTION: Final = ("*.in_proj_weight", "*.attn.qkv.weight", "*.[qkv]_proj.weight", "*.attn_pool.*q.weight")
_HUB_ATTENTION: Final = ("*.query.weight", "*.key.weight", "*.value.weight")
"""Names of what makes queries, keys and values: OpenCLIP's, timm's, CLIP's ResNets', transformers'."""


def choose_mode(model: ClipModelConfig, pairs: int) -> tuple[Mode, str]:
    """The mode of a run, and why.

    Args:
        model: of the config.
        pairs: of the training split.
    Raises:
        ConfigError: scratch without random weights, or the other way round.
    """
    if (model.mode == "scratch") != (model.scratch is not None) and model.mode != "auto":
        found = "model.scratch" if model.scratch is not None else "weights to start from"
        raise ConfigError(
            f'model.mode: found "{model.mode}" with {found}, expected "scratch" with model.scratch and any '
            "other mode without; correct one of them."
        )
    if model.mode != "auto":
        return model.mode, "the config asks for it"
    if model.scratch is not None:
        return "scratch", "it starts from random weights"
    if pairs <= FEW:
        return (
            "features",
            f"{pairs:,} pairs, no more than {FEW:,}: more than heads would learn them by heart",
        )
    if pairs <= SOME:
        return "lora", f"{pairs:,} pairs, between {FEW:,} and {SOME:,}: adapters keep most of what it knows"
    return "full", f"{pairs:,} pairs, more than {SOME:,}: enough to move everything"


def resolved(optim: ClipOptimConfig, mode: Mode, pairs: int) -> OptimConfig:
    """The settings of the optimizer with what depends on mode and data filled in."""
    values = optim.model_dump()
    values["lr"] = LEARNING_RATES[mode] if optim.lr is None else optim.lr
    values["batch_size"] = min(pairs, WHOLE_SET) if optim.batch_size is None else optim.batch_size
    return OptimConfig.model_validate(values)


def prepare(clip: ClipModel, settings: ClipModelConfig, mode: Mode) -> Cuts:
    """Lock what does not learn, and say where the towers are cut.

    Args:
        clip: is changed: requires_grad, `lr_scale` of its parameters, adapters.
        settings: the knobs of the modes.
        mode: as `choose_mode` gave it.
    Raises:
        ConfigError: the model has no such part.
    """
    clip.requires_grad_(True)
    if mode == "scratch":
        return Cuts()
    clip.keeps_statistics = True
    if mode == "full":
        _decay(clip, settings.layer_decay)
        return Cuts()
    if mode == "lora":
        adapted = inject(clip, settings.lora_rank, settings.lora_alpha, _attention_of(clip))
        assert adapted  # the scale stays: the adapter belongs to weights that are known by their content
        return Cuts()
    image, text = image_tower(clip.clip), text_tower(clip.clip)
    clip.requires_grad_(False)
    _unlock_scales(clip)
    if mode == "lit":
        learning = text_parameters(clip)
        for weight in learning:
            weight.requires_grad_(True)
        return Cuts(image=DONE)
    cut = HEAD if mode == "features" else settings.top_k
    for name, tower in (("image", image), ("text", text)):
        if cut > tower.depth:
            raise ConfigError(
                f"model.top_k: found {cut}, but {tower.depth} blocks of the {name} tower can be cut off; "
                "lower it or take lora."
            )
    learning = [*image.above(cut), *text.above(cut)]
    if not learning:
        raise ConfigError('model.mode: "features" needs a tower that ends in a linear layer; take lora.')
    for weight in learning:
        weight.requires_grad_(True)
    if mode == "top_k":
        for tower in (image, text):
            _decay_tower(tower, settings.layer_decay, cut)
    return Cuts(cut, cut)


def text_parameters(clip: ClipModel) -> list[nn.Parameter]:
    """All that belongs to the text tower."""
    kept = {id(weight) for weight in clip.clip.visual.parameters()}
    kept |= {id(clip.clip.logit_scale), id(getattr(clip.clip, "logit_bias", None))}
    return [weight for weight in clip.parameters() if id(weight) not in kept]


def _unlock_scales(clip: ClipModel) -> None:
    clip.clip.logit_scale.requires_grad_(True)
    bias = getattr(clip.clip, "logit_bias", None)
    if isinstance(bias, nn.Parameter):
        bias.requires_grad_(True)


def _attention_of(clip: ClipModel) -> list[str]:
    names = [name for name, weight in clip.named_parameters() if weight.ndim >= 2]
    found = [
        pattern
        for pattern in (*_ATTENTION, *_HUB_ATTENTION)
        if any(fnmatchcase(name, pattern) for name in names)
    ]
    if not found:
        raise ConfigError('model.mode: "lora" adapts attention, which this model has none of; take full.')
    return found


def _decay(clip: ClipModel, decay: float) -> None:
    """Give each parameter its share of the learning rate, by its distance from the top of its tower."""
    visual = {id(weight) for weight in clip.clip.visual.parameters()}
    for tower, is_image in _towers(clip):
        for weight in clip.parameters():  # what lies below every block: embeddings
            if (id(weight) in visual) == is_image:
                set_share(weight, decay ** (tower.depth + 1))
        _decay_tower(tower, decay, tower.depth)
    for name in ("logit_scale", "logit_bias"):
        scale = getattr(clip.clip, name, None)
        if isinstance(scale, nn.Parameter):
            set_share(scale, 1.0)


def _towers(clip: ClipModel) -> Iterator[tuple[Tower, bool]]:
    """The towers whose blocks are known, and whether they read pictures; the others learn at one rate."""
    for find, is_image in ((image_tower, True), (text_tower, False)):
        try:
            tower = find(clip.clip)
        except ConfigError:
            continue
        if tower.depth:
            yield tower, is_image


def _decay_tower(tower: Tower, decay: float, cut: int) -> None:
    """The head learns at the full rate, the uppermost block at `decay`, the one below at its square."""
    for blocks in range(cut, 0, -1):
        for weight in tower.above(blocks):
            set_share(weight, decay**blocks)
    for weight in tower.above(HEAD):
        set_share(weight, 1.0)


def set_share(weight: nn.Parameter, share: float) -> None:
    """Note a parameter's share of the learning rate, which `crest.optimizers.build_optimizer` heeds."""
    weight.lr_scale = share  # type: ignore[attr-defined]
