"""Comparing a faster forward pass with the library's: values, and gradients of every weight and input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest value; gradients get ten times that, norms and cosines stretch rounding


def stirred(network: nn.Module) -> Any:
    """No weight at its start: the library's zeros and ones would hide mistakes."""
    draw = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    return network


def assert_like(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape, what
    limit = 3 * TOLERANCE * float(wanted.detach().abs().max()) + 1e-9
    assert float((found - wanted).detach().abs().max()) <= limit, what


def assert_same_gradients(
    network: nn.Module, ours: Tensor, theirs: Tensor, inputs: dict[str, Tensor]
) -> None:
    """Compares the gradients of one scalar of each output, for every weight and input."""
    learnt = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    names, tensors = [*inputs, *learnt], [*inputs.values(), *learnt.values()]
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    left, right = (
        torch.autograd.grad((out * weights).sum(), tensors, allow_unused=True, materialize_grads=True)
        for out in (ours, theirs)
    )
    scale = max(float(gradient.abs().max()) for gradient in right)
    for name, found, wanted in zip(names, left, right, strict=True):
        assert float((found - wanted).abs().max()) <= 10 * TOLERANCE * scale, name
    whole, mistake = (
        torch.cat([part.flatten() for part in parts]).norm() for parts in (right, subtracted(left, right))
    )
    assert float(mistake) <= 10 * TOLERANCE * float(whole)


def subtracted(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [found - wanted for found, wanted in zip(left, right, strict=True)]
