"""Averaged weights, by exact numbers."""

import pytest
import torch
from torch import nn

from crest.ema import Ema


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.register_buffer("count", torch.tensor([0.0]))


def test_the_average_moves_by_its_factor_which_starts_low() -> None:
    model = Counted()
    ema = Ema(model, 0.15)
    model.weight.data.fill_(2.0)
    ema.update(model, 0)  # min(0.15, 1/10)
    assert float(ema.model.weight) == pytest.approx(1.9)
    ema.update(model, 1)  # min(0.15, 2/11)
    assert float(ema.model.weight) == pytest.approx(0.15 * 1.9 + 0.85 * 2.0)


def test_a_decay_of_zero_follows_the_weights() -> None:
    model = Counted()
    ema = Ema(model, 0.0)
    model.weight.data.fill_(7.0)
    ema.update(model, 1000)
    assert float(ema.model.weight) == 7.0


def test_buffers_are_copied_and_frozen_weights_stay() -> None:
    model = Counted()
    ema = Ema(model, 0.9)
    model.count.fill_(3.0)
    ema.update(model, 500)
    assert float(ema.model.count) == 3.0
    assert float(ema.model.frozen) == 5.0


def test_the_average_is_another_model_that_learns_nothing() -> None:
    model = Counted()
    ema = Ema(model, 0.9)
    model.weight.data.fill_(9.0)
    assert float(ema.model.weight) == 1.0
    assert not ema.model.training
    assert not any(weight.requires_grad for weight in ema.model.parameters())
