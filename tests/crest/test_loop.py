"""The one training loop, driven by the smallest Stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crest.errors import DataError, RunError
from crest.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parent))
from toy_stage import SAMPLES, ToyBatch, ToyStage, configs, train  # noqa: E402


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but TensorBoard's, whose events carry times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name
    }


def test_the_loss_falls_and_both_best_and_last_are_kept(tmp_path: Path) -> None:
    path = train(ToyStage(), tmp_path / "run", steps=60)
    losses = [row["val/loss"] for row in rows(tmp_path / "run") if "val/loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert path == tmp_path / "run" / "weights.safetensors"
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["kind"], card["step"], card["recipe"]["optim"]["lr"]) == ("toy", 60, 0.02)
    assert card["best"]["value"] == pytest.approx(min(losses), abs=1e-6)
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert [state.name for state in (tmp_path / "run" / "state").iterdir()] == ["step-00000060"]
    assert len(list((tmp_path / "run").glob("events.out.tfevents*"))) == 1


def test_what_is_logged_is_logged_when_it_is_due(tmp_path: Path) -> None:
    train(ToyStage(), tmp_path, steps=9)
    trained = [row["step"] for row in rows(tmp_path) if "train/loss" in row]
    judged = [row["step"] for row in rows(tmp_path) if "val/loss" in row]
    assert (trained, judged) == ([2, 4, 6, 8, 9], [0, 6, 9])
    assert {"train/loss", "train/bias", "train/grad_norm", "train/lr"} <= rows(tmp_path)[1].keys()


def test_the_best_weights_are_exported_where_the_last_are_worse(tmp_path: Path) -> None:
    class Declining(ToyStage):
        def validate(self, model: nn.Module, world: object) -> dict[str, float]:
            self.judged = getattr(self, "judged", 0) + 1
            return {"loss": abs(self.judged - 2.0)}  # best at its second validation, step 6

    best = train(Declining(), tmp_path / "best", steps=18, export_best=True)
    assert json.loads(best.with_suffix(".json").read_text(encoding="utf-8"))["step"] == 6
    six = train(ToyStage(), tmp_path / "six", steps=6, schedule="constant", warmup_steps=0, lr=0.01)
    again = train(
        Declining(), tmp_path / "b", steps=18, export_best=True, schedule="constant", warmup_steps=0, lr=0.01
    )
    assert all(torch.equal(load_file(again)[name], value) for name, value in load_file(six).items())


def test_what_is_exported_is_the_average_over_the_steps(tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in ToyStage().network.state_dict().items()}
    average = load_file(train(ToyStage(), tmp_path / "average", steps=1, warmup_steps=0))
    last = load_file(train(ToyStage(), tmp_path / "last", steps=1, warmup_steps=0, ema_decay=0.0))
    for name, value in start.items():  # after the first step the factor is 1/10, not yet 0.9
        assert torch.allclose(average[name], value + 0.9 * (last[name] - value), atol=1e-6)
        assert not torch.equal(last[name], value)


def test_accumulated_micro_batches_equal_the_batch(tmp_path: Path) -> None:
    whole = load_file(train(ToyStage(micro=8), tmp_path / "whole", ema_decay=0.0))
    for micro in (4, 2):
        parts = load_file(train(ToyStage(micro=micro), tmp_path / f"micro_{micro}", ema_decay=0.0))
        assert all(torch.allclose(parts[name], whole[name], atol=1e-5) for name in whole)
    assert rows(tmp_path / "whole")[1]["train/loss"] == pytest.approx(
        rows(tmp_path / "micro_2")[1]["train/loss"], abs=2e-6
    )


class OneWeight(ToyStage):
    """A single weight whose gradient is 1, then 100."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.step = 0

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.step += 1
        return model(torch.ones(1, 1)).sum() * (1.0 if self.step == 1 else 100.0), {}

    def validate(self, model: nn.Module, world: object) -> dict[str, float]:
        return {}


def test_long_gradients_are_clipped_to_their_length(tmp_path: Path) -> None:
    path = train(
        OneWeight(),
        tmp_path,
        steps=2,
        clip_grad_norm=1.0,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        ema_decay=0.0,
    )
    # Adam's step for a constant gradient is the learning rate; unclipped, the second one would be 0.75 of it
    assert float(load_file(path)["weight"]) == pytest.approx(-2 * 0.02, abs=1e-6)
    assert [row["train/grad_norm"] for row in rows(tmp_path) if "train/grad_norm" in row] == [100.0]


