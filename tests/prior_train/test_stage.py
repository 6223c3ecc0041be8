"""The prior's stage: embeddings of its own CLIP, conditions dropped by sample, figures with a meaning."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.embeddings import EmbeddingShard, finish_embeddings, write_embedding_shard
from crest.errors import ConfigError, WeightsError
from crest.world import open_world
from prior_train.config import PriorTrainConfig
from prior_train.stage import PriorStage


def stage(values: dict[str, Any]) -> PriorStage:
    return PriorStage(PriorTrainConfig.model_validate_json(json.dumps(values, default=str)))


@pytest.fixture
def start(tiny_world: Any) -> str:
    return str(tiny_world.folder / "runs" / "prior_train")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Embeddings of another CLIP, of the same widths."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("val", 4)):
        image, text = (
            torch.nn.functional.normalize(torch.randn(count, 16, generator=draw), dim=1) for _ in range(2)
        )
        encodings = torch.randn(count, 6, 24, generator=draw)
        shard = EmbeddingShard([f"{split}{row}" for row in range(count)], image, text, encodings)
        write_embedding_shard(tmp_path / "foreign" / f"{split}-000000.safetensors", shard)
    finish_embeddings(tmp_path / "foreign", {"train": 16, "val": 4}, {"clip": "f" * 16, "shards": "0" * 16})
    return tmp_path / "foreign"


def test_weights_of_another_clip_are_refused_by_name(
    tiny_world: Any, tmp_path: Path, foreign: Path, start: str
) -> None:
    values = tiny_world.config("prior_train", tmp_path / "run", model__scratch=None, model__start=start)
    values["data"] = {"embeddings": foreign}
    own = json.loads((Path(start) / "weights.json").read_text(encoding="utf-8"))["parents"]["clip"]
    with pytest.raises(
        WeightsError, match=rf"belongs to CLIP {own}, but .*foreign was made with CLIP f{{16}}"
    ):
        stage(values).model()


def test_they_are_accepted_where_the_config_says_so_and_stem_from_it_then(
    tiny_world: Any, tmp_path: Path, foreign: Path, start: str, command: Callable[..., int]
) -> None:
    model = {"start": start, "accept_other_clip": True}
    values = {
        **tiny_world.config("prior_train", tmp_path / "run"),
        "model": model,
        "data": {"embeddings": foreign},
    }
    assert command("prior_train", values, tmp_path) == 0
    card = json.loads((tmp_path / "run" / "weights.json").read_text(encoding="utf-8"))
    assert card["parents"]["clip"] == "f" * 16


def test_a_start_is_exactly_one_of_two(tiny_world: Any, tmp_path: Path, start: str) -> None:
    for changes in ({"model__start": start}, {"model__scratch": None}):
        with pytest.raises(ConfigError, match="expected exactly one of start and scratch"):
            stage(tiny_world.config("prior_train", tmp_path / "run", **changes)).model()


def test_a_mistake_in_the_spec_is_told_like_one_in_the_config(tiny_world: Any, tmp_path: Path) -> None:
    values = tiny_world.config("prior_train", tmp_path / "run", model__scratch={"dephts": 2})
    with pytest.raises(ConfigError, match=r"model\.scratch: dephts is not a setting; did you mean depth\?"):
        stage(values).model()


@pytest.mark.parametrize(("probability", "saw"), [(0.0, False), (0.2, True)])
def test_the_card_says_whether_conditions_were_dropped(
    tiny_world: Any, tmp_path: Path, probability: float, saw: bool
) -> None:
    values = tiny_world.config("prior_train", tmp_path / "run", model__text_cond_drop_prob=probability)
    prior_stage = stage(values)
    assert prior_stage.card(prior_stage.model())["spec"]["saw_dropped_conditions"] is saw


def test_conditions_are_dropped_by_sample(tiny_world: Any, tmp_path: Path) -> None:
    world = open_world("cpu", "fp32")
    batch = next(stage(tiny_world.config("prior_train", tmp_path / "run")).batches("train", world, 0))
    kept = batch.draw.keep(3, 0.5)
    assert 0 < int(kept.sum()) < len(kept)


def test_a_prior_that_draws_the_truth_is_told_from_one_that_does_not(tiny_world: Any, tmp_path: Path) -> None:
    prior_stage, world = stage(tiny_world.config("prior_train", tmp_path / "run")), open_world("cpu", "fp32")
    figures = prior_stage.validate(prior_stage.model().eval(), world)
    prior_stage._drawn = lambda model, batch, first: batch.image_embed  # type: ignore[method-assign]
    perfect = prior_stage.validate(prior_stage.model().eval(), world)
    assert perfect["drawn_to_image"] == pytest.approx(1.0, abs=1e-5)
    assert perfect["drawn_r_at_1"] == 1.0
    assert perfect["drawn_to_text"] == pytest.approx(perfect["text_to_image"], abs=1e-5)
    assert figures["drawn_to_image"] < 0.9
