"""CLIP's two towers, cut in two: what lies below a cut can be computed once, what lies above it learns.

Knows the inside of OpenCLIP's towers, so that nothing else has to. A cut is a number of upper blocks; HEAD
leaves only the last linear layer above it, DONE nothing at all. Refuses towers that it cannot cut there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crest.errors import ConfigError

HEAD: Final = 0
"""Above the cut: the last linear layer."""
DONE: Final = -1
"""Above the cut: nothing; what is kept are unit embeddings."""


@dataclass(frozen=True)
class Cuts:
    """Where each tower of a model is cut; None: it is entered with pictures or tokens."""

    image: int | None = None
    text: int | None = None


class Tower(Protocol):
    """One tower; features are what the tower ends in, before they are made unit length."""

    depth: int
    """blocks that can lie above a cut; 0 where only the head can be cut off"""

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        """What enters the part above the cut (HEAD or 1 to depth), of pictures or tokens."""
        ...

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        """Features (B, D) of what `lower` gave; a text tower also asks for the tokens."""
        ...

    def above(self, cut: int) -> list[nn.Parameter]:
        """The parameters that `upper` uses."""
        ...


def image_tower(clip: Any) -> Tower:
    """The image tower of an OpenCLIP model."""
    visual = clip.visual
    if hasattr(visual, "attnpool"):
        return _ResNetTower(visual)
    if hasattr(visual, "transformer") and hasattr(visual, "_embeds"):
        return _ViTTower(visual)
    if hasattr(visual, "trunk"):
        return _TimmTower(visual)
    raise ConfigError(
        f"model.mode: can't cut an image tower of kind {type(visual).__name__}; take full or lora."
    )


def text_tower(clip: Any) -> Tower:
    """The text tower of an OpenCLIP model."""
    if not hasattr(clip, "text"):
        return _TextTower(clip)
    if hasattr(clip.text, "_embeds") and getattr(clip.text, "cls_emb", None) is None:
        return _CustomTextTower(clip.text)
    if hasattr(clip.text, "pooler") and hasattr(clip.text, "proj"):
        return _HubTextTower(clip.text)
    raise ConfigError(
        f"model.mode: can't cut a text tower of kind {type(clip.text).__name__}; take full or lora."
    )


def _run(blocks: Any, states: Tensor, batch_first: bool, **options: Any) -> Tensor:
    states = states if batch_first else states.transpose(0, 1)
    for block in blocks:
        states = block(states, **options)
    return states if batch_first else states.transpose(0, 1)


def _projected(features: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return features
    projected: Tensor = projection(features) if isinstance(projection, nn.Module) else features @ projection
    return projected


def _parameters(*parts: Any) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for part in parts:
        if isinstance(part, nn.Parameter):
            found.append(part)
        elif isinstance(part, nn.Module):
            found += part.parameters()
    return found


class _ViTTower:
    """OpenCLIP's own vision transformer."""

    def __init__(self, visual: Any) -> None:
        self._visual, self._blocks = visual, visual.transformer.resblocks
        self.depth = len(self._blocks)

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        states = self._visual._embeds(inputs)
        states = self._through(states, 0, self.depth - cut)
        return self._pooled(states) if cut == HEAD else states

    def _through(self, states: Tensor, first: int, last: int) -> Tensor:
        return _run(self._blocks[first:last], states, self._visual.transformer.batch_first)

    def _pooled(self, states: Tensor) -> Tensor:
        pooled: Tensor = self._visual._pool(states)[0]
        return pooled

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        if cut != HEAD:
            states = self._pooled(self._through(states, self.depth - cut, self.depth))
        return _projected(states, self._visual.proj)

    def above(self, cut: int) -> list[nn.Parameter]:
        visual = self._visual
        if cut == HEAD:
            return _parameters(visual.proj)
        pools = (visual.ln_post, visual.attn_pool, getattr(visual, "attn_pool_contrastive", None))
        return _parameters(self._blocks[self.depth - cut :], *pools, visual.proj)


class _ResNetTower:
    """CLIP's ResNet; its blocks are the four stages, the last of them with the attention pool."""

    depth = 4

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self._stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        states = self._visual.stem(inputs)
        for stage in self._stages[: self.depth - cut]:
            states = stage(states)
        return self._pooled(states) if cut == HEAD else states

    def _pooled(self, states: Tensor) -> Tensor:
        """The attention pool with a last linear layer that changes nothing."""
        pool = self._visual.attnpool
        width = pool.c_proj.in_features
        nothing = {
            "c_proj.weight": torch.eye(width, device=states.device, dtype=pool.c_proj.weight.dtype),
            "c_proj.bias": torch.zeros(width, device=states.device, dtype=pool.c_proj.weight.dtype),
        }
        pooled: Tensor = functional_call(pool, nothing, (states,))
        return pooled

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        pool = self._visual.attnpool
        if cut == HEAD:
            return _projected(states, pool.c_proj)
        for stage in self._stages[self.depth - cut :]:
            states = stage(states)
        features: Tensor = pool(states)
        return features

    def above(self, cut: int) -> list[nn.Parameter]:
        pool = self._visual.attnpool
        if cut == HEAD:
            return _parameters(pool.c_proj)
        return _parameters(*self._stages[self.depth - cut :], pool)


