"""Published priors are fine-tuned by the same stage, in the arithmetic that they were trained with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crest.errors import ConfigError, WeightsError
from crest.models.clip import TextFeatures
from crest.models.prior import Prior, load_prior, sample_image_embed
from crest.models.published import convert
from crest.world import open_world
from prior_train.stage import PriorStage
from tests.crest.models.test_published import published

Staged = Callable[..., PriorStage]


@pytest.fixture
def start(tmp_path: Path) -> str:
    """A small prior as LAION published it: normformer, dropout, a table of timesteps, release 1.1."""
    return str(convert(published("prior"), tmp_path / "published").parent)


def test_a_published_prior_names_its_clip_and_asks_for_a_decision(
    embed: Callable[..., Path], staged: Staged, start: str
) -> None:
    with pytest.raises(
        WeightsError, match=r"belongs to CLIP openai ViT-L/14, but .*; embed with that CLIP, or set"
    ):
        staged(embed(dim=32, width=32), model__scratch=None, model__start=start)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "adapters"])
def test_a_published_prior_is_fine_tuned_and_stays_what_it_is(
    embed: Callable[..., Path],
    configured: Callable[..., dict[str, Any]],
    command: Callable[..., int],
    staged: Staged,
    start: str,
    tmp_path: Path,
    lora: dict[str, int] | None,
) -> None:
    place = embed(dim=32, width=32)
    model = {"start": start, "accept_other_clip": True, "checkpointing": True, "lora": lora}
    values = {**configured(place), "model": model}
    assert command("prior_train", values, tmp_path) == 0
    tuned, _, card = load_prior(tmp_path / "run")
    base, _, _ = load_prior(start)
    assert card["parents"]["clip"] == "c" * 16
    assert tuned.spec == base.spec.model_copy(update={"saw_dropped_conditions": True})
    assert tuned.spec.arithmetic == "1.1"
    stage = staged(place, model__scratch=None, model__start=start, model__accept_other_clip=True)
    world = open_world("cpu", "fp32")
    before, after = (stage.validate(model.eval(), world)["loss"] for model in (base, tuned))
    assert after < before


def test_guidance_on_one_is_refused_until_it_saw_text_dropped(
    start: str, embed: Callable[..., Path], staged: Staged
) -> None:
    stage = staged(
        embed(dim=32, width=32), model__scratch=None, model__start=start, model__accept_other_clip=True,
        model__text_cond_drop_prob=0.0,
    )  # fmt: skip
    prior = stage.model()
    assert isinstance(prior, Prior)
    batch = next(stage.batches("train", open_world("cpu", "fp32"), 0))
    assert batch.text_encodings is not None
    text = TextFeatures(batch.text_embed, batch.text_encodings)
    with pytest.raises(
        ConfigError, match=r"cond_scale: found 2\.0, but this prior was trained without dropped"
    ):
        sample_image_embed(prior.eval(), text, seeds=range(16), cond_scale=2.0, steps=2)
    assert stage.card(prior)["spec"]["saw_dropped_conditions"] is False
