"""An exact, faster forward pass for dalle2-pytorch's prior, over the library's own weights and modules."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.config import Arithmetic
from crest.models.fast_attention import layer_norm, multi_query_attention


def prior_forward(
    net: Any,
    image_embed: Tensor,
    t: Tensor,
    text_embed: Tensor,
    text_encodings: Tensor,
    text_keep: Tensor,
    image_keep: Tensor,
    *,
    arithmetic: Arithmetic = "1.15",
) -> Tensor:
    """dalle2_pytorch.DiffusionPriorNetwork's prediction (B, D) for a noised, scaled image embedding.

    Args:
        text_encodings: (B, L, D), zero past the end of the text.
        text_keep, image_keep: (B,) bool; False puts the learned "nothing" in a condition's place.
        arithmetic: the library's release that the weights were trained with; 1.1 multiplied the relative
            bias by 128 along with the logits.
    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2: the sequence is encoded text, text embedding,
        timestep, noised image embedding, and a final query whose output is the prediction.
    """
    b, dim = image_embed.shape
    text = net.to_text_embeds(text_embed)
    image = net.to_image_embeds(image_embed)
    words = F.pad(
        text_encodings[:, : net.max_text_len], (0, 0, 0, max(0, net.max_text_len - text_encodings.shape[1]))
    )
    inside = torch.any(words != 0.0, dim=-1, keepdim=True) & text_keep[:, None, None]
    words = torch.where(inside, words, net.null_text_encodings.to(words.dtype))
    text = torch.where(text_keep[:, None, None], text, net.null_text_embeds.to(text.dtype))
    image = torch.where(image_keep[:, None, None], image, net.null_image_embed.to(image.dtype))
    time = net.to_time_embeds(t.to(image_embed.dtype) if net.continuous_embedded_time else t)
    query = net.learned_query.expand(b, 1, dim)
    x = torch.cat((words, text, time, image, query.to(words.dtype)), dim=1)

    transformer = net.causal_transformer
    x = transformer.init_norm(x)
    n = x.shape[1]
    bias = transformer.rel_pos_bias(n, n + 1, device=x.device)
    if arithmetic == "1.1":
        bias = bias * 128
    bias = bias.masked_fill(torch.ones(n, n + 1, dtype=torch.bool, device=x.device).triu(2), -math.inf)
    depth = len(transformer.layers)
    for number, (attention, feed_forward) in enumerate(transformer.layers):
        final = number == depth - 1
        mixed = multi_query_attention(attention, x, bias, last=final, arithmetic=arithmetic)
        x = mixed + (x[:, -1:] if final else x)
        x = _feed_forward(feed_forward, x) + x
    norm = transformer.norm
    x = layer_norm(norm, x) if hasattr(norm, "g") else norm(x)
    out: Tensor = transformer.project_out(x)[:, -1]
    return out


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    x = layer_norm(module[0], x)
    for layer in list(module)[1:]:
        x = layer_norm(layer, x) if hasattr(layer, "g") else layer(x)
    return x
