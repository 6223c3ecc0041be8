"""Training with the network's own first guess."""

import torch
from torch import Tensor

from crest.diffusion.self_conditioning import self_condition


def test_the_guess_is_shown_to_those_who_get_it_without_a_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)

    def estimate() -> Tensor:
        assert not torch.is_grad_enabled()  # nothing of the first pass is kept
        return torch.arange(6.0).view(3, 2) * weight[:, None]

    guess = self_condition(estimate, torch.tensor([True, False, True]))
    assert guess is not None
    assert guess.tolist() == [[0, 1], [0, 0], [4, 5]]
    assert not guess.requires_grad


def test_a_batch_that_is_shown_nothing_costs_nothing() -> None:
    def never() -> Tensor:
        raise AssertionError("the network was asked")

    assert self_condition(never, False) is None
    whole = self_condition(lambda: torch.ones(2, 2), True)
    assert whole is not None
    assert whole.tolist() == [[1, 1], [1, 1]]
