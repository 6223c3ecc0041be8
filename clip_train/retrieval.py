"""Retrieval between pictures and captions, aware of duplicates and ties."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(similarity: Tensor, same: Tensor) -> Tensor:
    """Rank (from 1) of each row's best right answer; ties count half, as a coin would break them.

    Args:
        similarity: (N, N), row i against column j.
        same: (N,) numbers; columns with the row's number are all right answers.
    Returns:
        (N,) float32.
    """
    right = same[:, None] == same[None, :]
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    wrong = similarity.masked_fill(right, -torch.inf)
    return 1 + (wrong > best).sum(dim=1).float() + 0.5 * (wrong == best).sum(dim=1).float()


def recall(rank: Tensor, k: int) -> float:
    """Share of rows whose right answer is among the first k."""
    return float((rank <= k).float().mean())


def retrieval_metrics(image_embed: Tensor, text_embed: Tensor, same: Tensor) -> dict[str, float]:
    """R@1, R@5 and median rank both ways, their mean R@1, and the chance level.

    Args:
        image_embed, text_embed: (N, D) unit length, row by row one pair.
        same: (N,) numbers of equal captions.
    """
    similarity = text_embed @ image_embed.T
    text_to_image, image_to_text = ranks(similarity, same), ranks(similarity.T, same)
    metrics = {"chance_r_at_1": float((same[:, None] == same[None, :]).float().mean())}
    for name, rank in (("text_to_image", text_to_image), ("image_to_text", image_to_text)):
        metrics[f"{name}_r_at_1"] = recall(rank, 1)
        metrics[f"{name}_r_at_5"] = recall(rank, 5)
        metrics[f"{name}_median_rank"] = float(rank.median())
    metrics["r_at_1"] = (metrics["text_to_image_r_at_1"] + metrics["image_to_text_r_at_1"]) / 2
    return metrics
