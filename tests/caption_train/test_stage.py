"""The captioner's stage: a vocabulary of its own captions, every token of a step weighs alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from caption_train.config import CaptionTrainConfig
from caption_train.stage import CaptionStage
from crest.errors import ConfigError, WeightsError
from crest.world import open_world


def stage(tiny_world: Any, tmp_path: Path, **changes: Any) -> CaptionStage:
    values = tiny_world.config("caption_train", tmp_path / "run", **changes)
    return CaptionStage(CaptionTrainConfig.model_validate_json(json.dumps(values, default=str)))


def test_the_loss_of_a_whole_batch_is_the_mean_over_its_tokens(tiny_world: Any, tmp_path: Path) -> None:
    caption_stage = stage(tiny_world, tmp_path)
    batch, model = next(caption_stage.batches("train", open_world("cpu", "fp32"), 0)), caption_stage.model()
    logits, _ = model(batch.images, batch.labels)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    loss, _ = caption_stage.loss(model, batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert batch.tokens == int((batch.labels != -100).sum())


def test_the_vocabulary_is_learned_from_the_captions_and_kept_in_the_card(
    tiny_world: Any, tmp_path: Path
) -> None:
    caption_stage = stage(tiny_world, tmp_path)
    spec = caption_stage.card(caption_stage.model())["spec"]
    assert "Ġcrest" in spec["tokens"]
    assert len(spec["tokens"]) <= 301


def test_a_stem_learns_to_name_the_things_of_the_captions(tiny_world: Any, tmp_path: Path) -> None:
    scratch = {**tiny_world.config("caption_train", tmp_path)["model"]["scratch"], "stem_channels": 8}
    caption_stage = stage(tiny_world, tmp_path, model__scratch=scratch)
    model, batch = caption_stage.model(), next(caption_stage.batches("train", open_world("cpu", "fp32"), 0))
    assert model.things == ("charge", "crest", "number")
    assert batch.things.tolist() == [[1.0, 1.0, 1.0]] * 8
    optimizer, named = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for _ in range(15):
        loss, figures = caption_stage.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        named.append(float(figures["named"]))
    assert named[-1] < named[0]
    assert float(loss.detach()) == pytest.approx(float(figures["written"] + 0.5 * figures["named"]))


def test_fine_tuning_keeps_the_vocabulary_and_names_its_start(tiny_world: Any, tmp_path: Path) -> None:
    start = tiny_world.folder / "runs" / "caption_train"
    tuned = stage(tiny_world, tmp_path, model__scratch=None, model__start=str(start))
    card = json.loads((start / "weights.json").read_text(encoding="utf-8"))
    assert list(tuned.model().spec.tokens) == card["spec"]["tokens"]
    assert tuned.card(tuned.model())["parents"]["start"] == card["sha256"][:16]


def test_words_of_the_human_captions_are_counted(tiny_world: Any, tmp_path: Path) -> None:
    caption_stage = stage(tiny_world, tmp_path)
    model, captions = caption_stage.model().eval(), caption_stage.val.captions
    silent = caption_stage.validate(model, open_world("cpu", "fp32"))
    model.write = lambda images: captions[: len(images)]
    perfect = caption_stage.validate(model, open_world("cpu", "fp32"))
    for word in ("colour_word", "object_word"):
        assert silent[f"{word}_f1"] < 1.0
        assert perfect[f"{word}_precision"] == perfect[f"{word}_recall"] == perfect[f"{word}_f1"] == 1.0
    assert perfect["loss"] == silent["loss"]


def test_the_held_out_loss_is_the_mean_over_all_tokens_however_many_at_once(
    tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption_stage = stage(tiny_world, tmp_path)
    model, world = caption_stage.model().eval(), open_world("cpu", "fp32")
    whole = caption_stage.validate(model, world)
    monkeypatch.setattr("caption_train.stage.CHUNK", 3)
    parts = caption_stage.validate(model, world)
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model__start": "stock/captioner"}, ConfigError, "expected exactly one of start and scratch"),
        (
            {"model__scratch": {"side": 16}},
            ConfigError,
            r"model\.scratch: side is not a setting; did you mean side_px\?",
        ),
        ({"model__scratch": {"side_px": "wide"}}, ConfigError, r'model\.scratch: side_px: found "wide"'),
        ({"model__scratch": None, "model__start": "nowhere"}, WeightsError, "there are no captioner weights"),
        ({"model__lora_rank": 2}, ConfigError, r"model\.lora_rank: adapters need weights to adapt"),
    ],
)
def test_a_start_that_is_none_is_refused(
    tiny_world: Any, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        stage(tiny_world, tmp_path, **changes)
