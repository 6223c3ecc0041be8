"""A batch that does not fit is refused before it is tried, and told what would."""

from pathlib import Path
from typing import Any

import pytest

from clip_train.memory import activation_bytes, check_memory, free_bytes
from crest.errors import RunError
from crest.world import open_world
from tests.clip_train.test_modes import stage


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


def test_a_machine_tells_what_is_free() -> None:
    assert 1 << 20 < free_bytes(open_world("cpu").device) < 1 << 62
