"""Bad input to the training rooms: one sentence, an exit status that is not 0, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("clip_train", "prior_train", "decoder_train", "caption_train")


@pytest.fixture
def refused(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Call with a room and a config: the one sentence that it is refused with, and no run folder."""

    def run(room: str, config: dict[str, Any], *words: str) -> str:
        capsys.readouterr()
        assert command(room, config, tmp_path, *words) == 1
        said = capsys.readouterr().err.strip()
        assert "\n" not in said, said
        assert "Traceback" not in said
        folder = config.get("run", config["data"]).get("dir", config["data"].get("out"))
        assert not Path(folder).exists(), sorted(Path(folder).rglob("*"))
        return said

    return run


@pytest.fixture(params=ROOMS)
def room(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copied(tiny_world: Any, tmp_path: Path) -> Any:
    """The tiny world again, to be spoilt."""
    shutil.copytree(tiny_world.folder / "data", tmp_path / "world" / "data")
    shutil.rmtree(tmp_path / "world" / "data" / "pixels")
    return type(tiny_world)(tmp_path / "world")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_batch_larger_than_the_data(
    room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = tiny_world.config(room, tmp_path / "run", optim__batch_size=25)
    assert "optim.batch_size: found 25, but the training split holds 24 samples; set it to 24" in refused(
        room, config
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(
    room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = tiny_world.config(room, tmp_path / "run", run__device="cuda")
    assert 'run.device: "cuda" was asked for, but this machine has no CUDA device' in refused(room, config)


def test_fp16_on_a_cpu(room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    config = tiny_world.config(room, tmp_path / "run", run__precision="fp16")
    assert 'run.precision: "fp16" on a CPU is slower' in refused(room, config)


def test_a_typo(room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    config = tiny_world.config(room, tmp_path / "run", optim__warmup_step=3)
    assert "optim.warmup_step is not a setting; did you mean optim.warmup_steps?" in refused(room, config)


def test_a_typo_in_the_network(
    room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = tiny_world.config(room, tmp_path / "run")
    config["model"]["scratch"] = {**config["model"]["scratch"], "atention": 3}
    assert "model.scratch: atention is not a setting" in refused(room, config)


def test_a_wrong_type(room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    config = tiny_world.config(room, tmp_path / "run", optim__lr="fast")
    assert 'optim.lr: found "fast", expected a valid number' in refused(room, config)


def test_numbers_that_do_not_divide(
    room: str, tiny_world: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = tiny_world.config(room, tmp_path / "run", optim__device_batch_size=3)
    assert "optim.device_batch_size: 3 does not divide the 8 samples" in refused(room, config)


def test_a_missing_config(room: str, tmp_path: Path) -> None:
    """The one case of a process of its own: what a shell sees."""
    words = [sys.executable, "-m", room, "--config", str(tmp_path / "none.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'none.json'}: there is no such config file")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["shards", "embeddings"])
def test_data_that_is_not_there_or_not_finished(
    copied: Any, tmp_path: Path, what: str, refused: Callable[..., str]
) -> None:
    config, folder = copied.config("decoder_train", tmp_path / "run"), copied.folder / "data" / what
    (folder / "manifest.json").unlink()
    assert f"{folder}: is not finished (no manifest.json); run python -m" in refused("decoder_train", config)
    shutil.rmtree(folder)
    assert f"{folder}: does not exist" in refused("decoder_train", config)


@pytest.mark.parametrize("room", ["clip_train", "decoder_train", "caption_train"])
def test_a_shard_cut_in_half(copied: Any, tmp_path: Path, room: str, refused: Callable[..., str]) -> None:
    cut(copied.shards / "train-000001.tar")
    said = refused(room, copied.config(room, tmp_path / "run"))
    assert "train-000001.tar: is " in said
    assert "(cut short?); run python -m scraper.pack" in said
    assert not (copied.folder / "data" / "pixels").exists()


@pytest.mark.parametrize("room", ["prior_train", "decoder_train"])
def test_embeddings_cut_in_half(copied: Any, tmp_path: Path, room: str, refused: Callable[..., str]) -> None:
    cut(copied.embeddings / "train-000000.safetensors")
    said = refused(room, copied.config(room, tmp_path / "run"))
    assert "train-000000.safetensors: is " in said
    assert "run python -m clip_train.embed" in said


def test_embeddings_of_another_clip(
    tiny_world: Any, copied: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = copied.embeddings / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    own, manifest["parents"]["clip"] = manifest["parents"]["clip"], "f" * 16
    path.write_text(json.dumps(manifest), encoding="utf-8")
    for name in ("prior_train", "decoder_train"):
        config = copied.config(name, tmp_path / "run")
        config["model"] = {"start": str(tiny_world.folder / "runs" / name)}
        said = refused(name, config)
        assert f"belongs to CLIP {own}, but {copied.embeddings} was made with CLIP {'f' * 16}" in said


def test_embeddings_of_other_shards(copied: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = copied.shards / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"hash": "', '"hash": "0'), encoding="utf-8")
    assert "made from shards " in refused("decoder_train", copied.config("decoder_train", tmp_path / "run"))


@pytest.mark.parametrize("room", ["clip_train", "prior_train", "decoder_train", "caption_train"])
def test_weights_of_another_architecture(
    tiny_world: Any, tmp_path: Path, room: str, refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_world.folder / "runs" / room, tmp_path / "start")
    other = "caption_train" if room == "clip_train" else "clip_train"
    shutil.copy(tiny_world.folder / "runs" / other / "weights.safetensors", tmp_path / "start")
    config = tiny_world.config(room, tmp_path / "run")
    config["model"] = {"start": str(tmp_path / "start")}
    said = refused(room, config)
    assert "weights.safetensors: lacks " in said
    assert "the weights are of another one" in said


@pytest.mark.parametrize("room", ["clip_train", "prior_train", "decoder_train", "caption_train"])
def test_weights_of_another_kind(
    tiny_world: Any, tmp_path: Path, room: str, refused: Callable[..., str]
) -> None:
    other = "decoder_train" if room == "clip_train" else "clip_train"
    config = tiny_world.config(room, tmp_path / "run")
    config["model"] = {"start": str(tiny_world.folder / "runs" / other)}
    assert "holds a " in refused(room, config)


def test_weights_cut_in_half(tiny_world: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(tiny_world.folder / "runs" / "clip_train", tmp_path / "start")
    cut(tmp_path / "start" / "weights.safetensors")
    config = tiny_world.config("clip_train", tmp_path / "run")
    config["model"] = {"start": str(tmp_path / "start")}
    assert "is not a whole safetensors file" in refused("clip_train", config)
    embed = {
        "data": {"shards": tiny_world.shards, "out": tmp_path / "out"},
        "model": {"clip": str(tmp_path / "start")},
    }
    assert "is not a whole safetensors file" in refused("clip_train.embed", embed)


def test_a_run_folder_of_another_config(
    room: str,
    tiny_world: Any,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_world.folder / "runs" / room
    assert command(room, tiny_world.config(room, folder, optim__lr=0.5), tmp_path) == 1
    assert "belongs to a run with optim.lr = 0.002, this config has 0.5" in capsys.readouterr().err


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux' /dev/full")
@pytest.mark.parametrize("name", ["config.json", "best.safetensors", "weights.safetensors"])
def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on_later(
    tiny_world: Any,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    config = tiny_world.config("prior_train", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{name}.part").symlink_to(FULL)  # every write to it fails as on a full disk
    assert command("prior_train", config, tmp_path) == 1
    said = capsys.readouterr().err.strip()
    assert (
        said
        == f"{tmp_path / 'run' / name}: the disk is full; free some space and run the same command again."
    )
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not (tmp_path / "run" / name).exists()
    assert command("prior_train", config, tmp_path) == 0
    straight = tiny_world.folder / "runs" / "prior_train"
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        straight / "weights.safetensors"
    ).read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux' /dev/full")
def test_embedding_onto_a_full_disk(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(tiny_world.folder / "runs" / "clip_train")
    config = {
        "data": {"shards": tiny_world.shards, "out": tmp_path / "out"},
        "model": {"clip": clip, "device": "cpu"},
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val-000000.safetensors.part").symlink_to(FULL)
    assert command("clip_train.embed", config, tmp_path) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "parents.json",
        "train-000000.safetensors",
    ]
    assert command("clip_train.embed", config, tmp_path) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for very little; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk]).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(
    tiny_world: Any,
    tmp_path: Path,
    small_disk: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_world.config("prior_train", small_disk / "run")
    assert command("prior_train", config, tmp_path) == 1
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert not list(small_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert command("prior_train", config, tmp_path) == 0
    straight = tiny_world.folder / "runs" / "prior_train"
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (small_disk / "run" / name).read_bytes() == (straight / name).read_bytes()
