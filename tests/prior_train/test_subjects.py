"""A prior's class samples: rows of the unmodified prior beside the subjects', at their share and weight."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.errors import ConfigError
from crest.records import read_jsonl
from crest.world import World, open_world
from prior_train.config import PriorTrainConfig
from prior_train.stage import PriorStage


@pytest.fixture
def values(tiny_world: Any, tmp_path: Path) -> dict[str, Any]:
    """A config that starts from the world's prior and keeps classes, its data under this test's folder."""
    place = tmp_path / "data" / "embeddings"
    place.parent.mkdir()
    place.symlink_to(tiny_world.embeddings)
    runs = tiny_world.folder / "runs"
    found: dict[str, Any] = tiny_world.config("prior_train", tmp_path / "run")
    found["data"] = {"shards": tiny_world.shards, "embeddings": place, "balance_by": "group"}
    found["model"] = {"start": str(runs / "prior_train")}
    found["preservation"] = {
        "prompts": ["a red crest", "a crest"],
        "pictures": 6,
        "clip": str(runs / "clip_train"),
        "prior_steps": 2,
    }
    return found


def staged(values: dict[str, Any]) -> PriorStage:
    return PriorStage(PriorTrainConfig.model_validate_json(json.dumps(values, default=str)))


def test_a_batch_holds_rows_of_both_kinds_as_they_were_drawn(values: dict[str, Any]) -> None:
    stage = staged(values)
    batch = next(stage.batches("train", open_world("cpu", "fp32"), 0))
    assert stage.mixed is not None
    assert stage.mixed.classes is not None
    assert batch.is_class is not None
    assert int(batch.is_class.sum()) == 4
    for place, (name, is_class) in enumerate(zip(batch.ids, batch.is_class.tolist(), strict=True)):
        shard = stage.mixed.classes if is_class else stage.train
        number = shard.ids.index(name)
        assert torch.equal(batch.image_embed[place], shard.image_embed[number])
        assert torch.equal(batch.text_embed[place], shard.text_embed[number])
        assert batch.text_encodings is not None
        words = shard.text_encodings[number].float()
        assert torch.equal(batch.text_encodings[place, : len(words)], words)


def test_any_number_of_processes_reads_the_same(values: dict[str, Any]) -> None:
    stage, alone = staged(values), open_world("cpu", "fp32")
    whole = next(stage.batches("train", alone, 2))
    assert stage.mixed is not None
    parts = []
    for rank in range(2):
        world = World(rank, 2, alone.device, "fp32", alone.accelerator)
        parts.append(next(stage.mixed.batches(stage.config.run.seed, 8, 4, world, 2)))
    assert torch.equal(torch.cat([part.image_embed for part in parts]), whole.image_embed)


def test_class_rows_weigh_what_the_config_says(values: dict[str, Any]) -> None:
    values["preservation"]["weight"] = 3.0
    stage = staged(values)
    loss, figures = stage.loss(
        stage.model().eval(), next(stage.batches("train", open_world("cpu", "fp32"), 0))
    )
    wanted = (float(figures["subject_loss"]) + 3 * float(figures["class_loss"])) / 2
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_groups_need_shards(values: dict[str, Any]) -> None:
    del values["data"]["shards"]
    with pytest.raises(ConfigError, match=r"data\.balance_by"):
        staged(values)


def test_random_weights_have_no_class_to_keep(values: dict[str, Any]) -> None:
    values["model"] = {"scratch": {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8}}
    with pytest.raises(ConfigError, match=r"preservation: expected null"):
        staged(values)


def test_the_command_logs_both_losses(
    values: dict[str, Any], command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("prior_train", values, tmp_path) == 0
    logged = {name for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") for name in row}
    assert {"train/subject_loss", "train/class_loss", "train/cosine"} <= logged