class _TimmTower:
    """A tower of the library timm: cut between the blocks of its transformers, else only before the head."""

    def __init__(self, visual: Any) -> None:
        self._visual, self._trunk = visual, visual.trunk
        is_transformer = all(hasattr(self._trunk, name) for name in ("_pos_embed", "norm_pre", "blocks"))
        self._blocks = self._trunk.blocks if is_transformer else ()
        self.depth = len(self._blocks)

    @property
    def _last(self) -> nn.Linear | None:
        """The linear layer that ends the tower, if one does."""
        ends = [*self._visual.head.children()] or [getattr(self._trunk, "head", None)]
        return ends[-1] if isinstance(ends[-1], nn.Linear) else None

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        if cut == HEAD:
            return self._before_last(self._trunk(inputs) if self._in_head else self._features(inputs))
        trunk = self._trunk
        states = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs))))
        return _run(self._blocks[: self.depth - cut], states, batch_first=True)

    @property
    def _in_head(self) -> bool:
        return bool(len(self._visual.head))

    def _features(self, inputs: Tensor) -> Tensor:
        states: Tensor = self._trunk.forward_features(inputs)
        return states

    def _before_last(self, states: Tensor) -> Tensor:
        if not self._in_head:
            pooled: Tensor = self._trunk.forward_head(states, pre_logits=True)
            return pooled
        layers = list(self._visual.head.children())
        for layer in layers[:-1] if self._last is not None else layers:
            states = layer(states)
        return states

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        if cut == HEAD:
            return _projected(states, self._last)
        states = self._trunk.norm(_run(self._blocks[self.depth - cut :], states, batch_first=True))
        features: Tensor = self._visual.head(self._trunk.forward_head(states))
        return features

    def above(self, cut: int) -> list[nn.Parameter]:
        if cut == HEAD:
            return _parameters(self._last)
        trunk = self._trunk
        ends = [getattr(trunk, name, None) for name in ("norm", "attn_pool", "fc_norm", "head")]
        return _parameters(self._blocks[self.depth - cut :], *ends, self._visual.head)


class _TextTower:
    """The text transformer that lies in the model itself."""

    def __init__(self, clip: Any) -> None:
        self._clip, self._blocks = clip, clip.transformer.resblocks
        self.depth = len(self._blocks)

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        length = inputs.shape[1]
        states = self._clip.token_embedding(inputs) + self._clip.positional_embedding[:length]
        states = self._through(states, 0, self.depth - cut)
        return self._pooled(states, inputs) if cut == HEAD else states

    def _through(self, states: Tensor, first: int, last: int) -> Tensor:
        mask, length = self._clip.attn_mask, states.shape[1]
        mask = None if mask is None else mask[:length, :length]
        return _run(self._blocks[first:last], states, self._clip.transformer.batch_first, attn_mask=mask)

    def _pooled(self, states: Tensor, tokens: Tensor) -> Tensor:
        from open_clip.transformer import text_global_pool

        states = self._clip.ln_final(states)
        pooled: Tensor = text_global_pool(states, tokens, self._clip.text_pool_type)
        return pooled

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        if cut != HEAD:
            assert tokens is not None
            states = self._pooled(self._through(states, self.depth - cut, self.depth), tokens)
        return _projected(states, self._clip.text_projection)

    def above(self, cut: int) -> list[nn.Parameter]:
        if cut == HEAD:
            return _parameters(self._clip.text_projection)
        blocks = self._blocks[self.depth - cut :]
        return _parameters(blocks, self._clip.ln_final, self._clip.text_projection)


class _CustomTextTower:
    """OpenCLIP's text transformer as a module of its own (SigLIP, custom configs)."""

    def __init__(self, text: Any) -> None:
        self._text, self._blocks = text, text.transformer.resblocks
        self.depth = len(self._blocks)

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        states, mask = self._text._embeds(inputs)
        states = self._through(states, 0, self.depth - cut, mask)
        return self._pooled(states, inputs) if cut == HEAD else states

    def _through(self, states: Tensor, first: int, last: int, mask: Tensor | None) -> Tensor:
        return _run(self._blocks[first:last], states, self._text.transformer.batch_first, attn_mask=mask)

    def _pooled(self, states: Tensor, tokens: Tensor) -> Tensor:
        from open_clip.transformer import text_global_pool

        states = self._text.ln_final(states)
        pooled: Tensor = text_global_pool(states, tokens, pool_type=self._text.pool_type)
        return pooled

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        if cut != HEAD:
            assert tokens is not None
            states = self._through(states, self.depth - cut, self.depth, self._text.attn_mask)
            states = self._pooled(states, tokens)
        return _projected(states, self._text.text_projection)

    def above(self, cut: int) -> list[nn.Parameter]:
        if cut == HEAD:
            return _parameters(self._text.text_projection)
        blocks = self._blocks[self.depth - cut :]
        return _parameters(blocks, self._text.ln_final, self._text.text_projection)


class _HubTextTower:
    """A text tower of the transformers library: only its head can be cut off."""

    depth = 0

    def __init__(self, text: Any) -> None:
        self._text = text

    def lower(self, inputs: Tensor, cut: int) -> Tensor:
        mask = (inputs != self._text.config.pad_token_id).long()
        states = self._text.transformer(input_ids=inputs, attention_mask=mask)
        pooled: Tensor = self._text.pooler(states, mask)
        return pooled

    def upper(self, states: Tensor, cut: int, tokens: Tensor | None = None) -> Tensor:
        return _projected(states, self._text.proj)

    def above(self, cut: int) -> list[nn.Parameter]:
        return _parameters(self._text.proj)
