"""An upsampler's run: the loader delivers both sizes, crops lie on each other, small pictures are spoilt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest.errors import ConfigError, DataError
from crest.models.decoder import load_decoder
from crest.pixels import open_pictures
from crest.world import Draw, open_world
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch, DecoderData
from decoder_train.stage import DecoderStage

UNET: dict[str, Any] = {
    "unet_number": 2, "side_px": 32, "lowres_side_px": 16, "text_width": None, "image_cond": False, "dim": 8,
    "dim_mults": [1, 2], "cond_dim": 20, "self_attn": [False, False], "attend_at_middle": False,
    "timesteps": 20, "lowres_noise_cond": True, "attn_heads": 2, "attn_dim_head": 8,
}  # fmt: skip
WORLD = open_world("cpu", "fp32")


def config(tiny_world: Any, run_dir: Path, unet: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = tiny_world.config("decoder_train", run_dir, model__scratch={**UNET, **unet})
    values["model"] |= {"sketch_steps": 0, **changes}
    return values


def stage(
    tiny_world: Any, tmp_path: Path, unet: dict[str, Any] | None = None, **changes: Any
) -> DecoderStage:
    values = config(tiny_world, tmp_path / "run", unet or {}, **changes)
    return DecoderStage(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))


def test_an_upsampler_trains_on_crops_and_previews_whole_pictures(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    values = config(tiny_world, tmp_path / "run", {}, crop_px=16)
    assert command("decoder_train", values, tmp_path) == 0
    decoder = load_decoder(tmp_path / "run")[0]
    assert (decoder.spec.unet_number, decoder.spec.lowres_side_px) == (2, 16)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    figures = [json.loads(line) for line in lines]
    assert {"val/loss", "val/loss_t1of4", "val/loss_t4of4"} <= {name for row in figures for name in row}
    shown = stage(tiny_world, tmp_path, crop_px=16).preview(decoder)
    assert shown["true_then_drawn"].shape == (16, 3, 32, 32)
    assert shown["enlarged"].shape == (8, 3, 16, 16)


def data(world: Any, crop_px: int | None = None) -> DecoderData:
    return DecoderData(
        world.shards, world.embeddings, "train", 32, lowres_side_px=8, crop_px=crop_px, text=False
    )


def test_the_small_picture_is_the_one_that_the_decoder_before_learned_from(tiny_world: Any) -> None:
    batch = data(tiny_world).rows(torch.tensor([4, 1]), Draw(0, 0, 0, 2), torch.device("cpu"))
    before = DecoderData(tiny_world.shards, tiny_world.embeddings, "train", 8)
    own = before.rows(torch.tensor([4, 1]), Draw(0, 0, 0, 2), torch.device("cpu"))
    assert batch.lowres is not None
    assert torch.equal(batch.lowres, own.images)
    assert torch.equal(
        batch.images,
        torch.from_numpy(open_pictures(tiny_world.shards, "train", 32).pixels[[4, 1]] / 255).float(),
    )
    assert batch.text_encodings is None


def test_a_crop_and_its_small_picture_show_the_same_place(tiny_world: Any) -> None:
    whole, cropped = data(tiny_world), data(tiny_world, 16)
    numbers = torch.arange(8)
    corners = set()
    for step in range(12):
        draw = Draw(3, step, 0, 8)
        batch, all_of_it = (one.rows(numbers, draw, torch.device("cpu")) for one in (cropped, whole))
        assert batch.lowres is not None
        assert all_of_it.lowres is not None
        for row in range(8):
            top, left = cropped._corners(draw)[row].tolist()
            corners.add((top, left))
            large = all_of_it.images[row, :, top : top + 16, left : left + 16]
            small = all_of_it.lowres[row, :, top // 4 : top // 4 + 4, left // 4 : left // 4 + 4]
            assert torch.equal(batch.images[row], large)
            assert torch.equal(batch.lowres[row], small)
    assert {top for top, _ in corners} == {left for _, left in corners} == {0, 4, 8, 12, 16}


def test_a_crop_belongs_to_the_sample_not_to_the_process(tiny_world: Any) -> None:
    cropped = data(tiny_world, 16)
    whole = cropped.rows(torch.arange(16), Draw(3, 5, 0, 16), torch.device("cpu")).images
    halves = [
        cropped.rows(torch.arange(first, first + 8), Draw(3, 5, first, 8), torch.device("cpu")).images
        for first in (0, 8)
    ]
    assert torch.equal(torch.cat(halves), whole)


class Watching(nn.Module):
    """Stands in for the network and notes what it is shown."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, *told: Any, **shown: Any) -> Tensor:
        self.seen.append(shown)
        return torch.full((len(x), self.channels, *x.shape[2:]), 0.25)


