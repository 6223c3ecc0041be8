"""Embedding of shards: joined by id, made once, made again for another CLIP."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.embeddings import embeddings_parents, read_embeddings
from crest.models.clip import load_clip
from crest.pixels import open_pictures
from crest.shards import read_samples


@pytest.fixture
def config(tiny_world: Any, tmp_path: Path) -> dict[str, Any]:
    clip = tiny_world.folder / "runs" / "clip_train"
    return {
        "data": {"shards": tiny_world.shards, "out": tmp_path / "out"},
        "model": {"clip": str(clip), "device": "cpu", "batch_size": 5, "samples_per_shard": 10},
    }


def test_rows_are_what_the_clip_says_of_the_pictures(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    assert len(list((tmp_path / "out").glob("train-*.safetensors"))) == 3
    found, clip = (
        read_embeddings(tmp_path / "out", "train"),
        load_clip(tiny_world.folder / "runs" / "clip_train"),
    )
    samples = list(read_samples(tiny_world.shards, "train"))
    assert found.ids == [sample.id for sample in samples]
    pictures = open_pictures(tiny_world.shards, "train", 16)
    images = clip.encode_image(torch.from_numpy(pictures.pixels.astype("float32") / 255))
    text = clip.encode_text([sample.caption for sample in samples])
    assert torch.allclose(found.image_embed, images, atol=2e-3)
    assert torch.allclose(found.text_embed, text.text_embed, atol=2e-3)
    assert torch.allclose(found.text_encodings.float(), text.text_encodings, atol=5e-3)
    assert embeddings_parents(tmp_path / "out")["clip"] == clip.hash


def test_an_interrupted_folder_goes_on_and_a_finished_one_says_so(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    out = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    (out / "manifest.json").unlink()
    (out / "train-000001.safetensors").unlink()
    kept = (out / "train-000000.safetensors").stat().st_mtime_ns
    assert command("clip_train.embed", config, tmp_path) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == whole
    assert (out / "train-000000.safetensors").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert command("clip_train.embed", config, tmp_path) == 0
    assert "finished before; nothing to do" in capsys.readouterr().out


def test_another_clip_makes_all_of_them_again(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    before = (tmp_path / "out" / "val-000000.safetensors").read_bytes()
    other = tiny_world.config("clip_train", tmp_path / "other", run__seed=5, run__steps=1)
    assert command("clip_train", other, tmp_path) == 0
    config["model"]["clip"] = str(tmp_path / "other")
    assert command("clip_train.embed", config, tmp_path) == 0
    card = json.loads((tmp_path / "other" / "weights.json").read_text(encoding="utf-8"))
    assert embeddings_parents(tmp_path / "out")["clip"] == card["sha256"][:16]
    assert (tmp_path / "out" / "val-000000.safetensors").read_bytes() != before