def test_weight_decay_touches_matrices_only() -> None:
    _, optim = configs(Path("run"), weight_decay=0.5)
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model[0].weight.requires_grad_(True)
    decayed, kept = build_optimizer(model, optim).param_groups
    assert [weight.ndim for weight in decayed["params"]] == [2]
    assert [weight.ndim for weight in kept["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_it(tmp_path: Path) -> None:
    spoilt, sound = ToyStage(), ToyStage()
    spoilt.spoil_step = 4
    with pytest.raises(
        RunError, match=r"run: the loss at step 4 is nan, not a finite number.*Lower optim\.lr"
    ):
        train(spoilt, tmp_path / "run", schedule="constant")
    train(sound, tmp_path / "sound", steps=4, schedule="constant")
    assert all(
        torch.equal(value, sound.network.state_dict()[name])
        for name, value in spoilt.network.state_dict().items()
    )
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.5}, r"optim\.lr = 0\.02, this config has 0\.5"),
        ({"steps": 31}, r"run\.steps = 6, this config has 31"),
        ({"device": "auto", "warmup_steps": 9}, r"optim\.warmup_steps = 3, this config has 9"),
    ],
)
def test_a_run_folder_of_another_config_is_refused_by_the_setting(
    tmp_path: Path, settings: dict[str, object], named: str
) -> None:
    train(ToyStage(), tmp_path, steps=6)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=rf"belongs to a run with {named}; name another run\.dir"):
        train(ToyStage(), tmp_path, **{"steps": 6, **settings})
    assert contents(tmp_path) == before


def test_how_finely_a_run_is_watched_may_change(tmp_path: Path) -> None:
    stage = ToyStage()
    stage.spoil_step = 7
    with pytest.raises(RunError, match="not a finite"):
        train(stage, tmp_path, steps=12)
    train(ToyStage(), tmp_path, steps=12, log_every=1, save_every=3, preview_every=5)
    assert (tmp_path / "weights.safetensors").exists()


def test_a_finished_run_says_so_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(ToyStage(), tmp_path, steps=6)
    before = contents(tmp_path)
    capsys.readouterr()
    train(ToyStage(), tmp_path, steps=6)
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_batch_larger_than_the_data_leaves_no_folder_behind(tmp_path: Path) -> None:
    stage = ToyStage(batch_size=SAMPLES + 1, micro=SAMPLES + 1)
    with pytest.raises(
        DataError, match=r"optim\.batch_size: found 41, but the training split holds 40 samples"
    ):
        train(stage, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(ToyStage(), tmp_path / "run", steps=2)  # the corrected config is not refused


def test_a_run_of_no_steps_exports_what_it_started_from(tmp_path: Path) -> None:
    stage = ToyStage()
    path = train(stage, tmp_path, steps=0)
    assert all(
        torch.equal(value, stage.network.state_dict()[name]) for name, value in load_file(path).items()
    )


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_moments_ends_as_one_that_never_stopped(tmp_path: Path, seed: int) -> None:
    straight = ToyStage(batch_size=8, micro=4, dropout=0.3)
    train(straight, tmp_path / "straight" / "run")
    script = [sys.executable, "tests/crest/toy_stage.py", str(tmp_path / "killed" / "run"), "5", str(seed)]
    done = subprocess.run(
        script,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["died", "5"]
    ours, theirs = contents(tmp_path / "straight" / "run"), contents(tmp_path / "killed" / "run")
    for files in (ours, theirs):  # which name their own folder
        del files["config.json"], files["weights.json"]
    assert theirs == ours


def test_averages_on_the_host_end_as_those_beside_the_model_and_may_change_places(tmp_path: Path) -> None:
    beside = load_file(train(ToyStage(), tmp_path / "beside", steps=10, schedule="constant"))
    train(ToyStage(), tmp_path / "host", steps=10, schedule="constant", ema_device="cpu")
    stopping, left = ToyStage(), iter(range(7))

    def stop() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    stopping.on_batch = stop
    with pytest.raises(KeyboardInterrupt):
        train(stopping, tmp_path / "moved", steps=10, schedule="constant")
    train(ToyStage(), tmp_path / "moved", steps=10, schedule="constant", ema_device="cpu")
    for folder in ("host", "moved"):
        found = load_file(tmp_path / folder / "weights.safetensors")
        assert all(torch.equal(found[name], beside[name]) for name in beside)
