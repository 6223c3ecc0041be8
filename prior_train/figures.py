"""How good drawn image embeddings are: near their own picture, and nearer to it than to any other."""

from __future__ import annotations

import torch
from torch import Tensor

RANKS = (1, 5)


def similarities(drawn: Tensor, image_embed: Tensor, text_embed: Tensor) -> dict[str, float]:
    """Mean cosines and shares of captions whose own picture is among the nearest; drawn, and without a prior.

    Args:
        drawn, image_embed, text_embed: (N, D) unit length, row by row of one caption and its picture; N > 1.
    Returns:
        drawn_to_image, _other_image, _text: of what was drawn, to the true embedding, to all others (what a
        shuffle would give) and to the text. text_to_image, _other_image: of the text itself, which a prior
        must beat. drawn_r_at_k and text_r_at_k: the own picture among the k nearest of N; chance_r_at_k: so
        many by guessing.
    """
    figures = {"drawn_to_text": float((drawn * text_embed).sum(dim=1).mean())}
    for name, embed in (("drawn", drawn), ("text", text_embed)):
        similarity = embed.float() @ image_embed.float().T
        own, count = similarity.diagonal(), len(similarity)
        figures[f"{name}_to_image"] = float(own.mean())
        others = (similarity.sum() - own.sum()) / (count * (count - 1))
        figures[f"{name}_to_other_image"] = float(others)
        # the same picture twice is found either time; what is no number is never found
        nearer = (~(similarity <= own[:, None])).sum(dim=1) + ~torch.isfinite(own)
        for k in RANKS:
            figures[f"{name}_r_at_{k}"] = float((nearer < k).float().mean())
            figures[f"chance_r_at_{k}"] = min(k, count) / count
    return figures
