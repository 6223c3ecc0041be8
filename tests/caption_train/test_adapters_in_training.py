"""Fine-tuning by low-rank adapters: merged weights come out, the adapter beside them, resume is exact."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caption_train.config import CaptionTrainConfig
from caption_train.stage import CaptionStage
from crest.adapters import is_adapted, load_adapter
from crest.config import load_config
from crest.loop import fit
from crest.models.captioner import load_captioner, load_captioner_model
from crest.world import open_world

RANK = 2


def lora(tiny_world: Any, run_dir: Path, **changes: Any) -> dict[str, Any]:
    start = {"model__scratch": None, "model__start": str(tiny_world.folder / "runs" / "caption_train")}
    values: dict[str, Any] = tiny_world.config(
        "caption_train", run_dir, **start, model__lora_rank=RANK, **changes
    )
    return values


@pytest.fixture(scope="module")
def run_dir(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory, command: Any) -> Path:
    """A finished run of adapters, by its command."""
    folder = tmp_path_factory.mktemp("lora")
    assert command("caption_train", lora(tiny_world, folder / "run"), folder) == 0
    return folder / "run"


def test_merged_weights_load_like_any_and_differ_in_the_adapted_matrices_alone(
    tiny_world: Any, run_dir: Path
) -> None:
    start = load_file(tiny_world.folder / "runs" / "caption_train" / "weights.safetensors")
    tuned = load_file(run_dir / "weights.safetensors")
    assert tuned.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], tuned[name])}
    assert moved
    assert all("attention" in name or "attn" in name or "mlp" in name for name in moved)
    assert load_captioner(run_dir).hash


def test_the_adapter_beside_them_makes_the_same_weights_out_of_the_start(
    tiny_world: Any, run_dir: Path
) -> None:
    model, _ = load_captioner_model(tiny_world.folder / "runs" / "caption_train")
    load_adapter(run_dir / "adapter.safetensors", model)
    merged, _ = load_captioner_model(run_dir)
    images, labels = torch.rand(2, 3, 16, 16), model.tokenize(["a red crest", "a navy crest"])
    with torch.no_grad():
        assert torch.allclose(model(images, labels)[0], merged(images, labels)[0], atol=1e-6)
    whole = (run_dir / "weights.safetensors").stat().st_size
    assert (run_dir / "adapter.safetensors").stat().st_size < whole / 2


def test_an_interrupted_run_of_adapters_ends_as_one_that_never_stopped(
    tiny_world: Any, run_dir: Path, tmp_path: Path
) -> None:
    import json

    path = tmp_path / "config.json"
    path.write_text(json.dumps(lora(tiny_world, tmp_path / "run"), default=str), encoding="utf-8")
    config = load_config(CaptionTrainConfig, path)
    stage, world = CaptionStage(config), open_world("cpu", "fp32")
    read = stage.batches

    def stopping(*arguments: Any) -> Iterator[Any]:
        for number, batch in enumerate(read(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    stage.batches = stopping  # type: ignore[method-assign]
    settings: dict[str, Any] = {"recipe": {"room": "caption_train"}, "world": world, "export_best": True}
    with pytest.raises(KeyboardInterrupt):
        fit(stage, config.run, config.optim, **settings)
    fit(CaptionStage(config), config.run, config.optim, **settings)
    for name in ("weights.safetensors", "adapter.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (run_dir / name).read_bytes(), name


def test_the_best_weights_are_exported_though_the_last_ones_have_adapters_too(
    tiny_world: Any, tmp_path: Path, command: Any
) -> None:
    optim = {"lr": 1.0, "warmup_steps": 0, "schedule": "constant", "batch_size": 8, "ema_decay": 0.0}
    values = {**lora(tiny_world, tmp_path / "run"), "optim": optim}  # which only makes it worse
    assert command("caption_train", values, tmp_path) == 0
    start = load_file(tiny_world.folder / "runs" / "caption_train" / "weights.safetensors")
    tuned = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(start[name], tuned[name]) for name in start)
    adapter = load_file(tmp_path / "run" / "adapter.safetensors")
    assert all(not tensor.any() for name, tensor in adapter.items() if name.endswith(".up"))


def test_adapters_alone_learn(tiny_world: Any, tmp_path: Path) -> None:
    import json

    values = json.dumps(lora(tiny_world, tmp_path / "run"), default=str)
    model = CaptionStage(CaptionTrainConfig.model_validate_json(values)).model()
    assert is_adapted(model)
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learning
    assert all(name.endswith((".up", ".down")) for name in learning)
