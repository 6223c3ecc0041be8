"""The causal multi-query attention of dalle2-pytorch's prior, as few and large products.

All heads share one key and one value, so that heads are folded into rows: logits are one product of
(n h, d_head) queries with (n + 1, d_head) keys a sequence, without expanding a key or moving a head.
Queries, keys and values come of one product; norms and rotation are one pass each; bias and angles are made
once for all layers. The library's layer takes 1.3 times as long in fp32, 1.5 times in bf16, and keeps
1.5 times as much for the way back (60 sequences of 81 tokens, 512 wide, on one core, there and back).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.config import Arithmetic
from crest.models.fast_feed_forward import compute_dtype, is_plain

BIAS_OF_1_1 = 128.0
"""Release 1.1 multiplied the relative bias along with the logits."""


@dataclass(frozen=True)
class Positions:
    """What attention knows of positions, the same in all layers."""

    bias: Tensor
    """(n, h, n + 1): the relative bias, -inf where a key lies ahead; the first key is the learned null one"""
    turn: Tensor | None
    """(n, d_head / 2, 2): cosine and sine of each pair's rotation"""

    def part(self, start: int, stop: int, keys: int | None = None) -> Positions:
        """The same for queries start to stop and the first `keys` keys, the null one counted."""
        return Positions(
            self.bias[start:stop, :, :keys], None if self.turn is None else self.turn[start:stop]
        )


def positions_of(transformer: Any, length: int, arithmetic: Arithmetic, device: torch.device) -> Positions:
    """Bias and rotation for sequences of `length` tokens."""
    bias = transformer.rel_pos_bias(length, length + 1, device=device).permute(1, 0, 2)
    if arithmetic == "1.1":
        bias = bias * BIAS_OF_1_1
    ahead = torch.ones(length, length + 1, dtype=torch.bool, device=device).triu(2)
    bias = bias.masked_fill(ahead[:, None], -math.inf).contiguous()
    attention = transformer.layers[0][0]
    if attention.rotary_emb is None:
        return Positions(bias, None)
    freqs = attention.rotary_emb.freqs.detach().float()
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * freqs
    angle = F.pad(
        angle, (0, attention.null_kv.shape[1] // 2 - len(freqs))
    )  # the rest of a head is not turned
    return Positions(bias, torch.stack((angle.cos(), angle.sin()), dim=-1))


def project(module: Any, x: Tensor, asking: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (..., h d_head), keys and values (..., d_head) of normalised tokens, by one product.

    Args:
        x: (..., D); asking: the tokens that ask, where that is not all of them.
    """
    to_q, to_kv = module.to_q, module.to_kv
    width = module.null_kv.shape[1]
    if asking is None and is_plain(to_q, to_kv):
        both = F.linear(x, torch.cat((to_q.weight, to_kv.weight)))
        query, key, value = torch.split(both, [module.heads * width, width, width], dim=-1)
        return query, key, value
    return (to_q(x if asking is None else asking), *to_kv(x).chunk(2, dim=-1))


def ready_queries(module: Any, query: Tensor, positions: Positions) -> Tensor:
    """Queries (R, n, h d_head) normalised and turned: (R, n h, d_head)."""
    r, n, _ = query.shape
    query = query.view(r, n, module.heads, -1)
    turn = None if positions.turn is None else positions.turn[:, None]
    return _normal(module, _turned(query, turn)).reshape(r, n * module.heads, -1)


def ready_keys(module: Any, key: Tensor, positions: Positions, arithmetic: Arithmetic) -> Tensor:
    """Keys (R, n, d_head) normalised, turned, and multiplied by the scale of the logits."""
    return _normal(module, _turned(key, positions.turn)) * _scale(module, arithmetic)


def null_pair(module: Any, rows: int, like: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """The learned key and value that come before all others, (R, 1, d_head) each."""
    key, value = module.null_kv.to(like.dtype)
    key = _normal(module, key) * _scale(module, arithmetic)
    return key.expand(rows, 1, -1), value.expand(rows, 1, -1)


def mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T + bias) value.

    Args:
        query: (R, n h, d_head); key, value: (R, m, d_head); bias: (n, h, m).
    Returns:
        (R, n, h d_head)
    """
    n, h, m = bias.shape
    dtype = compute_dtype(query)
    logits = torch.baddbmm(bias.reshape(n * h, m).to(dtype), query.to(dtype), key.to(dtype).mT)
    weights = F.dropout(_softmax(logits), dropout)
    return torch.bmm(weights, value.to(dtype)).view(len(query), n, -1)


def mix_after(
    query: Tensor, before: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], bias: Tensor
) -> Tensor:
    """The same for keys and values in two parts: those of a prefix, for one row or R, then the rows' own."""
    n, h, _ = bias.shape
    rows, dtype = len(query), compute_dtype(query)
    query, bias = query.to(dtype), bias.reshape(n * h, -1).to(dtype)
    (key, value), (own_key, own_value) = ([part.to(dtype) for part in pair] for pair in (before, own))
    logits = torch.cat((_times(query, key.mT), torch.bmm(query, own_key.mT)), dim=-1) + bias
    weights = _softmax(logits)
    first, second = torch.split(weights, [key.shape[1], own_key.shape[1]], dim=-1)
    return (_times(first, value) + torch.bmm(second, own_value)).view(rows, n, -1)


def _softmax(logits: Tensor) -> Tensor:
    # a low-precision softmax is computed in float32 inside; autocast would write its result in float32 too
    with torch.autocast(logits.device.type, enabled=False):
        return logits.softmax(dim=-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    if len(right) == 1:
        return (left.reshape(-1, left.shape[-1]) @ right[0]).view(*left.shape[:-1], -1)
    return torch.bmm(left, right)


def _scale(module: Any, arithmetic: Arithmetic) -> float:
    # 1.15 multiplies query and key by the root of the scale; without cosines, the query by the scale as well
    return float(module.scale**2 if arithmetic == "1.15" and not module.cosine_sim else module.scale)


def _normal(module: Any, x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) if module.cosine_sim else x


def _turned(x: Tensor, turn: Tensor | None) -> Tensor:
    """x (..., d_head) with its pairs of neighbours rotated by angles that `turn` broadcasts to."""
    if turn is None:
        return x
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(turn)
        return torch.view_as_real(turned).flatten(-2)
    (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
