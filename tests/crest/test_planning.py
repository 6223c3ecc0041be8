"""Advice is tried: what is said to fit does, the gentlest changes come first, and none is idle."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.config import OptimConfig, RunConfig
from crest.errors import ConfigError
from crest.memory import Passes, usable_bytes
from crest.planning import PlannedDevice, plan, planned_device
from prior_train.config import PriorDataConfig, PriorModelConfig, PriorTrainConfig

MEGA = 10**6


def config(memory_gb: float, **settings: Any) -> PriorTrainConfig:
    run = {"dir": Path("run"), "steps": 1, "device_memory_gb": memory_gb, "precision": "fp16"}
    optim: dict[str, Any] = {"lr": 1e-3, "batch_size": 8}
    model: dict[str, Any] = {"start": "stock/prior"}
    for name, value in settings.items():
        (optim if name in OptimConfig.model_fields else model)[name] = value
    return PriorTrainConfig(
        run=RunConfig.model_validate(run),
        data=PriorDataConfig(embeddings=Path("embeddings")),
        model=PriorModelConfig.model_validate(model),
        optim=OptimConfig.model_validate(optim),
    )


class Network:
    """250 M weights (1 GB each of weights, gradients, …), 1 GB of activations a sample."""

    def __init__(self, sample_mb: int = 1000) -> None:
        self.sample_mb = sample_mb
        self.tried: list[tuple[int, bool, bool]] = []

    def __call__(self, tried: Any, device: PlannedDevice, samples: int, accumulation: int) -> Passes:
        adapted = tried.model.lora is not None
        self.tried.append((samples, tried.model.checkpointing, adapted))
        activations = samples * self.sample_mb * MEGA // (4 if tried.model.checkpointing else 1)
        learning = tuple(torch.empty(25 if adapted else 2_500_000, device="meta") for _ in range(100))
        held = sum(weight.nbytes for weight in learning)
        return Passes(250_000_000, 0, 1000 * MEGA, learning, activations, activations + held, 0)


def advised(text: str) -> list[str]:
    return re.findall(r"--set (\S+)", text)


@pytest.mark.parametrize(
    ("memory_gb", "expected"),
    [
        (16.0, []),
        (13.7, ["optim.ema_device=cpu"]),
        (8.5, ["model.checkpointing=true"]),
        (7.0, ["optim.ema_device=cpu", "model.checkpointing=true"]),
        (5.6, ["optim.ema_device=cpu", "model.checkpointing=true", "optim.device_batch_size=2"]),
        (
            3.8,
            [
                "optim.ema_device=cpu",
                "model.checkpointing=true",
                "optim.device_batch_size=2",
                "optim.optimizer=adamw_8bit",
            ],
        ),
    ],
)
def test_the_gentlest_changes_that_will_do_are_named(memory_gb: float, expected: Sequence[str]) -> None:
    text = plan(config(memory_gb), Network())
    assert ("does not fit" in text) == bool(expected)
    assert advised(text) == expected


@pytest.mark.parametrize("memory_gb", [2.6, 3.8, 5.0, 6.0, 7.5, 9.0, 13.0])
def test_what_is_advised_fits_and_nothing_of_it_is_idle(memory_gb: float) -> None:
    """Each piece of advice is followed, then each but one."""
    network = Network()
    changes = advised(plan(config(memory_gb), network))

    def fits(settings: Sequence[str]) -> bool:
        followed: dict[str, Any] = {}
        for change in settings:
            name, _, value = change.removeprefix("optim.").removeprefix("model.").partition("=")
            followed[name] = int(value) if value.isdigit() else {"true": True}.get(value, value)
        if "lora.rank" in followed:
            followed["lora"] = {"rank": followed.pop("lora.rank")}
        return "does not fit" not in plan(config(memory_gb, **followed), network)

    assert changes
    assert fits(changes)
    for change in changes:
        assert not fits([other for other in changes if other != change])


def test_what_nothing_mends_is_said() -> None:
    text = plan(config(1.0), Network())
    assert "Nothing makes it fit" in text


def test_smaller_batches_are_not_tried_where_weights_alone_are_too_many() -> None:
    network = Network(sample_mb=100)
    assert advised(plan(config(3.8), network))[-1] == "optim.optimizer=adamw_8bit"
    assert {samples for samples, _, _ in network.tried} == {8}


def test_the_device_is_this_machines_unless_another_is_planned_for() -> None:
    here = planned_device(RunConfig(dir=Path("run"), steps=1, device="cpu", precision="fp32"))
    assert (here.device_type, here.precision) == ("cpu", "fp32")
    assert here.capacity_bytes > 1 << 20
    there = planned_device(RunConfig(dir=Path("run"), steps=1, device_memory_gb=16))
    assert (there.device_type, there.capacity_bytes) == ("cuda", 16 * 10**9)
    assert usable_bytes(there.capacity_bytes, "cuda") < 15 * 10**9


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 does not divide the 8 samples"):
        plan(config(16.0, device_batch_size=3), Network())
