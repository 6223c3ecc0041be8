"""Showing a network what it made of the same sample before, in training; at sampling the samplers carry it.

Paper: Chen et al. 2022 (arXiv 2208.04202), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def self_condition(estimate: Callable[[], Tensor], shown: bool | Tensor) -> Tensor | None:
    """The network's own first guess at x_0, without gradient, for those samples that are shown it.

    Args:
        estimate: runs the network without self-conditioning and gives x_0 (B, …), converted from whatever it
            predicts: samplers show x_0, so training must not show epsilon or v (dalle2-pytorch does).
        shown: with probability 0.5 true, as the paper has it, for the whole batch (the guess is then not even
            computed where it is false), or for each sample (B,).
    Returns:
        (B, …) with zeros where it is not shown, or None where nobody is shown it.
    """
    if shown is False:
        return None
    with torch.no_grad():
        guess = estimate().detach()
    if isinstance(shown, Tensor):
        guess = guess * shown.to(guess.dtype).view(-1, *([1] * (guess.ndim - 1)))
    return guess
