"""Fine-tuning by adapters over two processes ends where one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_learn_the_adapters_of_one(tiny_world: Any, tmp_path: Path, command: Any) -> None:
    start = {"model__scratch": None, "model__start": str(tiny_world.folder / "runs" / "caption_train")}
    configs = {
        name: tiny_world.config("caption_train", tmp_path / name, **start, model__lora_rank=2)
        for name in ("alone", "together")
    }
    assert command("caption_train", configs["alone"], tmp_path) == 0
    path = tmp_path / "together.json"
    path.write_text(json.dumps(configs["together"], default=str), encoding="utf-8")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "caption_train"]
    done = subprocess.run(
        [sys.executable, *words, "--config", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    card = json.loads((tmp_path / "together" / "weights.json").read_text(encoding="utf-8"))
    assert card["world"]["processes"] == 2
    ours, theirs = (load_file(tmp_path / name / "adapter.safetensors") for name in ("together", "alone"))
    assert ours.keys() == theirs.keys()
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs])
    assert float((apart.abs() > 1e-4).float().mean()) < 0.03  # where Adam meets rounding noise around 0
