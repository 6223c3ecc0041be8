"""`torchrun --nproc_per_node 2` really trains in two processes, and as one with the same global batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("clip_train", "prior_train", "decoder_train", "caption_train")


def launch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*torchrun, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment
    )


def launch_split(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """As the README does it where a model's training does not fit one card."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    split = ["--config_file", "configs/accelerate/fsdp.yaml", "--main_process_port", str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*accelerate, *split, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def write_configs(world: Any, folder: Path) -> dict[str, Path]:
    """Of runs in `folder` on a copy of the data whose pictures nobody has decoded yet."""
    shutil.copytree(world.folder / "data", folder / "data")
    shutil.rmtree(folder / "data" / "pixels")
    here = type(world)(folder)
    paths = {room: folder / f"{room}.json" for room in ROOMS}
    for room, path in paths.items():
        path.write_text(json.dumps(here.config(room, folder / "runs" / room), default=str), encoding="utf-8")
    return paths


def figures(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_like_one_process(world: Any, folder: Path, room: str) -> None:
    alone, together = world.folder / "runs" / room, folder / "runs" / room
    card = json.loads((together / "weights.json").read_text(encoding="utf-8"))
    assert card["world"] == {"processes": 2, "device": "cpu", "precision": "fp32"}
    for ours, theirs in zip(figures(together), figures(alone), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if (
                "rank" not in name and "r_at" not in name
            ):  # which jump where two similarities are nearly equal
                assert ours[name] == pytest.approx(value, rel=2e-3, abs=2e-4), (room, name)
    states = [run / "state" / "step-00000004" / "model.safetensors" for run in (together, alone)]
    left, right = (load_file(path) for path in states)
    start = load_file(alone / "best.safetensors")
    apart = torch.cat([(left[name] - right[name]).flatten().float() for name in right])
    # Adam gives a gradient that is rounding noise around 0 a whole step, so some weights may differ by one
    assert float((apart.abs() > 1e-4).float().mean()) < 0.03, room
    assert start.keys() == {name.removeprefix("clip.") for name in right}  # OpenCLIP's names in its file


@pytest.fixture(scope="module")
def trained(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    paths = write_configs(tiny_world, folder)
    done = launch(
        ROOT / "tests" / "train_rooms.py", folder, *(f"{room}={path}" for room, path in paths.items())
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_two_processes_really_ran(trained: Path) -> None:
    ranks = sorted(trained.glob("rank-*"))
    assert [path.name for path in ranks] == ["rank-0-of-2", "rank-1-of-2"]
    assert len({path.read_text(encoding="utf-8") for path in ranks}) == 2


@pytest.mark.parametrize("room", ROOMS)
def test_two_processes_match_one_with_the_same_global_batch(
    tiny_world: Any, trained: Path, room: str
) -> None:
    assert_like_one_process(tiny_world, trained, room)


def test_what_rests_is_not_moved_by_its_gradient_of_zero(tiny_world: Any, trained: Path) -> None:
    """AdamW would decay the U-Net and count its steps while the sketch learns alone."""
    path = Path("runs") / "decoder_train" / "state" / "step-00000004" / "model.safetensors"
    together, alone = (load_file(folder / path) for folder in (trained, tiny_world.folder))
    apart = [(together[name] - alone[name]).abs().flatten() for name in alone if name.startswith("unet.")]
    assert float(torch.cat(apart).mean()) < 1e-6  # about 1e-10; 8e-6 where the zeros reach the optimizer


def test_two_processes_leave_one_record(trained: Path) -> None:
    for room in ROOMS:
        assert len(list((trained / "runs" / room).glob("events.out.tfevents*"))) == 1
        assert not list((trained / "runs" / room).rglob("*.part"))
    assert not list((trained / "data" / "pixels").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_the_command_of_the_readme(tiny_world: Any, tmp_path: Path, room: str) -> None:
    path = write_configs(tiny_world, tmp_path)[room]
    done = launch("-m", room, "--config", path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_like_one_process(tiny_world, tmp_path, room)


@pytest.mark.slow
def test_a_mistake_ends_both_processes(tiny_world: Any, tmp_path: Path) -> None:
    path = write_configs(tiny_world, tmp_path)["prior_train"]
    path.write_text(
        path.read_text(encoding="utf-8").replace('"batch_size": 8', '"batch_size": 7'), encoding="utf-8"
    )
    done = launch("-m", "prior_train", "--config", path)
    assert done.returncode != 0
    assert "optim.batch_size: 7 over 2 processes does not divide; take a multiple of 2." in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_kept_activations_are_computed_by_one_process_and_read_by_both(
    tiny_world: Any, tmp_path: Path
) -> None:
    path = write_configs(tiny_world, tmp_path)["clip_train"]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"] = {"start": str(tiny_world.folder / "runs" / "clip_train"), "mode": "top_k", "top_k": 1}
    weights = []
    for name in ("together", "alone"):
        config["run"]["dir"] = str(tmp_path / name)
        path.write_text(json.dumps(config), encoding="utf-8")
        words = ("-m", "clip_train", "--config", path)
        if name == "together":
            done = launch(*words)
        else:
            done = subprocess.run(
                [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True
            )
        assert done.returncode == 0, done.stderr[-4000:]
        weights.append(load_file(tmp_path / name / "best.safetensors"))
    assert not list((tmp_path / "data" / "activations").glob("*.part"))
    apart = torch.cat([(weights[0][name] - weights[1][name]).flatten().float() for name in weights[1]])
    assert float((apart.abs() > 1e-4).float().mean()) < 0.03


@pytest.mark.parametrize("room", ["prior_train", "decoder_train"])
@pytest.mark.slow
def test_split_weights_end_as_one_process(tiny_world: Any, tmp_path: Path, room: str) -> None:
    path = write_configs(tiny_world, tmp_path)[room]
    done = launch_split("-m", room, "--config", path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_like_one_process(tiny_world, tmp_path, room)


def alone(folder: Path, steps: int = 12) -> dict[str, torch.Tensor]:
    """The weights of the toy that one process trains."""
    folder.mkdir()
    toy = [sys.executable, "tests/split_toy.py", str(folder), str(steps)]
    subprocess.run(toy, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return load_file(folder / "run" / "weights.safetensors")


def assert_equal_but_for_rounding(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], atol=2e-4), name  # Adam's step is 2e-2


@pytest.mark.slow
def test_split_weights_take_half_the_memory_and_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    """Two split processes are ended by SIGTERM to one of them, one process goes on, then two that split."""
    straight = alone(tmp_path / "alone")
    folder = tmp_path / "split"
    folder.mkdir()
    done = launch_split("tests/split_toy.py", folder, "12", "stop:5")
    assert "ended by SIGTERM; run the same command again to go on" in done.stderr
    assert done.returncode != 0
    assert [state.name for state in (folder / "run" / "state").iterdir()] == ["step-00000005"]
    whole = json.loads((tmp_path / "alone" / "held-0.json").read_text(encoding="utf-8"))
    for rank in range(2):
        held = json.loads((folder / f"held-{rank}.json").read_text(encoding="utf-8"))
        assert 0.45 < held / whole < 0.55
    one = [sys.executable, "tests/split_toy.py", str(folder), "12", "stop:8"]
    assert subprocess.run(one, cwd=ROOT, capture_output=True, timeout=300).returncode == 143
    assert [state.name for state in (folder / "run" / "state").iterdir()] == ["step-00000008"]
    done = launch_split("tests/split_toy.py", folder, "12")
    assert done.returncode == 0, done.stderr[-4000:]
    assert_equal_but_for_rounding(load_file(folder / "run" / "weights.safetensors"), straight)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    straight, folder = alone(tmp_path / "alone"), tmp_path / "changed"
    folder.mkdir()
    one = [sys.executable, "tests/split_toy.py", str(folder), "12", "stop:3"]
    assert subprocess.run(one, cwd=ROOT, capture_output=True, timeout=300).returncode == 143
    done = launch("tests/split_toy.py", folder, "12", "stop:7")
    assert done.returncode != 0
    assert [state.name for state in (folder / "run" / "state").iterdir()] == ["step-00000007"]
    subprocess.run(one[:-1], cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert_equal_but_for_rounding(load_file(folder / "run" / "weights.safetensors"), straight)
    assert [row["step"] for row in figures(folder / "run")] == [
        row["step"] for row in figures(tmp_path / "alone" / "run")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("together", [launch, launch_split])
def test_processes_agree_on_what_is_not_finite_and_name_it(tmp_path: Path, together: Any) -> None:
    done = together("tests/split_toy.py", tmp_path, "12", "nan:6")
    assert done.returncode != 0
    sentences = [line for line in done.stderr.splitlines() if "the loss at step 6 is nan" in line]
    assert len(sentences) == 2
    assert len(set(sentences)) == 1
    assert "in the micro-batch of logo-" in sentences[0]
    assert [state.name for state in (tmp_path / "run" / "state").iterdir()] == ["step-00000006"]
