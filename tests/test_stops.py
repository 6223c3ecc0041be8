"""A run that is stopped in any way goes on and ends, byte for byte, as one that never was."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crest.errors import DataError, RunError
from crest.finite import NAMED
from crest.pixels import open_pictures
from crest.records import Split
from crest.world import World, open_world
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch
from prior_train.stage import PriorStage

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "crest"))
from toy_stage import ToyBatch, ToyStage, configs, train  # noqa: E402

from crest.loop import fit  # noqa: E402


def stop(folder: Path, *cases: str) -> tuple[dict[str, dict[str, Any]], str]:
    """What came of each case of stopped_toy.py, and what was said."""
    done = subprocess.run(
        [sys.executable, "tests/stopped_toy.py", str(folder), *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {told["case"]: told for told in json.loads(done.stdout.splitlines()[-1])}, done.stderr


def contents(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run but those that hold its own name or the time."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and "tfevents" not in path.name and path.name not in ("config.json", "weights.json")
    }


def assert_whole(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> None:
    straight = contents(folder / "straight" / "run")
    assert {"metrics.jsonl", "weights.safetensors", "best.safetensors"} <= straight.keys()
    for case, found in told.items():
        assert found["again"] == 0, case
        assert contents(folder / case / "run") == straight, case


ENDED_AT = {"micro": 4, "backward": 4, "moved": 5, "validate": 5}
"""place -> the last step that is finished there; nothing else is saved before step 7"""


@pytest.mark.parametrize("places", [("validate",), pytest.param(tuple(ENDED_AT), marks=pytest.mark.slow)])
def test_sigterm_saves_the_last_finished_step_and_sigkill_harms_nothing(
    tmp_path: Path, places: tuple[str, ...]
) -> None:
    told, said = stop(tmp_path, *(f"TERM@{place}" for place in places), "KILL@moved", "INT@backward")
    for place in places:
        step = ENDED_AT[place]
        found = told[f"TERM@{place}"]
        assert (found["status"], found["state"]) == (143, step), place
        assert found["seconds"] < 20
    assert (told["KILL@moved"]["status"], told["KILL@moved"]["state"]) == (-9, 0)
    assert (told["INT@backward"]["status"], told["INT@backward"]["state"]) == (130, 4)
    assert said.count("ended by SIGTERM; run the same command again to go on") == len(places)
    assert "Traceback" not in said
    assert_whole(tmp_path, told)


@pytest.mark.slow
def test_signals_at_random_moments_leave_a_run_that_goes_on(tmp_path: Path) -> None:
    chance = random.Random(5)
    cases = [f"{kind}@{chance.randint(1, 400)}ms" for kind in ("KILL", "TERM", "INT") for _ in range(8)]
    told, said = stop(tmp_path, *cases)
    allowed = {"KILL": {-9, 0}, "TERM": {143, 0}, "INT": {130, 0}}
    assert all(found["status"] in allowed[case.partition("@")[0]] for case, found in told.items())
    assert {found["status"] for found in told.values()} >= {-9, 143, 130}
    assert "Traceback" not in said
    assert_whole(tmp_path, told)


def assert_full(folder: Path, told: Mapping[str, Mapping[str, Any]], said: str) -> None:
    sentences = [line for line in said.splitlines() if "going on from" not in line]
    assert len(sentences) == len(told)
    for found, sentence in zip(told.values(), sentences, strict=True):
        assert found["status"] == 1
        assert sentence.startswith(str(folder))
        assert sentence.endswith(": the disk is full; free some space and run the same command again.")
    assert_whole(folder, told)


@pytest.mark.parametrize(
    "words",
    [
        ("state",),
        pytest.param(("weights.", "best.safetensors", "metrics.jsonl", "tfevents"), marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    told, said = stop(tmp_path, *(f"full@{word}" for word in words))
    assert_full(tmp_path, told, said)
    if "weights." in words:
        assert told["full@weights."]["state"] == 9  # all steps were made and saved


@pytest.mark.slow
def test_a_disk_may_be_full_from_any_write_on(tmp_path: Path) -> None:
    told, said = stop(tmp_path, *(f"full@{writes}" for writes in (*range(12), *range(12, 240, 6))))
    full = {case: found for case, found in told.items() if found["status"]}
    assert len(full) > 20
    assert any(found["state"] for found in full.values())
    assert_full(tmp_path, full, said)
    assert_whole(tmp_path, told)


class Steep(ToyStage):
    """A finite loss of which one sample's gradient is not: the slope of a square root at zero."""

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = super().loss(model, batch)
        if batch.draw.step == 3 and batch.draw.first == 2:
            loss = loss + (model(batch.inputs) * 0).sum().sqrt()
        return loss, figures


def ids_of(stage: ToyStage, step: int, micro: int) -> tuple[str, ...]:
    batches = stage.batches("train", open_world("cpu", "fp32"), step)
    return [next(batches).ids for _ in range(micro + 1)][micro]


def test_a_gradient_that_is_not_finite_stops_before_the_step_and_names_its_samples(tmp_path: Path) -> None:
    stage, sound = Steep(micro=2), ToyStage(micro=2)
    with pytest.raises(RunError, match="gradient at step 3 is not finite, though the loss is in") as caught:
        train(stage, tmp_path / "run", schedule="constant")
    assert f"in the micro-batch of {', '.join(ids_of(stage, 3, 1))};" in str(caught.value)
    train(sound, tmp_path / "sound", steps=3, schedule="constant")
    saved = (tmp_path / name / "state" / "step-00000003" / "model.safetensors" for name in ("run", "sound"))
    first, second = (path.read_bytes() for path in saved)
    assert first == second


