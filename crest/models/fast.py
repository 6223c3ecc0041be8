"""An exact, faster forward pass for dalle2-pytorch's U-Net, over the library's own weights and modules.

Same algebra, other order: keys and values absorb the query and output projections where there are few keys,
norms run in one kernel, feature maps stay channels-last, conditions that do not depend on the timestep are
computed once per picture. Two things are ours: dropped conditions are given as masks, so that they can be a
function of the sample instead of a global random state, and norms keep their epsilon of 1e-5 in low precision
(the library switches to 1e-3 under autocast).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import LinearAttention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crest.config import Arithmetic
from crest.models.fast_attention import layer_norm, multi_query_attention
from crest.models.fast_convolution import convolve

WRITTEN_OUT: Final = 1 << 24
"""Scores of self-attention (batch x heads x places x places) up to which a CPU keeps them all."""


@dataclass(frozen=True)
class UnetConditions:
    """What a U-Net is told about a picture, ready for any timestep."""

    image_hiddens: Tensor | None
    """(B, 4 dim), added to the time embedding"""
    image_tokens: Tensor | None
    """(B, 4, cond_dim), normalised for the outer layers"""
    mid_tokens: Tensor | None
    """(B, 4 + L, cond_dim), normalised for the bottleneck"""


def unet_conditions(
    unet: Any, image_embed: Tensor, text_encodings: Tensor | None, image_keep: Tensor, text_keep: Tensor
) -> UnetConditions:
    """Compute all that does not depend on the timestep.

    Args:
        unet: dalle2_pytorch.Unet.
        image_embed: (B, D); text_encodings: (B, L, K), zero past the end of the text.
        image_keep, text_keep: (B,) bool; False puts the learned "nothing" in a condition's place.
    """
    hiddens = tokens = None
    if unet.to_image_hiddens is not None:
        hiddens = unet.to_image_hiddens(image_embed)
        hiddens = torch.where(image_keep[:, None], hiddens, unet.null_image_hiddens.to(hiddens.dtype))
    if unet.cond_on_image_embeds:
        tokens = unet.image_to_tokens(image_embed)
        tokens = torch.where(image_keep[:, None, None], tokens, unet.null_image_embed.to(tokens.dtype))
    mid = [tokens] if tokens is not None else []
    if unet.cond_on_text_encodings and text_encodings is not None:
        length = unet.max_text_len
        text = F.pad(text_encodings[:, :length], (0, 0, 0, max(0, length - text_encodings.shape[1])))
        inside = torch.any(text != 0.0, dim=-1, keepdim=True) & text_keep[:, None, None]
        words = unet.text_to_cond(text)
        mid.append(torch.where(inside, words, unet.null_text_embed.to(words.dtype)))
    return UnetConditions(
        hiddens,
        None if tokens is None else unet.norm_cond(tokens),
        unet.norm_mid_cond(torch.cat(mid, dim=1)) if mid else None,
    )


def unet_forward(
    unet: Any,
    x: Tensor,
    t: Tensor,
    conditions: UnetConditions,
    lowres: Tensor | None = None,
    *,
    arithmetic: Arithmetic = "1.15",
    self_cond: Tensor | None = None,
    lowres_noise_level: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """The U-Net's prediction (B, C, H, W) for a noised picture.

    Args:
        x: (B, C, H, W); t: (B,) timesteps.
        conditions: of `unet_conditions`.
        lowres: (B, C, H, W), for a U-Net built with `lowres_cond`.
        arithmetic: the library's release that the weights were trained with.
        self_cond: (B, C, H, W), the x_start predicted before, for a U-Net built with `self_cond`; None shows
            zeros.
        lowres_noise_level: (B,) timesteps of the noise on `lowres`, for one built with `lowres_noise_cond`.
        checkpointing: keep each block's input alone and run the block again for its gradient.
    """
    shown = [x]
    if unet.self_cond:
        shown.append(torch.zeros_like(x) if self_cond is None else self_cond.to(x.dtype))
    if lowres is not None:
        shown.append(lowres.to(x.dtype))
    x = torch.cat(shown, dim=1) if len(shown) > 1 else x
    x = unet.init_conv(x.contiguous(memory_format=torch.channels_last))
    first = x
    hiddens = unet.to_time_hiddens(t.float())
    time_tokens = unet.to_time_tokens(hiddens)
    time = unet.to_time_cond(hiddens)
    if lowres_noise_level is not None:
        time = time + unet.to_lowres_noise_cond(lowres_noise_level.float())
    if conditions.image_hiddens is not None:
        time = time + conditions.image_hiddens
    outer, mid = unet.norm_cond(time_tokens), unet.norm_mid_cond(time_tokens)
    if conditions.image_tokens is not None:
        outer = torch.cat((outer, conditions.image_tokens.to(outer.dtype)), dim=1)
    if conditions.mid_tokens is not None:
        mid = torch.cat((mid, conditions.mid_tokens.to(mid.dtype)), dim=1)
    time = F.silu(time)

    def block(module: Any, x: Tensor, tokens: Tensor | None) -> Tensor:
        return _resumed(checkpointing, _resnet_block, module, x, time, tokens)

    def attend(module: Any, x: Tensor) -> Tensor:
        return _resumed(checkpointing, _self_attention, module, x, arithmetic)

    if unet.init_resnet_block is not None:
        x = block(unet.init_resnet_block, x, outer)
    skips: list[Tensor] = []
    for before, start, blocks, attention, after in unet.downs:
        if before is not None:
            x = _downsample(before, x)
        x = block(start, x, outer)
        for other in blocks:
            x = block(other, x, outer)
            skips.append(x)
        x = attend(attention, x)
        skips.append(x)
        if after is not None:
            x = _downsample(after, x)
    x = block(unet.mid_block1, x, mid)
    if unet.mid_attn is not None:
        x = attend(unet.mid_attn, x)
    x = block(unet.mid_block2, x, mid)
    fmaps: list[Tensor] = []
    for start, blocks, attention, upsample in unet.ups:
        for other in (start, *blocks):
            skip = skips.pop() if unet.skip_connect_scale == 1 else skips.pop() * unet.skip_connect_scale
            x = block(other, torch.cat((x, skip), dim=1), outer)
        x = attend(attention, x)
        fmaps.append(x)
        x = upsample(x)
    x = unet.upsample_combiner(x, fmaps)
    x = block(unet.final_resnet_block, torch.cat((x, first), dim=1), None)
    if lowres is not None:
        x = torch.cat((x, lowres.to(x.dtype)), dim=1)
    out: Tensor = unet.to_out(x)
    return out


def _resumed(checkpointing: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    if not (checkpointing and torch.is_grad_enabled()):
        return function(*args)
    out: Tensor = checkpoint(function, *args, use_reentrant=False)
    return out


def _downsample(module: Any, x: Tensor) -> Tensor:
    """The library's pixel-unshuffle and 1x1 convolution as one 2x2 convolution of stride 2.

    Saves the copy of the unshuffled picture. In low precision on a CPU, where oneDNN's gradient of such a
    convolution's weight is slow, a matrix product of patches takes its place.
    """
    if not isinstance(module, torch.nn.Sequential):  # one convolution, of 4x4 as in 1.1 or of several sizes
        result: Tensor = module(x)
        return result
    conv: Any = module[1]
    out, channels = conv.weight.shape[0], conv.weight.shape[1] // 4
    if x.dtype == torch.float32 or x.device.type != "cpu":
        return F.conv2d(x, conv.weight.view(out, channels, 2, 2), conv.bias, stride=2)
    b, _, height, width = x.shape
    patches = x.permute(0, 2, 3, 1).reshape(b, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    weight = conv.weight.view(out, channels, 4).transpose(1, 2).reshape(out, 4 * channels)
    down = F.linear(patches.reshape(b, height // 2, width // 2, 4 * channels), weight, conv.bias)
    return down.permute(0, 3, 1, 2)


def _block(block: Any, x: Tensor, scale_shift: Tensor | None) -> Tensor:
    x = block.norm(convolve(block.project, x))
    if scale_shift is not None:
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype) + 1)
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _resnet_block(module: Any, x: Tensor, time: Tensor, tokens: Tensor | None) -> Tensor:
    # `time` has been through the SiLU that starts every block's time MLP
    scale_shift = module.time_mlp[1](time) if module.time_mlp is not None else None
    h = _block(module.block1, x, scale_shift)
    if module.cross_attn is not None:
        b, c, height, width = h.shape
        rows = h.permute(0, 2, 3, 1).reshape(b, height * width, c)
        # sums go where a norm or a SiLU wrote: neither needs its output for the gradient
        rows = _cross_attention(module.cross_attn, rows, tokens).add_(rows)
        h = rows.view(b, height, width, c).permute(0, 3, 1, 2)
    return _block(module.block2, h, None).add_(module.res_conv(x))


def _cross_attention(module: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """What a picture's places (B, N, C) take from the condition tokens (B, L, K).

    Where tokens are few, keys absorb the query's projection and values that of the output: two thirds of the
    products less. Places stand last then: a softmax over the first of two axes is vectorised, one over the
    last seven numbers is not (forward and backward of 8 x 1024 places: 16.0 -> 0.7 ms on one thread).
    """
    assert context is not None
    if module.cosine_sim:
        out: Tensor = module(x, context)
        return out
    b, n, width = x.shape
    heads = module.heads
    key, value = module.to_kv(module.norm_context(context)).chunk(2, dim=-1)
    key, value = (part.view(b, -1, heads, part.shape[-1] // heads) for part in (key, value))
    null_key, null_value = (row.to(key.dtype).expand(b, 1, heads, -1) for row in module.null_kv)
    key, value = torch.cat((null_key, key), dim=1), torch.cat((null_value, value), dim=1)
    keys, dim_head = key.shape[1], key.shape[-1]
    x = layer_norm(module.norm, x)
    projection, norm = module.to_out
    if keys <= 2 * dim_head:
        query_weight = module.to_q.weight.view(heads, dim_head, width)
        out_weight = projection.weight.view(width, heads, dim_head)
        folded_key = torch.einsum("bmhe,hed->bmhd", key * module.scale, query_weight.to(key.dtype))
        folded_value = torch.einsum("bmhe,dhe->bmhd", value, out_weight.to(value.dtype))
        folded_key, folded_value = (
            part.reshape(b, keys * heads, width) for part in (folded_key, folded_value)
        )
        scores = torch.bmm(folded_key, x.to(key.dtype).transpose(1, 2))
        weights = scores.view(b, keys, heads * n).softmax(dim=1).to(value.dtype)
        mixed = torch.bmm(weights.view(b, keys * heads, n).transpose(1, 2), folded_value)
        return layer_norm(norm, mixed)
    query = module.to_q(x).view(b, n, heads, dim_head).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(
        query, key.transpose(1, 2), value.transpose(1, 2), scale=module.scale
    )
    return layer_norm(norm, projection(mixed.transpose(1, 2).reshape(b, n, heads * dim_head)))


def _self_attention(module: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    if isinstance(module, torch.nn.Identity):
        return x
    attention = module.fn
    if isinstance(attention, LinearAttention):
        return x + _linear_attention(attention, x, arithmetic)
    attention = attention.fn
    b, c, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, height * width, c)
    scores = b * attention.heads * rows.shape[1] ** 2
    if x.device.type == "cpu" and scores <= WRITTEN_OUT and not attention.cosine_sim:
        rows = rows + _written_out_attention(attention, rows, arithmetic)
    else:
        rows = rows + multi_query_attention(attention, rows, None, arithmetic=arithmetic)
    return rows.view(b, height, width, c).permute(0, 3, 1, 2)


def _written_out_attention(module: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Self-attention as two matrix products, all heads at once, because they share one key and value.

    On a CPU, forward and backward take half the time of the fused kernel, and the memory of all scores.
    """
    b, n, _ = x.shape
    x = layer_norm(module.norm, x)
    key, value = module.to_kv(x).chunk(2, dim=-1)
    null_key, null_value = (row.to(key.dtype).expand(b, 1, -1) for row in module.null_kv)
    key, value = torch.cat((null_key, key), dim=1), torch.cat((null_value, value), dim=1)
    # 1.15 multiplies query and key by the root of the scale, on top of the query's own factor
    key = key * (module.scale**2 if arithmetic == "1.15" else module.scale)
    query = module.to_q(x).view(b, n * module.heads, -1)
    weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1).to(value.dtype)
    projection, norm = module.to_out
    return layer_norm(norm, projection(torch.bmm(weights, value).view(b, n, -1)))


def _channel_norm(norm: Any, x: Tensor) -> Tensor:
    if norm.stable:
        x = x / x.amax(dim=1, keepdim=True).detach()
    # over the last axis, where channels-last memory has them
    rows = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.g.flatten().to(x.dtype), None, norm.eps)
    return rows.permute(0, 3, 1, 2)


def _linear_attention(module: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    b, _, height, width = x.shape
    projected = module.to_qkv(_channel_norm(module.norm, x)).permute(0, 2, 3, 1)
    query, key, value = projected.reshape(b, height * width, 3, module.heads, -1).unbind(2)
    query = query.float().softmax(dim=-1).to(value.dtype) * module.scale
    key = key.float().softmax(dim=1).to(value.dtype)
    if arithmetic == "1.15":
        value = F.normalize(value, dim=-1) / (height * width)
    context = torch.einsum("bnhd,bnhe->bhde", key, value)
    mixed = torch.einsum("bnhd,bhde->bnhe", query, context).reshape(b, height, width, -1)
    projection, norm = module.to_out
    return _channel_norm(norm, projection(module.nonlin(mixed).permute(0, 3, 1, 2)))
