"""Pieces that the faster U-Net and the faster prior share: the library's norm and its multi-query attention.

Norms keep their epsilon of 1e-5 in low precision; the library switches to 1e-3 under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.config import Arithmetic


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    """The library's LayerNorm or RMS-like "stable" norm in one kernel."""
    if norm.stable:
        x = x / x.amax(dim=-1, keepdim=True).detach()
    return F.layer_norm(x, (x.shape[-1],), norm.g.to(x.dtype), None, norm.eps)


def multi_query_attention(
    module: Any, x: Tensor, bias: Tensor | None, last: bool = False, *, arithmetic: Arithmetic = "1.15"
) -> Tensor:
    """Multi-query attention; `bias` (h, n, n + 1) holds the causal mask, `last` asks for the last row."""
    b, n, _ = x.shape
    x = layer_norm(module.norm, x)
    key, value = module.to_kv(x).chunk(2, dim=-1)
    query = module.to_q(x if not last else x[:, -1:])
    query = query.view(b, query.shape[1], module.heads, -1).transpose(1, 2) * module.scale
    if module.rotary_emb is not None:
        rotary = module.rotary_emb
        query = rotary.rotate_queries_or_keys(query, offset=n - 1 if last else 0)
        key = rotary.rotate_queries_or_keys(key)
    null_key, null_value = (row.to(key.dtype).expand(b, 1, -1) for row in module.null_kv)
    key, value = torch.cat((null_key, key.to(null_key.dtype)), dim=1), torch.cat((null_value, value), dim=1)
    if module.cosine_sim:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    query, key = query.to(value.dtype), key.to(value.dtype)
    if bias is not None:
        bias = (bias[:, -1:] if last else bias).to(query.dtype)
    mixed = F.scaled_dot_product_attention(
        query,
        key[:, None].expand(-1, module.heads, -1, -1),
        value[:, None].expand(-1, module.heads, -1, -1),
        attn_mask=bias,
        dropout_p=module.dropout.p if module.training else 0.0,
        # 1.15 multiplies both query and key by its square root, on top of the query's own factor
        scale=module.scale if arithmetic == "1.15" else 1.0,
    )
    projection, norm = module.to_out
    return layer_norm(norm, projection(mixed.transpose(1, 2).reshape(b, query.shape[2], -1)))
