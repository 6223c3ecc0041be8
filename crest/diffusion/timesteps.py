"""At which timesteps a network is trained and judged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRATA = 8
"""Neighbours of a global batch over which the timesteps are spread."""


def stratified_timesteps(first: int, draws: Tensor, timesteps: int, strata: int = STRATA) -> Tensor:
    """Timesteps (B,) int64 for training: each uniform on 0 … T-1, and neighbours spread over all of it.

    A batch then sees all noise levels alike, and its loss jumps less. It follows from the place in the global
    batch, so that any number of devices draws the same.

    Args:
        first: place of the first sample in the global batch; draws: (B,) uniform in [0, 1).
        strata: equal shares of the timesteps, of which each of as many neighbours takes another.
    """
    place = (first + torch.arange(len(draws), device=draws.device)) % strata
    return ((place + draws) / strata * timesteps).long().clamp(max=timesteps - 1)


def even_timesteps(first: int, size: int, count: int, timesteps: int, device: torch.device | str) -> Tensor:
    """Timesteps (size,) int64 for validation: the same each time, rising evenly over all `count` samples.

    Args:
        first: number of the first of the samples wanted; size: how many of the `count` are wanted.
    """
    place = torch.arange(first, first + size, device=device)
    return (2 * place + 1) * timesteps // (2 * count)


def loss_by_band(
    errors: Tensor, t: Tensor, timesteps: int, bands: int | Sequence[int] = 4
) -> dict[str, float]:
    """Mean error in each band of timesteps, for a validation's metrics.

    Args:
        errors: (N,); t: (N,) int64.
        bands: how many of equal width, or the timesteps at which all but the first begin, rising.
    Returns:
        "loss_t1of4" (least noise) and so on; a band without samples is absent.
    """
    if isinstance(bands, int):
        starts = [band * timesteps // bands for band in range(1, bands)]
    else:
        starts = list(bands)
    number = torch.bucketize(t, torch.tensor(starts, device=t.device, dtype=t.dtype), right=True)
    totals = errors.new_zeros(len(starts) + 1).index_add(0, number, errors).tolist()
    counts = torch.bincount(number, minlength=len(starts) + 1).tolist()
    return {
        f"loss_t{band + 1}of{len(counts)}": total / count
        for band, (total, count) in enumerate(zip(totals, counts, strict=True))
        if count
    }
