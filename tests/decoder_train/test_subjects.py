"""Decoders for subjects: class pictures beside theirs, equal groups, small moves, one stream of chance."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.errors import ConfigError
from crest.records import read_json, read_jsonl
from crest.world import Draw, World, open_world
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch
from decoder_train.stage import DecoderStage

Configured = Callable[..., dict[str, Any]]


@pytest.fixture
def configured(tiny_world: Any, tmp_path: Path) -> Configured:
    """Call with changes of the data and whether classes are kept: a config that starts from the world."""
    place = tmp_path / "data" / "embeddings"
    place.parent.mkdir()
    place.symlink_to(tiny_world.embeddings)
    runs = tiny_world.folder / "runs"

    def build(*, preserve: bool = True, **data: Any) -> dict[str, Any]:
        values: dict[str, Any] = tiny_world.config("decoder_train", tmp_path / "run")
        values["data"] = {"shards": tiny_world.shards, "embeddings": place, **data}
        values["model"] = {"start": str(runs / "decoder_train"), "preview_steps": 2}
        if preserve:
            values["preservation"] = {
                "prompts": ["a red crest", "a crest"],
                "pictures": 6,
                "clip": str(runs / "clip_train"),
                "prior": str(runs / "prior_train"),
                "steps": 2,
                "prior_steps": 2,
            }
        return values

    return build


def staged(values: dict[str, Any]) -> DecoderStage:
    return DecoderStage(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))


def first_batch(stage: DecoderStage, step: int = 0) -> DecoderBatch:
    return next(stage.batches("train", open_world("cpu", "fp32"), step))


def test_a_batch_holds_subjects_and_class_pictures_each_with_their_own_conditions(
    configured: Configured,
) -> None:
    stage = staged(configured())
    assert stage.mixed is not None
    assert stage.mixed.classes is not None
    batch = first_batch(stage)
    assert batch.is_class is not None
    assert int(batch.is_class.sum()) == 4
    assert len(batch.ids) == len(batch.images) == 8
    for place, (name, is_class) in enumerate(zip(batch.ids, batch.is_class.tolist(), strict=True)):
        data = stage.mixed.classes if is_class else stage.mixed.subjects
        number = data.pictures.ids.index(name)
        assert torch.equal(batch.images[place], torch.from_numpy(data.pictures.floats(number)))  # type: ignore[arg-type]
        assert torch.equal(batch.image_embed[place], data.image_embed[number])
        assert batch.text_encodings is not None
        assert data.text_encodings is not None
        words = data.text_encodings[number].float()
        assert torch.equal(batch.text_encodings[place, : len(words)], words)
        assert not batch.text_encodings[place, len(words) :].any()


def test_class_pictures_weigh_what_the_config_says(configured: Configured) -> None:
    values = configured()
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        values["preservation"]["weight"] = weight
        stage = staged(values)
        model = stage.model().eval()
        loss, figures = stage.loss(model, first_batch(stage))
        losses[weight] = float(loss.detach())
        subject, kept = float(figures["subject_loss"]), float(figures["class_loss"])
        assert losses[weight] == pytest.approx((subject + weight * kept) / 2, rel=1e-5)
    assert losses[0.0] < losses[1.0] < losses[2.0]


def test_any_number_of_processes_and_micro_batches_reads_the_same(configured: Configured) -> None:
    stage = staged(configured(balance_by="group", augment={}))
    whole, alone = first_batch(stage, 3), open_world("cpu", "fp32")
    assert stage.mixed is not None
    parts = []
    for rank in range(2):
        world = World(rank, 2, alone.device, "fp32", alone.accelerator)
        stream = stage.mixed.batches(stage.config.run.seed, 8, 2, world, 3)
        parts += [next(stream) for _ in range(2)]
    # what samples a moved picture rounds by the size of its batch
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images, atol=1e-6, rtol=0)
    assert [name for part in parts for name in part.ids] == list(whole.ids)


def test_captions_or_groups_are_drawn_equally_often(configured: Configured) -> None:
    stage = staged(configured(preserve=False, balance_by="group"))
    stream = stage.batches("train", open_world("cpu", "fp32"), 0)
    counts = Counter(name for _ in range(6) for name in next(stream).ids)
    assert set(counts.values()) == {2}
    assert len(counts) == 24


def test_training_pictures_are_moved_and_others_are_not(configured: Configured) -> None:
    plain, moving = (staged(configured(preserve=False, **data)) for data in ({}, {"augment": {}}))
    one, other = first_batch(plain), first_batch(moving)
    assert one.ids == other.ids
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(other.images, first_batch(moving, 3).images)
    assert torch.equal(first_batch(moving).images, other.images)
    draw = Draw(0, 0, 0, 4)
    rows = moving.val.rows(torch.arange(4), draw, torch.device("cpu"))
    assert torch.equal(rows.images, torch.from_numpy(moving.val.pictures.floats(torch.arange(4).numpy())))


def test_class_pictures_are_not_moved(configured: Configured) -> None:
    stage = staged(configured(augment={"shift": 0.2}))
    assert stage.mixed is not None
    assert stage.mixed.classes is not None
    batch = first_batch(stage)
    assert batch.is_class is not None
    place = int(batch.is_class.nonzero()[0])
    number = stage.mixed.classes.pictures.ids.index(batch.ids[place])
    assert torch.equal(batch.images[place], torch.from_numpy(stage.mixed.classes.pictures.floats(number)))  # type: ignore[arg-type]


def test_random_weights_have_no_class_to_keep(
    configured: Configured, tiny_world: Any, tmp_path: Path
) -> None:
    values = configured()
    values["model"] = tiny_world.config("decoder_train", tmp_path)["model"]
    with pytest.raises(ConfigError, match=r"preservation: expected null"):
        staged(values)


def test_the_command_trains_with_preservation_and_goes_on(
    configured: Configured, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = configured(balance_by="caption", augment={})
    assert command("decoder_train", values, tmp_path) == 0
    rows = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert {"train/subject_loss", "train/class_loss"} <= set(rows[1]) | set(rows[0])
    whole = (tmp_path / "run" / "weights.safetensors").read_bytes()
    broken = {**values, "run": {**values["run"], "dir": tmp_path / "again"}}
    monkeypatch.setattr(DecoderStage, "loss", _stopping(DecoderStage.loss, 3))
    with pytest.raises(KeyboardInterrupt):
        _fit(broken)
    monkeypatch.undo()
    assert command("decoder_train", broken, tmp_path) == 0
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == whole


def _stopping(loss: Any, after: int) -> Any:
    calls = iter(range(after))

    def counted(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return loss(*arguments)

    return counted


def _fit(values: dict[str, Any]) -> None:
    import decoder_train.__main__ as command

    command.main(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))


def test_drawings_that_copy_end_the_run_and_the_best_before_is_exported(
    configured: Configured, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = configured(preserve=False)
    values["stop"] = {"drawings": 4, "quantile": 0.1, "patience": 0}
    values["run"] |= {"steps": 6, "validate_every": 1, "preview_every": 6}

    def drawn(self: DecoderStage, model: Any, batch: DecoderBatch, seeds: Any) -> torch.Tensor:
        # from the third validation on, what training pictures are is drawn, and before it noise
        self.times = getattr(self, "times", 0) + 1  # type: ignore[attr-defined]
        if self.times > 2:  # type: ignore[attr-defined]
            return torch.from_numpy(self.train.pictures.floats(torch.arange(len(seeds)).numpy()))
        return torch.rand(len(seeds), 3, 16, 16)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DecoderStage, "_drawn", drawn)
        assert command("decoder_train", values, tmp_path) == 0
    run = tmp_path / "run"
    assert "stopped at step 2: drawings copy" in capsys.readouterr().err
    card = read_json(run / "weights.json")
    assert card["best"]["by"] == "uncopied_loss"
    assert card["best"]["step"] == card["step"] < 2
    assert card["stopped"].startswith("drawings copy")
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "val/copy_pixels" in row]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "val/uncopied_loss" in rows[1]
    assert "val/uncopied_loss" not in rows[2]
    assert rows[2]["val/copy_pixels"] < rows[2]["val/copy_pixels_real"]


def test_a_handful_of_pictures_may_be_judged_by_themselves(configured: Configured) -> None:
    values = configured(preserve=False, validate_split="train")
    stage = staged(values)
    assert stage.val.pictures.ids == stage.train.pictures.ids
    values["stop"] = {"drawings": 4}
    with pytest.raises(ConfigError, match=r"stop\.drawings"):
        staged(values)
