"""The decoder's stage: timesteps spread evenly, conditions dropped apart and together, its own CLIP only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest.errors import ConfigError, WeightsError
from crest.models.decoder import load_decoder
from crest.world import Draw, open_world
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch
from decoder_train.stage import DecoderStage


def stage(tiny_world: Any, tmp_path: Path, **changes: Any) -> DecoderStage:
    values = tiny_world.config("decoder_train", tmp_path / "run", **changes)
    return DecoderStage(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))


class Watching(nn.Module):
    """Stands in for the network and notes what was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Tensor, Tensor]] = []

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        image: Tensor,
        text: Tensor,
        image_keep: Tensor,
        text_keep: Tensor,
        sketch_alone: bool = False,
    ) -> Tensor:
        self.kept.append((image_keep, text_keep))
        return torch.zeros_like(x)


def test_conditions_are_dropped_apart_and_together(tiny_world: Any, tmp_path: Path) -> None:
    probabilities = {"image_cond_drop_prob": 0.2, "text_cond_drop_prob": 0.3, "both_cond_drop_prob": 0.1}
    decoder_stage = stage(
        tiny_world,
        tmp_path,
        model__sketch_steps=0,
        **{f"model__{name}": value for name, value in probabilities.items()},
    )
    watching = Watching()
    for step in range(40):
        size = 64
        batch = DecoderBatch(
            torch.zeros(size, 3, 16, 16),
            torch.zeros(size, 16),
            torch.zeros(size, 8, 24),
            Draw(0, step, 0, size),
        )
        decoder_stage.loss(watching, batch)
    image, text = (torch.cat([kept[index] for kept in watching.kept]) for index in (0, 1))
    assert float(image.float().mean()) == pytest.approx(0.9 * 0.8, abs=0.03)
    assert float(text.float().mean()) == pytest.approx(0.9 * 0.7, abs=0.03)
    assert float((~image & ~text).float().mean()) == pytest.approx(0.1 + 0.9 * 0.2 * 0.3, abs=0.03)


def test_nothing_is_dropped_where_it_is_judged(tiny_world: Any, tmp_path: Path) -> None:
    decoder_stage, watching = stage(tiny_world, tmp_path), Watching()
    figures = decoder_stage.validate(watching, open_world("cpu", "fp32"))
    assert all(bool(keep.all()) for kept in watching.kept for keep in kept)
    quarters = [value for name, value in figures.items() if name.startswith("loss_t")]
    assert len(quarters) == 4
    assert figures["loss"] == pytest.approx(sum(quarters) / 4, rel=1e-5)


def test_text_may_be_left_out(tiny_world: Any, tmp_path: Path) -> None:
    scratch = {**tiny_world.config("decoder_train", tmp_path)["model"]["scratch"], "text_width": None}
    decoder_stage = stage(tiny_world, tmp_path, model__scratch=scratch)
    assert decoder_stage.model().spec.text_width is None
    batch = next(decoder_stage.batches("train", open_world("cpu", "fp32"), 0))
    loss, _ = decoder_stage.loss(decoder_stage.model(), batch)
    loss.backward()
    assert decoder_stage.preview(decoder_stage.model())["true_then_drawn"].shape == (16, 3, 16, 16)


def without_sketch(tiny_world: Any, tmp_path: Path) -> dict[str, Any]:
    scratch = tiny_world.config("decoder_train", tmp_path)["model"]["scratch"]
    return {**scratch, "sketch_regions": 0}


def test_the_first_steps_may_train_the_sketch_alone(tiny_world: Any, tmp_path: Path) -> None:
    decoder_stage = stage(tiny_world, tmp_path, model__sketch_steps=2)
    decoder = decoder_stage.model().train()
    world = open_world("cpu", "fp32")
    for step, learns in ((1, {"sketch"}), (2, {"sketch", "unet"})):
        decoder.zero_grad()
        batch = next(decoder_stage.batches("train", world, step))
        loss, _ = decoder_stage.loss(decoder, batch)
        loss.backward()
        resting = {id(weight) for weight in decoder_stage.resting(step)}
        learning = {
            name.split(".")[0]
            for name, weight in decoder.named_parameters()
            if weight.grad is not None and weight.grad.any()
        }
        assert learning == learns
        assert {
            name.split(".")[0] for name, weight in decoder.named_parameters() if id(weight) not in resting
        } == learns


def test_a_sketch_learns_to_move_after_it_was_trained(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    start = {"model__scratch": None, "model__start": str(tiny_world.folder / "runs" / "decoder_train")}
    still = stage(tiny_world, tmp_path, **start)
    moving = stage(tiny_world, tmp_path, **start, model__sketch_moves=True)
    world = open_world("cpu", "fp32")
    assert moving.validate(moving.model(), world) == pytest.approx(still.validate(still.model(), world))
    config = tiny_world.config("decoder_train", tmp_path / "second", **start, model__sketch_moves=True)
    assert command("decoder_train", config, tmp_path) == 0
    tuned = load_decoder(tmp_path / "second")[0]
    assert tuned.spec.sketch_moves
    assert tuned.sketch is not None
    assert tuned.sketch.place is not None
    assert tuned.sketch.place.bias.abs().max() > 0


def test_moving_needs_a_sketch(tiny_world: Any, tmp_path: Path) -> None:
    scratch = without_sketch(tiny_world, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.sketch_moves: found true for a decoder without a sketch"):
        stage(tiny_world, tmp_path, model__scratch=scratch, model__sketch_moves=True)


def test_sketch_steps_need_a_sketch(tiny_world: Any, tmp_path: Path) -> None:
    scratch = without_sketch(tiny_world, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.sketch_steps: found 9, expected 0 for a decoder without"):
        stage(tiny_world, tmp_path, model__scratch=scratch, model__sketch_steps=9)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model__start": "stock/decoder_64"}, ConfigError, "expected exactly one of start and scratch"),
        (
            {"model__scratch": {"side_px": 16, "dim": 8}},
            ConfigError,
            r"model\.scratch: dim_mults is missing; add it",
        ),
        (
            {"model__scratch": {"side": 16}},
            ConfigError,
            r"model\.scratch: side is not a setting; did you mean side_px\?",
        ),
        ({"model__scratch": None, "model__start": "nowhere"}, WeightsError, "there are no decoder weights"),
    ],
)
def test_a_start_that_is_none_is_refused(
    tiny_world: Any, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        stage(tiny_world, tmp_path, **changes)


def test_weights_of_another_clip_are_refused_by_name(tiny_world: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_world.folder / "runs" / "decoder_train", tmp_path / "start")
    card = json.loads((tmp_path / "start" / "weights.json").read_text(encoding="utf-8"))
    card["parents"]["clip"] = "f" * 16
    (tmp_path / "start" / "weights.json").write_text(json.dumps(card), encoding="utf-8")
    start = {"model__scratch": None, "model__start": str(tmp_path / "start")}
    with pytest.raises(WeightsError, match=r"belongs to CLIP f{16}, but .* was made with CLIP \w{16}"):
        stage(tiny_world, tmp_path, **start)
    assert stage(tiny_world, tmp_path, **start, model__accept_other_clip=True).model() is not None
