"""Six modes: what learns, what stays to the bit, and that kept activations change nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_train.config import ClipModelConfig, ClipOptimConfig, ClipTrainConfig
from clip_train.modes import FEW, LEARNING_RATES, SOME, WHOLE_SET, choose_mode, resolved
from clip_train.stage import ClipStage
from crest.adapters import ADAPTER, is_adapted
from crest.errors import ConfigError
from crest.loop import fit
from crest.models.clip import load_clip
from crest.models.clip_towers import DONE, HEAD, Cuts, image_tower, text_tower
from crest.optimizers import build_optimizer
from crest.world import open_world

MODES = ("features", "lit", "lora", "top_k", "full")


def stage(tiny_world: Any, run_dir: Path, mode: str, **changes: Any) -> ClipStage:
    start = str(tiny_world.folder / "runs" / "clip_train")
    values = tiny_world.config("clip_train", run_dir, model__scratch=None, **changes)
    values["model"] = {"start": start, "mode": mode, "top_k": 1, "lora_rank": 2, **values["model"]}
    values["model"].pop("scratch")
    config = ClipTrainConfig.model_validate_json(json.dumps(values, default=str))
    return ClipStage(config, open_world("cpu", "fp32"))


def trained(tiny_world: Any, run_dir: Path, mode: str, **changes: Any) -> tuple[ClipStage, Path]:
    made = stage(tiny_world, run_dir, mode, **changes)
    path = fit(made, made.config.run, made.optim, recipe={}, world=open_world("cpu", "fp32"))
    return made, path


def start_of(tiny_world: Any) -> dict[str, Tensor]:
    return load_file(tiny_world.folder / "runs" / "clip_train" / "weights.safetensors")


def above(clip: Any, mode: str) -> set[str]:
    """Names of what a mode may change."""
    names = {id(weight): name for name, weight in clip.clip.named_parameters()}
    scale = {"logit_scale"}
    if mode == "full":
        return set(names.values())
    if mode == "lora":
        return {name for name in names.values() if "in_proj_weight" in name}
    if mode == "lit":
        return {name for name in names.values() if not name.startswith("visual.")}
    cut = HEAD if mode == "features" else 1
    parts = [*image_tower(clip.clip).above(cut), *text_tower(clip.clip).above(cut)]
    return scale | {names[id(weight)] for weight in parts}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_what_it_names_and_nothing_else(tiny_world: Any, tmp_path: Path, mode: str) -> None:
    made, path = trained(tiny_world, tmp_path / "run", mode)
    before, after = start_of(tiny_world), load_file(path)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    plain = made.start()
    assert changed
    assert changed <= above(plain, mode)
    assert {name for name in above(plain, mode) if name.endswith("weight")} <= changed
    assert (tmp_path / "run" / ADAPTER).exists() == (mode == "lora")
    load_clip(tmp_path / "run")  # a whole CLIP, whatever learned


@pytest.mark.parametrize("mode", ["features", "lit", "top_k"])
def test_kept_activations_give_the_gradient_of_whole_towers(
    tiny_world: Any, tmp_path: Path, mode: str
) -> None:
    made = stage(tiny_world, tmp_path / "run", mode, data__noise=0.0, data__shift_px=0)
    world, model = open_world("cpu", "fp32"), made.model().train()
    gradients = []
    for cuts in (model.cuts, Cuts()):
        model.cuts = cuts
        if cuts == Cuts():
            made.data._images, made.data._states = [], None
        batch = next(made.batches("train", world, 0))
        model.zero_grad()
        loss, _ = made.loss(model, batch)
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    kept, whole = gradients
    assert {name for name, value in kept.items() if value is not None} == {
        name for name, value in whole.items() if value is not None
    }
    for name, value in kept.items():
        if value is not None:
            assert torch.allclose(value, whole[name], atol=1e-5), name


def test_validation_is_the_same_through_kept_activations(tiny_world: Any, tmp_path: Path) -> None:
    world = open_world("cpu", "fp32")
    figures = []
    for mode in MODES:
        made = stage(tiny_world, tmp_path / mode, mode)
        figures.append(made.validate(made.model().eval(), world))
    assert all(one == pytest.approx(figures[0], abs=1e-5) for one in figures)


def test_activations_are_computed_once_and_go_on_after_a_stop(
    tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shards = tmp_path / "data" / "shards"
    shutil.copytree(tiny_world.shards, shards)
    monkeypatch.setattr("clip_train.activations.BATCH", 5)
    stage(tiny_world, tmp_path / "a", "top_k", data__shards=shards)
    folder = tmp_path / "data" / "activations"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 4  # pictures and captions of train and val
    for name, content in files.items():  # killed in the middle of a row
        (folder / name).unlink()
        (folder / f"{name}.part").write_bytes(content[: len(content) // 2 + 1])
    stage(tiny_world, tmp_path / "b", "top_k", data__shards=shards)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    stage(tiny_world, tmp_path / "c", "top_k", data__shards=shards)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_views_are_kept_beside_the_plain_picture_and_drawn_from(tiny_world: Any, tmp_path: Path) -> None:
    made = stage(tiny_world, tmp_path / "run", "features", data__views=3)
    assert len(made.data._images) == 3
    plain, first, second = made.data._images
    assert not torch.equal(plain, first)
    assert not torch.equal(first, second)
    world, seen = open_world("cpu", "fp32"), set()
    batches = made.batches("train", world, 0)
    for _ in range(20):
        batch = next(batches)
        for number, row in zip(batch.numbers.tolist(), batch.images, strict=True):
            (view,) = (v for v, kept in enumerate(made.data._images) if torch.equal(kept[number], row))
            seen.add(view)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("pairs", "mode"),
    [(2, "features"), (FEW, "features"), (FEW + 1, "lora"), (SOME, "lora"), (SOME + 1, "full")],
)
def test_auto_goes_by_the_number_of_pairs_and_says_why(pairs: int, mode: str) -> None:
    chosen, why = choose_mode(ClipModelConfig(start="stock/clip"), pairs)
    assert chosen == mode
    assert f"{pairs:,} pairs" in why
    assert choose_mode(ClipModelConfig(scratch={}), pairs)[0] == "scratch"
    assert choose_mode(ClipModelConfig(start="stock/clip", mode="lit"), pairs) == (
        "lit",
        "the config asks for it",
    )


def test_scratch_and_random_weights_belong_together() -> None:
    with pytest.raises(ConfigError, match=r'found "full" with model\.scratch'):
        choose_mode(ClipModelConfig(scratch={}, mode="full"), 9)
    with pytest.raises(ConfigError, match='found "scratch" with weights to start from'):
        choose_mode(ClipModelConfig(start="stock/clip", mode="scratch"), 9)


def test_rate_and_batch_are_filled_in_where_the_config_leaves_them() -> None:
    assert resolved(ClipOptimConfig(), "lora", 300).lr == LEARNING_RATES["lora"]
    assert resolved(ClipOptimConfig(), "lora", 300).batch_size == 300
    assert resolved(ClipOptimConfig(), "lora", 10**6).batch_size == WHOLE_SET
    asked = resolved(ClipOptimConfig(lr=0.5, batch_size=7), "full", 300)
    assert (asked.lr, asked.batch_size) == (0.5, 7)


def test_rates_fall_from_block_to_block(tiny_world: Any, tmp_path: Path) -> None:
    made = stage(tiny_world, tmp_path / "run", "full", model__layer_decay=0.5)
    model = made.model()
    optimizer = build_optimizer(model, made.optim)
    share = {id(weight): group["lr_scale"] for group in optimizer.param_groups for weight in group["params"]}
    shares = {name: share[id(weight)] for name, weight in model.named_parameters()}
    depth = image_tower(model.clip).depth
    assert shares["clip.visual.proj"] == shares["clip.text_projection"] == shares["clip.logit_scale"] == 1.0
    assert shares["clip.visual.ln_post.weight"] == 0.5
    for block in range(depth):
        name = f"clip.visual.transformer.resblocks.{block}.mlp.c_fc.weight"
        assert shares[name] == 0.5 ** (depth - block)
    assert shares["clip.visual.conv1.weight"] == 0.5 ** (depth + 1)
    assert shares["clip.token_embedding.weight"] == 0.5 ** (text_tower(model.clip).depth + 1)


@pytest.fixture(scope="module")
def resnet(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny ResNet that was trained from nothing."""
    folder = tmp_path_factory.mktemp("resnet") / "first"
    config = tiny_world.config("clip_train", folder)
    spec = json.loads(json.dumps(config["model"]["scratch"]))
    spec["custom"]["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    values = {**config, "model": {"scratch": spec}}
    first = ClipStage(
        ClipTrainConfig.model_validate_json(json.dumps(values, default=str)), open_world("cpu", "fp32")
    )
    fit(first, first.config.run, first.optim, recipe={}, world=open_world("cpu", "fp32"))
    return folder


@pytest.mark.parametrize("mode", ["full", "top_k", "lit", "features", "lora"])
def test_locked_statistics_do_not_drift(tiny_world: Any, resnet: Path, tmp_path: Path, mode: str) -> None:
    """open_clip's --lock-image leaves the batch norms of a ResNet learning."""
    made, path = trained(tiny_world, tmp_path / "run", mode, model__start=str(resnet))
    before, after = load_file(resnet / "weights.safetensors"), load_file(path)
    statistics = [name for name in before if "running_" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert made.model().cuts.image == {"features": HEAD, "top_k": 1, "lit": DONE}.get(mode)


def test_adapters_are_of_every_attention(tiny_world: Any, tmp_path: Path) -> None:
    made = stage(tiny_world, tmp_path / "run", "lora")
    model = made.model()
    assert is_adapted(model)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    blocks = image_tower(model.clip).depth + text_tower(model.clip).depth
    assert len(learning) == 2 * blocks
    assert all("in_proj_weight" in name for name in learning)


def test_more_blocks_than_there_are_is_refused(tiny_world: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.top_k: found 99, but \d+ blocks of the image tower"):
        stage(tiny_world, tmp_path / "run", "top_k", model__top_k=99)


def test_the_plain_view_of_pictures_that_are_kept_larger_is_whole(tiny_world: Any, tmp_path: Path) -> None:
    """Crops are taken of larger pictures; the view that shows the picture as it is cuts nothing off."""
    made = stage(tiny_world, tmp_path / "run", "features", data__augment="crop")
    numbers = np.arange(4)
    plain, shown = made.data._plain(numbers), torch.from_numpy(made.data.train.pixels[numbers]).float() / 255
    assert shown.shape[-1] > plain.shape[-1] == made.model().side_px
    again = torch.nn.functional.interpolate(shown, plain.shape[-2:], mode="bilinear", antialias=True)
    assert float((plain - again).abs().max()) < 2 / 255
