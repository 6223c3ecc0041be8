"""Every stage on every device: drawn logos -> CLIP -> embeddings -> prior, decoder, captioner -> a picture.

`make gpu-check` runs the CUDA cases; the CPU case keeps them honest where there is no GPU.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crest.records import Split
from crest.shards import Sample, png_bytes, write_shards
from tests.conftest import draw_logo

DEVICES = [
    pytest.param("cpu", "fp32", marks=pytest.mark.slow),
    pytest.param("cuda", "fp32", marks=pytest.mark.gpu),
    pytest.param("cuda", "bf16", marks=pytest.mark.gpu),
    pytest.param("cuda", "fp16", marks=pytest.mark.gpu),
]
WIDTH = 48
OPTIM = {"lr": 1e-3, "batch_size": 8, "ema_decay": 0.5}
CLIP = {
    "custom": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": WIDTH, "head_width": 24},
        "text_cfg": {"context_length": 24, "vocab_size": 714, "width": WIDTH, "heads": 2, "layers": 1},
    },
    "bpe_merges": 200,
}
PRIOR = {"max_text_len": 24, "depth": 1, "heads": 2, "dim_head": 24, "timesteps": 50}
DECODER = {
    "side_px": 32,
    "max_text_len": 24,
    "dim": 8,
    "dim_mults": [1, 2],
    "self_attn": [False, True],
    "attn_heads": 2,
    "attn_dim_head": 16,
    "timesteps": 50,
}
CAPTIONER = {"side_px": 32, "patch_px": 8, "width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}


def pack(folder: Path) -> Path:
    def samples(first: int, count: int) -> list[Sample]:
        return [
            Sample(
                f"{number:016x}",
                png_bytes(draw_logo(number)),
                f"Logo number {number}.",
                {"group": str(number)},
            )
            for number in range(first, first + count)
        ]

    splits: dict[Split, list[Sample]] = {
        "train": samples(0, 24),
        "val": samples(24, 6),
        "test": samples(30, 6),
    }
    write_shards(folder, splits, samples_per_shard=100, parents={})
    return folder


def train(room: str, path: Path, values: dict[str, Any]) -> None:
    """Run a room's command as a user would, with this config."""
    import importlib

    from configs.make_schema import config_class
    from crest.config import load_config

    path.write_text(json.dumps(values))
    config = load_config(config_class(path.stem.partition("_")[0]), path)
    importlib.import_module(room if room.endswith("embed") else f"{room}.__main__").main(config)


def losses(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize(("device", "precision"), DEVICES)
def test_every_stage_learns_and_the_chain_draws(device: str, precision: str, tmp_path: Path) -> None:
    shards = str(pack(tmp_path / "data" / "shards"))
    embeddings = str(tmp_path / "data" / "embeddings" / "clip")

    def run(name: str, steps: int) -> dict[str, Any]:
        where = str(tmp_path / "runs" / name)
        return {"dir": where, "steps": steps, "device": device, "precision": precision, "log_every": 1}

    train(
        "clip_train",
        tmp_path / "clip.json",
        {"run": run("clip", 6), "data": {"shards": shards}, "model": {"scratch": CLIP}, "optim": OPTIM},
    )
    model = {"clip": str(tmp_path / "runs" / "clip"), "device": device}
    train(
        "clip_train.embed",
        tmp_path / "embed.json",
        {"data": {"shards": shards, "out": embeddings}, "model": model},
    )
    train(
        "prior_train",
        tmp_path / "prior.json",
        {
            "run": run("prior", 6),
            "data": {"embeddings": embeddings, "shards": shards},
            "model": {"scratch": PRIOR | {"image_embed_dim": WIDTH, "text_width": WIDTH}},
            "optim": OPTIM,
        },
    )
    train(
        "decoder_train",
        tmp_path / "decoder_32.json",
        {
            "run": run("decoder_32", 6),
            "data": {"shards": shards, "embeddings": embeddings},
            "model": {
                "scratch": DECODER | {"image_embed_dim": WIDTH, "text_width": WIDTH},
                "preview_steps": 2,
            },
            "optim": OPTIM,
        },
    )
    train(
        "caption_train",
        tmp_path / "captioner.json",
        {
            "run": run("captioner", 6),
            "data": {"records": shards},
            "model": {"scratch": CAPTIONER, "vocabulary_size": 300},
            "optim": OPTIM,
        },
    )
    for name in ("clip", "prior", "decoder_32", "captioner"):
        trained = losses(tmp_path / "runs" / name, "train/loss")
        assert len(trained) == 6
        assert all(math.isfinite(loss) for loss in trained), name
        before, after = losses(tmp_path / "runs" / name, "val/loss")
        assert after < before, f"{name} did not learn"
    first, again = draw(tmp_path, device), draw(tmp_path, device)
    assert first.shape == (2, 3, 32, 32)
    assert np.array_equal(first, again)
    if device == "cuda":
        assert np.abs(first - draw(tmp_path, "cpu")).mean() < 0.05  # bf16 on either


def draw(place: Path, device: str) -> np.ndarray[Any, Any]:
    from crest.generate import Generator
    from crest.generate_config import DrawConfig, ModelsConfig

    runs = {name: str(place / "runs" / name) for name in ("clip", "prior")}
    generator = Generator(ModelsConfig(**runs, decoder=str(place / "runs" / "decoder_32"), device=device))
    settings = DrawConfig(out=place / "samples", steps=4, prior_steps=4)
    drawn = generator.draw(["Logo number 1.", "Logo number 30."], [7, 8], settings)
    return drawn.cpu().numpy()


@pytest.mark.gpu
def test_device_out_of_range_is_refused_by_count() -> None:
    from crest.errors import DeviceError
    from crest.world import pick_device

    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"there are {count} CUDA devices"):
        pick_device(f"cuda:{count}")


def test_cuda_asked_for_where_there_is_none_is_refused() -> None:
    from crest.errors import DeviceError
    from crest.world import pick_device

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(DeviceError, match='"cuda" was asked for, but this machine has no CUDA device'):
        pick_device("cuda")
