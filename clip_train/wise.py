"""WiSE-FT: weights between the start and the tuned ones, tried on held-out pairs.

Costs no training; in the paper it is often better than both ends on the tuned task, and nearly as good as the
start on others. Refuses weights that moved too far from what the start knew.

Paper: Wortsman et al. 2021 (arXiv 2109.01903), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crest.errors import ConfigError, WeightsError
from crest.models.clip import ClipModel


@dataclass(frozen=True)
class SweepRow:
    """What one share of the tuned weights is worth."""

    alpha: float
    """0: the start's weights; 1: the tuned ones"""
    metrics: dict[str, float]
    """as `score` gave them, "drift" among them where it is limited"""


@dataclass(frozen=True)
class Sweep:
    """All that was tried, and the choice."""

    rows: tuple[SweepRow, ...]
    """alpha rising"""
    alpha: float
    """chosen; 0 where nothing that moved is better than the start, or all that moved is refused"""
    refused: str | None = None
    """why nothing that moved may be promoted: all of it drifted past the limit or has no finite figures"""


@torch.no_grad()
def interpolate(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha tuned, exact at both ends; running statistics too.

    What is equal in both stays as it is, bit by bit: locked weights are still the start's. Whole numbers
    (counters, positions) are the tuned ones.

    Args:
        start, tuned: state dicts of one architecture; the result is of tuned's dtypes and devices.
        alpha: in [0, 1].
    Raises:
        WeightsError: the two are of different architectures.
    Paper: Wortsman et al. 2021 (arXiv 2109.01903), section 4, equation 1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"judge.wise_ft: found {alpha:g}, expected shares from 0 to 1; correct it.")
    for name in (*start, *tuned):
        shapes = [tuple(state[name].shape) if name in state else None for state in (start, tuned)]
        if shapes[0] != shapes[1]:
            raise WeightsError(
                f"{name}: is {shapes[0]} in the start's weights and {shapes[1]} in the tuned ones, expected "
                "the same; take weights of one architecture."
            )
    mixed: dict[str, Tensor] = {}
    for name, end in tuned.items():
        if not end.is_floating_point():
            mixed[name] = end.clone()
            continue
        begin = start[name].to(end.device)
        mixed[name] = torch.lerp(begin.float(), end.float(), alpha).to(end.dtype)
    return mixed


def sweep(
    model: ClipModel,
    start: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    alphas: Sequence[float],
    score: Callable[[ClipModel], dict[str, float]],
    *,
    best_by: str,
    max_drift: float | None,
) -> Sweep:
    """Try shares of the tuned weights and choose the best by a held-out figure within the drift allowed.

    Of equal figures the one that moved least is taken. The model is left with the chosen weights.

    Args:
        model: of the architecture of both; filled with each share in turn.
        alphas: shares to try, in any order.
        score: figures of the filled model; with `max_drift`, "drift" among them.
        best_by: the figure to choose by; a name ending in "loss" or "rank" is better when lower.
        max_drift: shares that drift further are not chosen; alpha 0 always may be. None: no limit.
    Raises:
        ConfigError: no alphas, or one outside [0, 1].
    """
    if not alphas:
        raise ConfigError("judge.wise_ft: is empty, expected at least one share; 1.0 is the tuned weights.")
    rows = []
    for alpha in sorted(set(alphas)):
        model.load_state_dict(interpolate(start, tuned, alpha), strict=True)
        rows.append(SweepRow(alpha, score(model)))
    sign = -1.0 if best_by.endswith(("loss", "rank")) else 1.0
    worth = {row.alpha: sign * row.metrics[best_by] for row in rows if _may(row, best_by, max_drift)}
    moved = [row for row in rows if row.alpha > 0]
    chosen = max(worth, key=lambda alpha: (worth[alpha], -alpha), default=0.0)
    model.load_state_dict(interpolate(start, tuned, chosen), strict=True)
    refused = None
    if moved and not any(row.alpha in worth for row in moved):
        refused = _reason(moved[0], best_by, max_drift)
    return Sweep(tuple(rows), chosen, refused)


def _may(row: SweepRow, best_by: str, max_drift: float | None) -> bool:
    if not math.isfinite(row.metrics[best_by]):
        return False
    return row.alpha == 0 or max_drift is None or row.metrics["drift"] <= max_drift  # no number is not <=


def _reason(least: SweepRow, best_by: str, max_drift: float | None) -> str:
    if not math.isfinite(least.metrics[best_by]):
        return (
            f"the tuned weights have {best_by} = {least.metrics[best_by]} on the validation split, expected "
            "a number; lower optim.lr and train again."
        )
    return (
        f"the answers to the probe drifted by {least.metrics['drift']:.3f} at a share of {least.alpha:g} of "
        f"the tuned weights, expected at most judge.max_drift = {max_drift:g}; train fewer steps, lower "
        "optim.lr, try smaller shares in judge.wise_ft or raise the limit."
    )