def batch_of(size: int, step: int, side: int = 32) -> DecoderBatch:
    drawn = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, side, side, generator=drawn)
    small = torch.rand(size, 3, side // 2, side // 2, generator=drawn)
    return DecoderBatch(images, torch.zeros(size, 16), None, Draw(0, step, 0, size), small)


def test_small_pictures_are_blurred_and_noised_in_training_only(tiny_world: Any, tmp_path: Path) -> None:
    upsampler, watching = stage(tiny_world, tmp_path), Watching()
    clean = batch_of(64, 0).lowres
    assert clean is not None
    upsampler.loss(watching, batch_of(64, 0))
    levels = watching.seen[0]["lowres_noise_level"]
    assert levels.float().mean() == pytest.approx(500, abs=120)
    assert float(watching.seen[0]["lowres"].std()) > float((clean * 2 - 1).std())
    watching.seen.clear()
    upsampler.validate(watching, WORLD)
    assert {int(level) for shown in watching.seen for level in shown["lowres_noise_level"]} == {200}
    silent, watching = stage(tiny_world, tmp_path, {"lowres_noise_cond": False}), Watching()
    silent.loss(watching, batch_of(64, 0))
    blurred = (watching.seen[0]["lowres"] - (clean * 2 - 1)).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert watching.seen[0]["lowres_noise_level"] is None
    assert 20 <= int(blurred.sum()) <= 44  # half of 64
    watching.seen.clear()
    silent.validate(watching, WORLD)
    val = silent.val.rows(torch.arange(8), Draw(0, 0, 0, 8), torch.device("cpu")).lowres
    assert val is not None
    assert torch.allclose(watching.seen[0]["lowres"], val * 2 - 1, atol=1e-6)


def test_a_share_of_samples_is_shown_the_first_guess_at_x_start(tiny_world: Any, tmp_path: Path) -> None:
    unet = {"self_cond": True, "lowres_noise_cond": False, "prediction": "x_start"}
    upsampler, watching = stage(tiny_world, tmp_path, unet, self_cond_prob=0.25), Watching()
    upsampler.loss(watching, batch_of(256, 0))
    first, second = watching.seen
    assert "self_cond" not in first
    shown = second["self_cond"][:, 0, 0, 0]
    assert set(shown.tolist()) == {0.0, 0.25}
    assert float((shown != 0).float().mean()) == pytest.approx(0.25, abs=0.08)
    watching.seen.clear()
    upsampler.validate(watching, WORLD)
    assert bool((watching.seen[1]["self_cond"] == 0.25).all())


@pytest.mark.parametrize(
    ("unet", "changes", "error", "says"),
    [
        (
            {"unet_number": 1, "lowres_side_px": None, "lowres_noise_cond": False},
            {"crop_px": 16},
            ConfigError,
            r"model\.crop_px: found 16, expected null for unet_number 1",
        ),
        ({}, {"crop_px": 18}, ConfigError, r"model\.crop_px: found 18, expected a multiple of 4 "),
        ({}, {"crop_px": 36}, ConfigError, r"model\.crop_px: found 36, .* up to 32; change it"),
        (
            {"side_px": 64},
            {},
            DataError,
            r"7 of 8 val pictures are smaller than the 64 px .* 32 px or less\); pack larger",
        ),
    ],
)
def test_what_no_upsampler_can_learn_from_is_refused(
    tiny_world: Any, tmp_path: Path, unet: dict[str, Any], changes: dict[str, Any], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        stage(tiny_world, tmp_path, unet, **changes)
