"""One contract for the four stages: they learn, read by step alone, resume exactly, export and load."""

import importlib
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crest.checkpoint import read_card
from crest.loop import fit
from crest.world import World, open_world

ROOMS = ("clip_train", "prior_train", "decoder_train", "caption_train")
STAGES = {
    "clip_train": "Clip",
    "prior_train": "Prior",
    "decoder_train": "Decoder",
    "caption_train": "Caption",
}
KINDS = {
    "clip_train": "clip",
    "prior_train": "prior",
    "decoder_train": "decoder",
    "caption_train": "captioner",
}


def stage_of(room: str, values: dict[str, Any]) -> Any:
    """The room's stage, from a config as its file would hold it."""
    main = importlib.import_module(f"{room}.__main__").main
    config = typing.get_type_hints(main)["config"].model_validate_json(json.dumps(values, default=str))
    return getattr(importlib.import_module(f"{room}.stage"), f"{STAGES[room]}Stage")(config)


@pytest.fixture
def world() -> World:
    return open_world("cpu", "fp32")


@pytest.fixture(params=ROOMS)
def room(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(room: str, tiny_world: Any, tmp_path: Path) -> Any:
    return stage_of(room, tiny_world.config(room, tmp_path / "run"))


def parts(batch: Any) -> dict[str, Any]:
    """A batch's fields, its draw as the numbers that it draws."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value.normal(1, 3) if name == "draw" else value for name, value in values.items()}


def assert_same(left: Any, right: Any) -> None:
    for name, value in parts(left).items():
        other = parts(right)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_batches_depend_on_the_step_alone(stage: Any, world: World) -> None:
    from_start, from_third = stage.batches("train", world, 0), stage.batches("train", world, 3)
    batches = [next(from_start) for _ in range(5)]
    assert_same(next(from_third), batches[3])
    assert_same(next(from_third), batches[4])
    images = [name for name, value in parts(batches[0]).items() if isinstance(value, torch.Tensor)]
    assert any(not torch.equal(parts(batches[3])[name], parts(batches[4])[name]) for name in images)


def test_a_batch_is_left_as_it_was_read(stage: Any, world: World) -> None:
    batch, again = next(stage.batches("train", world, 0)), next(stage.batches("train", world, 0))
    stage.loss(stage.model(), batch)[0].backward()
    stage.loss(stage.model(), batch)
    assert_same(batch, again)


def test_the_loss_is_a_scalar_that_falls_on_one_batch(stage: Any, world: World) -> None:
    model, batch = stage.model().train(), next(stage.batches("train", world, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    losses = []
    for _ in range(20):
        loss, figures = stage.loss(model, batch)
        assert loss.ndim == 0
        assert all(figure.ndim == 0 and not figure.requires_grad for figure in figures.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_two_judgements_of_the_same_weights_agree(stage: Any, world: World) -> None:
    model = stage.model().eval()
    first = stage.validate(model, world)
    assert stage.validate(model, world) == first
    assert stage.best_by in first
    assert all(isinstance(figure, float) for figure in first.values())


def test_previews_are_pictures(stage: Any, world: World) -> None:
    for pictures in stage.preview(stage.model().eval()).values():
        assert pictures.shape[1] == 3
        assert pictures.ndim == 4
        assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1


def test_micro_batches_change_memory_and_not_the_recipe(
    room: str, tiny_world: Any, tmp_path: Path, world: World
) -> None:
    gradients = []
    for device_batch_size in (8, 4, 2):
        optim = {"lr": 0.002, "batch_size": 8, "device_batch_size": device_batch_size}
        stage = stage_of(room, {**tiny_world.config(room, tmp_path / "run"), "optim": optim})
        model, accumulation = stage.model(), 1 if room == "clip_train" else 8 // device_batch_size
        batches = stage.batches("train", world, 1)  # whose captions differ in length from half to half
        for _ in range(accumulation):
            (stage.loss(model, next(batches))[0] / accumulation).backward()
        found = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        gradients.append(torch.cat(found))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm()) < 1e-5 * float(gradients[0].norm())


def test_a_finished_run_exports_what_loads_again(room: str, tiny_world: Any) -> None:
    folder = tiny_world.folder / "runs" / room
    card = read_card(folder / "weights.safetensors", KINDS[room])
    assert card["step"] in (0, 2, 4)
    assert card["world"] == {"processes": 1, "device": "cpu", "precision": "fp32"}
    assert card["recipe"]["optim"]["batch_size"] == 8
    assert len(card["parents"]) >= 1
    module = importlib.import_module(f"crest.models.{KINDS[room]}")
    name = f"load_{KINDS[room]}" + ("_model" if room in ("clip_train", "caption_train") else "")
    model = getattr(module, name)(folder)[0]
    weights = load_file(folder / "weights.safetensors")
    state = {
        name.removeprefix(getattr(model, "file_prefix", "")): value
        for name, value in model.state_dict().items()
    }
    assert all(torch.equal(value, weights[name]) for name, value in state.items())


def test_an_interrupted_run_ends_as_one_that_never_stopped(
    room: str, tiny_world: Any, tmp_path: Path, world: World
) -> None:
    values = tiny_world.config(room, tmp_path / "run")
    stage = stage_of(room, values)
    read = stage.batches

    def stopping(split: Any, world: World, start: int) -> Iterator[Any]:
        for number, batch in enumerate(read(split, world, start)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    stage.batches = stopping
    settings = {
        "recipe": {"room": room},
        "world": world,
        "export_best": room in ("clip_train", "caption_train"),
    }
    with pytest.raises(KeyboardInterrupt):
        fit(stage, stage.config.run, stage.config.optim, **settings)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = stage_of(room, values)
    fit(resumed, resumed.config.run, resumed.config.optim, **settings)
    straight = tiny_world.folder / "runs" / room
    for name in (
        "weights.safetensors",
        "best.safetensors",
        "metrics.jsonl",
        "state/step-00000004/optimizer.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_finished_run_says_so(
    room: str,
    tiny_world: Any,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_world.folder / "runs" / room
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    assert command(room, tiny_world.config(room, folder), tmp_path) == 0
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before


def test_a_dry_run_prints_the_config_and_writes_nothing(
    room: str,
    tiny_world: Any,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(room, tiny_world.config(room, tmp_path / "run"), tmp_path, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["optim"]["batch_size"] == 8
    assert not (tmp_path / "run").exists()
