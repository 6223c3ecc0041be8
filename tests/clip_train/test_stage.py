"""CLIP's stage: what it may start from, and a loss that knows equal captions."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip_train.config import ClipTrainConfig
from clip_train.data import ClipBatch
from clip_train.positives import positives
from clip_train.stage import ClipStage
from crest.errors import ConfigError, DataError, WeightsError
from crest.models.clip import ClipModel
from crest.shards import write_shards
from crest.world import open_world


def stage(tiny_world: Any, tmp_path: Path, **changes: Any) -> ClipStage:
    values = tiny_world.config("clip_train", tmp_path / "run", **changes)
    return ClipStage(ClipTrainConfig.model_validate_json(json.dumps(values, default=str)), open_world("cpu"))


@pytest.mark.parametrize(("start", "found"), [(None, "none"), ("stock/clip", "start and scratch")])
def test_a_start_is_exactly_one_of_three(
    tiny_world: Any, tmp_path: Path, start: str | None, found: str
) -> None:
    scratch = None if start is None else tiny_world.config("clip_train", tmp_path)["model"]["scratch"]
    with pytest.raises(ConfigError, match=f"model: found {found}, expected exactly one of"):
        stage(tiny_world, tmp_path, model__scratch=scratch, model__start=start)


def test_pretrained_weights_need_their_architecture(tiny_world: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture is missing"):
        stage(tiny_world, tmp_path, model__scratch=None, model__pretrained="laion2b_s34b_b79k")


def test_an_unknown_architecture_is_refused(tiny_world: Any, tmp_path: Path) -> None:
    unknown = {"model__scratch": None, "model__pretrained": "x.safetensors", "model__architecture": "ViT-Z-1"}
    with pytest.raises(WeightsError, match='OpenCLIP has no "ViT-Z-1"'):
        stage(tiny_world, tmp_path, **unknown)


@pytest.mark.parametrize(
    ("scratch", "says"),
    [
        ({"costum": {}}, r"model\.scratch: costum is not a setting; did you mean custom\?"),
        ({"bpe_merges": "many"}, r'model\.scratch: bpe_merges: found "many", expected a valid integer'),
    ],
)
def test_a_mistake_in_the_spec_is_told_like_one_in_the_config(
    tiny_world: Any, tmp_path: Path, scratch: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        stage(tiny_world, tmp_path, model__scratch=scratch)


def test_every_ancestor_is_named(tiny_world: Any, tmp_path: Path, command: Callable[..., int]) -> None:
    first = tiny_world.folder / "runs" / "clip_train"
    hashes = [json.loads((first / "weights.json").read_text(encoding="utf-8"))["sha256"][:16]]
    for name in ("second", "third"):
        start = first if name == "second" else tmp_path / "second"
        config = tiny_world.config(
            "clip_train", tmp_path / name, model__scratch=None, model__start=str(start), run__steps=1
        )
        assert command("clip_train", config, tmp_path) == 0
        card = json.loads((tmp_path / name / "weights.json").read_text(encoding="utf-8"))
        assert card["parents"]["start"] == hashes[-1]
        assert set(hashes) <= set(card["parents"].values())
        hashes.append(card["sha256"][:16])


def test_a_validation_split_of_one_is_refused(tiny_world: Any, tmp_path: Path) -> None:
    from crest.shards import read_samples

    samples = list(read_samples(tiny_world.shards, "train"))
    write_shards(
        tmp_path / "shards", {"train": samples, "val": samples[:1]}, samples_per_shard=99, parents={}
    )
    with pytest.raises(DataError, match="the val split holds 1 logos, expected at least 2"):
        stage(tiny_world, tmp_path, data__shards=tmp_path / "shards")


def loss_of(clip_stage: ClipStage, same: list[int]) -> float:
    """The loss of a model that embeds four pairs perfectly apart."""

    def model(images: Tensor, tokens: Tensor, chunk: int, states: None) -> tuple[Tensor | None, ...]:
        return torch.eye(4), torch.eye(4), torch.tensor(50.0), None

    pictures = clip_stage.data.train
    texts = [f"logo of club {'abcd'[number]}" for number in same]
    alone = dataclasses.replace(
        pictures, ids=[*"abcd"], captions=texts, groups=[*"abcd"], pixels=pictures.pixels[:4]
    )
    clip_stage.data.positives = positives(alone, captions_alike=1, pictures_alike=0)
    batch = ClipBatch(torch.zeros(4, 3, 2, 2), torch.zeros(4, 2), torch.arange(4), 4)
    return float(clip_stage.loss(model, batch)[0])  # type: ignore[arg-type]


def test_pictures_of_an_equal_caption_are_positives_of_each_other(tiny_world: Any, tmp_path: Path) -> None:
    clip_stage = stage(tiny_world, tmp_path)
    assert loss_of(clip_stage, [0, 1, 2, 3]) == pytest.approx(0.0, abs=1e-6)
    # rows 0 and 1 want half their weight on each other, where this model puts none: log-probability -50
    assert loss_of(clip_stage, [0, 0, 2, 3]) == pytest.approx(0.5 * 0.5 * 50, rel=1e-3)


def resnet(tiny_world: Any, tmp_path: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(
        json.dumps(tiny_world.config("clip_train", tmp_path)["model"]["scratch"])
    )
    spec["custom"]["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    return spec


def test_batch_norm_is_not_trained_from_nothing_on_parts_of_a_batch(tiny_world: Any, tmp_path: Path) -> None:
    parted = {"model__scratch": resnet(tiny_world, tmp_path), "optim__device_batch_size": 2}
    with pytest.raises(ConfigError, match=r"model\.scratch: has batch norm, with statistics of 2 of a batch"):
        stage(tiny_world, tmp_path, **parted).batches("train", open_world("cpu", "fp32"), 0)


def test_a_fine_tuned_resnet_keeps_its_statistics_and_may_see_a_batch_in_parts(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    scratch = tiny_world.config("clip_train", tmp_path / "first", model__scratch=resnet(tiny_world, tmp_path))
    assert command("clip_train", scratch, tmp_path) == 0
    changes = {"scratch": None, "start": str(tmp_path / "first"), "mode": "full"}
    fine = stage(tiny_world, tmp_path, **{f"model__{name}": value for name, value in changes.items()})
    model = fine.model().train()
    assert isinstance(model, ClipModel)
    batch = next(iter(fine.batches("train", open_world("cpu", "fp32"), 0)))
    before = {name: value.clone() for name, value in model.named_buffers()}
    gradients = []
    for chunk in (len(batch.images), 2):
        model.zero_grad()
        fine.loss(model, dataclasses.replace(batch, chunk=chunk))[0].backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, whole in gradients[0].items():
        assert whole is not None
        assert torch.allclose(whole, gradients[1][name], atol=1e-5), name  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_the_preview_is_one_picture_with_a_row_a_caption(tiny_world: Any, tmp_path: Path) -> None:
    clip_stage = stage(tiny_world, tmp_path)
    sheet = clip_stage.preview(clip_stage.model().eval())["retrieval"]
    val = clip_stage.data.val
    assert sheet.shape == (1, 3, 8 * 16, 6 * 16)
    for row in range(8):
        first = sheet[0, :, 16 * row : 16 * (row + 1), :16]
        assert torch.equal(first, torch.from_numpy(val.pixels[row].astype("float32") / 255))
