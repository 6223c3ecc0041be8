"""What is kept after training: between start and tuned, within the drift allowed, with a report of both."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crest.adapters import load_adapter
from crest.errors import CrestError
from crest.models.clip import load_clip, load_clip_model
from crest.shards import read_samples, write_shards

Command = Callable[..., int]
KINDS = ("equal_captions", "near_captions", "equal_pictures", "near_pictures")


def tuned(tiny_world: Any, run_dir: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = tiny_world.config("clip_train", run_dir, **changes)
    config["model"] = {
        "start": str(tiny_world.folder / "runs" / "clip_train"),
        "mode": "full",
        **config["model"],
    }
    config["model"].pop("scratch")
    return config


def report(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return found


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_kept_weights_lie_between_start_and_tuned(
    tiny_world: Any, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("clip_train.wise.max", lambda worth, **_: 0.25, raising=False)
    config = tuned(tiny_world, tmp_path / "run", model__mode=mode, model__lora_rank=2, optim__lr=0.05)
    config["judge"] = {"wise_ft": [0, 0.25, 1], "bootstrap": 10, "max_drift": None}
    # the best weights are the last: whatever is kept must differ from both ends
    monkeypatch.setattr("crest.loop._validate", _always_best)
    assert command("clip_train", config, tmp_path) == 0
    start = load_file(tiny_world.folder / "runs" / "clip_train" / "weights.safetensors")
    best = load_file(tmp_path / "run" / "best.safetensors")
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    moved = [name for name in start if not torch.equal(start[name], best[name])]
    assert moved
    for name in start:
        wanted = torch.lerp(start[name], best[name], 0.25) if name in moved else start[name]
        assert torch.allclose(kept[name], wanted, atol=1e-6), name
    if mode == "lora":  # the adapter alone, on the start, is the kept model
        model = load_clip_model(tiny_world.folder / "runs" / "clip_train")[0].eval()
        load_adapter(tmp_path / "run" / "adapter.safetensors", model)
        pictures = torch.rand(2, 3, model.side_px, model.side_px)
        whole = load_clip(tmp_path / "run").encode_image(pictures)
        assert torch.allclose(model.embed_images(pictures), whole, atol=1e-5)
    found = report(tmp_path / "run")
    assert found["alpha"] == 0.25
    assert [row["alpha"] for row in found["wise"]] == [0, 0.25, 1]
    assert found["wise"][0]["metrics"]["drift"] == 0 < found["wise"][2]["metrics"]["drift"]
    assert found["probe"]["drift"] == found["wise"][1]["metrics"]["drift"]
    for figures in (found["before"], found["after"]):
        assert figures["r_at_5_low"] <= figures["r_at_5"] <= figures["r_at_5_high"]
    card = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert (card["wise_ft"], card["mode"], card["metrics"]) == (0.25, mode, found["after"])


def _always_best(stage: Any, state: Any, world: Any, tracker: Any, run: Any) -> None:
    from crest.checkpoint import export_weights

    state.best, state.best_step = float(state.step), state.step
    export_weights(run.dir, state.ema.model, stage.card(state.ema.model), name="best.safetensors")


def test_weights_that_forgot_too_much_are_not_promoted(
    tiny_world: Any, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("crest.loop._validate", _always_best)
    config = tuned(tiny_world, tmp_path / "run", optim__lr=0.5)
    config["judge"] = {"max_drift": 1e-7, "wise_ft": [0.5, 1], "bootstrap": 0}
    for _ in range(2):  # asking again does not help
        assert command("clip_train", config, tmp_path) == 1
        said = capsys.readouterr().err
        assert "judge.max_drift = 1e-07" in said
        assert not (tmp_path / "run" / "weights.safetensors").exists()
        assert (tmp_path / "run" / "refused.weights.safetensors").exists()
    with pytest.raises(CrestError):
        load_clip(tmp_path / "run")
    assert "drifted by" in report(tmp_path / "run")["refused"]
    assert (tmp_path / "run" / "index.html").exists()


def test_a_finished_run_is_left_as_it_is(
    tiny_world: Any, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tuned(tiny_world, tmp_path / "run", model__mode="features")
    assert command("clip_train", config, tmp_path) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert command("clip_train", config, tmp_path) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == files
    assert "finished before" in capsys.readouterr().out


def test_the_choice_is_made_again_where_it_was_interrupted(
    tiny_world: Any, tmp_path: Path, command: Command
) -> None:
    config = tuned(tiny_world, tmp_path / "run", optim__lr=0.05)
    assert command("clip_train", config, tmp_path) == 0
    kept, found = (tmp_path / "run" / "weights.safetensors").read_bytes(), report(tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()  # killed between the weights and the report
    assert command("clip_train", config, tmp_path) == 0
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == kept
    assert report(tmp_path / "run") == found


@pytest.mark.parametrize("mode", ["full", "lora", "features"])
def test_siglip_lends_a_bias_and_takes_it_back(
    tiny_world: Any, tmp_path: Path, command: Command, mode: str
) -> None:
    config = tuned(tiny_world, tmp_path / "run", model__mode=mode, model__loss="siglip", model__lora_rank=2)
    assert command("clip_train", config, tmp_path) == 0
    start = load_file(tiny_world.folder / "runs" / "clip_train" / "weights.safetensors")
    assert load_file(tmp_path / "run" / "weights.safetensors").keys() == start.keys()
    load_clip(tmp_path / "run")


def test_all_that_did_not_take_part_is_counted_and_shown(
    tiny_world: Any, tmp_path: Path, command: Command
) -> None:
    splits: Any = {split: list(read_samples(tiny_world.shards, split)) for split in ("train", "val")}
    train, val = splits["train"], splits["val"]
    for split, place in (("train", 3), ("train", 9), ("val", 1)):
        splits[split][place] = replace(splits[split][place], image=splits[split][place].image[:-30])
    train[0], train[1] = replace(train[0], caption="crest"), replace(train[1], caption="Crest ")
    write_shards(tmp_path / "data" / "shards", splits, samples_per_shard=99, parents={})
    data = {"data__shards": tmp_path / "data" / "shards", "data__max_damaged_share": 0.2}
    for name in ("first", "second"):  # which finds the pictures decoded
        config = tuned(tiny_world, tmp_path / name, **data, data__validate_samples=5, model__mode="features")
        assert command("clip_train", config, tmp_path) == 0
        dropped = report(tmp_path / name)["dropped"]
        assert dropped["broken_picture"] == 3
        assert dropped["captions_cut"] == len(train) - 2 - 2  # all but the short ones and the damaged
        assert dropped["held_out_captions_cut"] == len(val) - 1
        assert dropped["held_out_not_compared"] == len(val) - 1 - 5
        assert dropped["negatives_with_equal_captions"] >= 1
        assert {f"negatives_with_{kind}" for kind in KINDS} < set(dropped)
        page = (tmp_path / name / "index.html").read_text(encoding="utf-8")
        for reason, count in dropped.items():
            row = f'<th scope="row">{reason.replace("_", " ")}</th><td class="number">{count}</td>'
            assert (row in page) is (count > 0), reason


def test_training_stops_when_nothing_gets_better(
    tiny_world: Any, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuned(tiny_world, tmp_path / "run", run__steps=40, run__validate_every=2, optim__lr=1e-12)
    config["judge"] = {"patience": 3, "bootstrap": 0}
    assert command("clip_train", config, tmp_path) == 0
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 6
    assert report(tmp_path / "run")["stopped_early_at"] == 6


def test_a_rate_that_blows_the_loss_up_is_told(
    tiny_world: Any, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from clip_train import stage

    real, calls = stage.softmax_loss, iter(range(100))
    monkeypatch.setattr(stage, "softmax_loss", lambda *given: real(*given) * (1 if next(calls) < 3 else 99))
    assert command("clip_train", tuned(tiny_world, tmp_path / "run"), tmp_path) == 1
    said = capsys.readouterr().err
    assert "the loss at step " in said
    assert "optim.lr (it is 0.002; a tenth of it, say)" in said
