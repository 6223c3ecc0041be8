"""The contrastive losses of a whole batch with several right answers a row, and the step across processes.

Losses are plain functions of logits and positives: how the embeddings were made (in chunks, in several
processes) does not show in them. Refuses to choose the positives: that is positives.py's.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

MAX_LOGIT_SCALE: Final = 100.0
"""What softmax logits are scaled by at most. Source: Radford et al. 2021 (arXiv 2103.00020), section 2.5."""


def contrastive_logits(
    image_embed: Tensor,
    text_embed: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    cap: float | None = MAX_LOGIT_SCALE,
) -> Tensor:
    """Scaled cosine similarities, in float32 also where the towers compute in less.

    Args:
        image_embed: (A, D) unit length.
        text_embed: (B, D) unit length.
        logit_scale: scalar, the factor itself (not its logarithm).
        logit_bias: scalar that is added; SigLIP's.
        cap: largest factor. A capped factor still learns to be smaller, while a plain clamp would leave it
            at the cap for ever, where published weights begin. None: no cap, as SigLIP is trained.
    Returns:
        (A, B) float32, pictures by texts.
    """
    with torch.autocast(image_embed.device.type, enabled=False):
        scale = logit_scale.float()
        if cap is not None:
            scale = _AtMost.apply(scale, cap)  # type: ignore[no-untyped-call]
        logits = scale * (image_embed.float() @ text_embed.float().T)
        return logits if logit_bias is None else logits + logit_bias.float()


def softmax_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Symmetric cross entropy; a row's target mass is shared equally by all of its right answers.

    Args:
        logits: (B, B), pictures by texts.
        positives: (B, B) bool, True where a text is right for a picture; at least one in each row and column.
    Returns:
        scalar float32, the mean over rows and columns.
    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3; with several positives as the outer sum of
    Khosla et al. 2020 (arXiv 2004.11362), equation 2.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, right = logits.float(), positives.float()
        by_picture = F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))
        by_text = F.cross_entropy(logits.T, right.T / right.T.sum(dim=1, keepdim=True))
        return (by_picture + by_text) / 2


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """SigLIP: every pair by itself is right or wrong; the sum over all pairs, per picture.

    Args:
        logits: (B, B), pictures by texts, with a bias that makes few of them positive (begin near -10).
        positives: (B, B) bool, True where a text is right for a picture.
    Returns:
        scalar float32.
    Source: Zhai et al. 2023 (arXiv 2303.15343), section 3.1, with z = 1 for every right answer.
    """
    with torch.autocast(logits.device.type, enabled=False):
        signs = positives.float() * 2 - 1
        return -F.logsigmoid(signs * logits.float()).sum() / len(logits)


def gather(share: Tensor) -> Tensor:
    """All processes' rows in the order of their ranks; gradients flow back to their owners.

    Every process then computes the loss of the whole batch, and each one's gradient reaches the owner: a
    share's gradient is as many times too large as there are processes, which their mean over processes
    (DistributedDataParallel) makes exact; a parameter of the loss itself (logit_scale) gets the same whole
    gradient in each, which their mean leaves exact.

    Args:
        share: (B / processes, ...), of the same shape in every process.
    Returns:
        (B, ...).
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return share
    whole: Tensor = _Gather.apply(share)  # type: ignore[no-untyped-call]
    return whole


class _Gather(torch.autograd.Function):
    """All shares, whose gradient is the sum of what every process wants of its own share."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        parts = [torch.empty_like(share) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(whole)
        return whole.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


class _AtMost(torch.autograd.Function):
    """min(value, cap), whose gradient above the cap passes when a step against it lowers the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, cap: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.cap = cap
        return value.clamp(max=cap)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (value,), (gradient,) = ctx.saved_tensors, gradients
        return torch.where((value <= ctx.cap) | (gradient > 0), gradient, torch.zeros_like(gradient)), None
