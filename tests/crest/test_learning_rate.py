"""Learning rate as a pure function of the step: exact numbers."""

import pytest
import torch

from crest.config import OptimConfig
from crest.learning_rate import learning_rate, set_learning_rate


def optim(**settings: object) -> OptimConfig:
    return OptimConfig.model_validate({"lr": 0.4, "batch_size": 1, "final_lr_ratio": 0.1, **settings})


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.1, 0.2, 0.3, 0.4, 0.4, 0.31, 0.22, 0.13, 0.04]),
        ("cosine", [0.1, 0.2, 0.3, 0.4, 0.4, 0.347279220614, 0.22, 0.092720779386, 0.04]),
    ],
)
def test_warm_up_peak_and_fall(schedule: str, rates: list[float]) -> None:
    found = [learning_rate(step, 9, optim(schedule=schedule, warmup_steps=4)) for step in range(9)]
    assert found == pytest.approx(rates, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_and_the_last_the_floor() -> None:
    assert learning_rate(0, 100, optim()) == 0.4
    assert learning_rate(99, 100, optim()) == pytest.approx(0.04, abs=1e-15)


def test_a_run_shorter_than_its_warm_up_still_learns() -> None:
    assert [learning_rate(step, 2, optim(warmup_steps=8)) for step in range(2)] == pytest.approx([0.05, 0.1])


def test_every_group_gets_its_share() -> None:
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr_scale": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
