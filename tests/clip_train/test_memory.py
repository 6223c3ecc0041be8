"""A batch that does not fit is refused before it is tried, and told what would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_train.config import ClipTrainConfig
from clip_train.memory import activation_bytes, check_memory, free_bytes
from clip_train.stage import ClipStage
from crest.errors import RunError
from crest.world import open_world
from tests.clip_train.test_modes import stage
from tests.clip_train.test_stage import resnet


def first_batch(tiny_world: Any, tmp_path: Path, mode: str = "full") -> Any:
    made = stage(tiny_world, tmp_path / mode, mode)
    world = open_world("cpu", "fp32")
    return made.model(), next(made.batches("train", world, 0)), world


def test_activations_grow_with_the_batch_and_shrink_with_what_is_kept(
    tiny_world: Any, tmp_path: Path
) -> None:
    model, batch, world = first_batch(tiny_world, tmp_path)
    two, four, eight = (activation_bytes(model, batch, count, world) for count in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.2)
    kept = first_batch(tiny_world, tmp_path, "features")
    assert activation_bytes(*kept[:2], 8, world) < eight / 5


def test_what_would_fit_is_told(tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, world = first_batch(tiny_world, tmp_path)
    check_memory(model, batch, world)
    each = (activation_bytes(model, batch, 8, world) - activation_bytes(model, batch, 2, world)) / 6
    fixed = 3 * sum(weight.nbytes for weight in model.parameters()) + 2 * batch.images.nbytes
    monkeypatch.setattr("clip_train.memory.free_bytes", lambda _: (fixed + 5.5 * each) / 0.9)
    with pytest.raises(RunError, match=r"optim\.device_batch_size: 8 pairs at once .* 4 would fit"):
        check_memory(model, batch, world)
    monkeypatch.setattr("clip_train.memory.free_bytes", lambda _: 1000)
    with pytest.raises(RunError, match="not even one fits"):
        check_memory(model, batch, world)


def test_looking_leaves_the_model_as_it_was(tiny_world: Any, tmp_path: Path) -> None:
    """A batch norm that is trained from nothing would take the trial for its first batches."""
    values = tiny_world.config("clip_train", tmp_path / "run", model__scratch=resnet(tiny_world, tmp_path))
    made = ClipStage(
        ClipTrainConfig.model_validate_json(json.dumps(values, default=str)), open_world("cpu", "fp32")
    )
    model, world = made.model(), open_world("cpu", "fp32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_memory(model, next(made.batches("train", world, 0)), world)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_machine_tells_what_is_free() -> None:
    assert 1 << 20 < free_bytes(open_world("cpu").device) < 1 << 62