def test_a_loss_that_is_not_finite_names_eight_samples_and_keeps_what_was_learned(tmp_path: Path) -> None:
    stage = ToyStage(batch_size=10, micro=10)
    stage.spoil_step = 7  # save_every is 5
    with pytest.raises(RunError) as caught:
        train(stage, tmp_path / "run", batch_size=10)
    names = ids_of(stage, 7, 0)
    assert f"in the micro-batch of {', '.join(names[:NAMED])} and 2 more; the weights" in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-00000007"]
    stage.spoil_step = -1  # mended
    train(stage, tmp_path / "run", batch_size=10)
    straight = ToyStage(batch_size=10, micro=10)
    train(straight, tmp_path / "straight", batch_size=10)
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


class Overflowing(ToyStage):
    """Gradients that fp16 can't hold when the loss is scaled by more than a limit."""

    limit = 2.0**14

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = super().loss(model, batch)
        if loss.requires_grad:
            loss.register_hook(lambda scale: torch.where(scale > self.limit, torch.inf, scale))
        return loss, figures


def scaled_world() -> World:
    """fp16's scaling where there is no CUDA device: the scaler is torch's, the arithmetic fp32."""
    world = open_world("cpu", "fp32")
    world.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=4)
    return world


def train_scaled(stage: ToyStage, folder: Path, world: World, steps: int) -> None:
    run, optim = configs(folder, steps, log_every=1, save_every=2, schedule="constant")
    recipe = {"run": run.model_dump(mode="json"), "optim": optim.model_dump(mode="json")}
    fit(stage, run, optim, recipe=recipe, world=world)


def test_fp16_skips_steps_that_overflow_counts_them_and_goes_on_with_its_scale(tmp_path: Path) -> None:
    train_scaled(Overflowing(), tmp_path / "straight", scaled_world(), 9)
    rows = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/loss_scale" in row]
    assert logged[0]["train/loss_scale"] == 2.0**16
    assert logged[2]["train/loss_scale"] == 2.0**14
    assert logged[-1]["train/skipped_steps"] >= 2

    class Stopping(Overflowing):
        def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
            if batch.draw.step == 5:
                raise KeyboardInterrupt
            return super().loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train_scaled(Stopping(), tmp_path / "stopped", scaled_world(), 9)
    train_scaled(Overflowing(), tmp_path / "stopped", scaled_world(), 9)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_fp16_stops_when_its_scale_has_collapsed(tmp_path: Path) -> None:
    class Hopeless(Overflowing):
        limit = 0.0

    with pytest.raises(RunError, match=r"gradient at step 1[78] is not finite"):
        train_scaled(Hopeless(), tmp_path / "run", scaled_world(), 40)


class StopsAtTwo(PriorStage):
    """Whose data ends the run in its third step."""

    def batches(self, split: Split, world: World, start: int) -> Iterator[PriorBatch]:
        for number, batch in enumerate(super().batches(split, world, start), start):
            if number == 2:
                raise KeyboardInterrupt
            yield batch


def test_embeddings_that_are_damaged_meanwhile_are_named_and_the_run_goes_on_once_they_are_back(
    tiny_world: Any, tmp_path: Path
) -> None:
    plain = tiny_world.config("prior_train", tmp_path / "run")
    embeddings = tmp_path / "embeddings"
    shutil.copytree(Path(plain["data"]["embeddings"]), embeddings)
    plain["data"]["embeddings"] = str(embeddings)
    config = PriorTrainConfig.model_validate(json.loads(json.dumps(plain, default=str)))

    def train_prior(stage: type[PriorStage]) -> Path:
        recipe = config.model_dump(mode="json")
        return fit(stage(config), config.run, config.optim, recipe=recipe)

    with pytest.raises(KeyboardInterrupt):
        train_prior(StopsAtTwo)
    shard = next(embeddings.glob("train-*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{shard}: .*run python -m clip_train.embed .*again"):
        train_prior(PriorStage)
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard}: .*run python -m clip_train.embed .*again"):
        train_prior(PriorStage)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-00000002"]
    shard.write_bytes(whole)
    assert train_prior(PriorStage).exists()


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_decoded_pictures_that_vanish_are_named_and_made_again(
    tiny_world: Any, tmp_path: Path, harm: str
) -> None:
    shards = tmp_path / "data" / "shards"
    shutil.copytree(Path(tiny_world.config("decoder_train", tmp_path)["data"]["shards"]), shards)
    pictures = open_pictures(shards, "train", 16)
    before = pictures.floats(np.arange(2))
    path = Path(pictures.pixels.filename)  # type: ignore[attr-defined]
    if harm == "removed":
        path.unlink()
    else:
        os.truncate(path, 100)  # a read beyond the end would be SIGBUS
    with pytest.raises(DataError, match=rf"{path}: (is gone|holds 100 bytes).*run the same command again"):
        pictures.floats(np.arange(2))
    if harm == "cut short":
        with pytest.raises(DataError, match="holds 100 bytes"):
            open_pictures(shards, "train", 16)
        path.unlink()
    assert np.array_equal(open_pictures(shards, "train", 16).floats(np.arange(2)), before)
