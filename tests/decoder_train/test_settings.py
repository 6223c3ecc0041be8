"""What a decoder's config asks of its network: which weights learn, in which arithmetic, by which loss."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest.diffusion.learned_variance import hybrid_loss, variational_bound
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.prediction import loss_weight
from crest.embeddings import EmbeddingShard, embeddings_parents, finish_embeddings, read_embeddings
from crest.embeddings import write_embedding_shard as write_shard
from crest.errors import ConfigError, CrestError
from crest.models.decoder import load_decoder
from crest.world import open_world
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch
from decoder_train.stage import DecoderStage

WORLD = open_world("cpu", "fp32")
UNET: dict[str, Any] = {
    "side_px": 16, "max_text_len": 8, "dim": 8, "dim_mults": [1, 2], "cond_dim": 20, "attn_heads": 2,
    "self_attn": [False, True], "attn_dim_head": 8, "timesteps": 20,
}  # fmt: skip


def config(
    tiny_world: Any, run_dir: Path, unet: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    values: dict[str, Any] = tiny_world.config(
        "decoder_train", run_dir, model__scratch={**UNET, **(unet or {})}
    )
    values["model"] |= {"sketch_steps": 0, **changes}
    return values


def stage_of(values: dict[str, Any]) -> DecoderStage:
    return DecoderStage(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))


def stage(
    tiny_world: Any, tmp_path: Path, unet: dict[str, Any] | None = None, **changes: Any
) -> DecoderStage:
    return stage_of(config(tiny_world, tmp_path / "run", unet, **changes))


def first_batch(one: DecoderStage, step: int = 0) -> DecoderBatch:
    return next(one.batches("train", WORLD, step))


class Fixed(nn.Module):
    """Stands in for the network: says the same whatever it is shown, and keeps what that was."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.seen = output, (torch.empty(0), torch.empty(0))

    def forward(self, x_t: Tensor, t: Tensor, *told: Any, **shown: Any) -> Tensor:
        self.seen = x_t, t
        return self.output[: len(x_t)]


@pytest.mark.parametrize("weights", [{}, {"min_snr_gamma": 5.0}, {"p2_gamma": 1.0, "p2_k": 2.0}])
@pytest.mark.parametrize("prediction", ["epsilon", "x_start", "v"])
def test_the_loss_is_the_weighted_error_and_the_bound(
    tiny_world: Any, tmp_path: Path, prediction: Any, weights: dict[str, float]
) -> None:
    spec = {"learned_variance": True, "prediction": prediction}
    one = stage(tiny_world, tmp_path, spec, variance_weight=0.01, **weights)
    batch, schedule = first_batch(one), one.decoder.noise_schedule
    fixed = Fixed(torch.randn(8, 6, 16, 16, generator=torch.Generator().manual_seed(0)))
    loss, figures = one.loss(fixed, batch)
    x_start, (x_t, t) = batch.images * 2 - 1, fixed.seen
    noise = batch.draw.normal(2, 3, 16, 16)
    assert torch.allclose(x_t, add_noise(schedule, x_start, noise, t))
    said, fraction = fixed.output.chunk(2, dim=1)
    alpha, sigma = schedule.alpha(t, 4), schedule.sigma(t, 4)
    wanted = {"epsilon": noise, "x_start": x_start, "v": alpha * noise - sigma * x_start}[prediction]
    weight = loss_weight(prediction, schedule.log_snr(t), **weights)
    simple = (said - wanted).square().mean(dim=(1, 2, 3)) * weight
    bound = variational_bound(prediction, said, fraction, x_start, x_t, t, schedule)
    assert torch.allclose(loss, hybrid_loss(simple, bound, 20, 0.01).mean(), rtol=1e-5)
    assert torch.allclose(figures["bound"], bound.mean(), rtol=1e-5)


def test_two_schemes_of_weighting_are_refused(tiny_world: Any, tmp_path: Path) -> None:
    one = stage(tiny_world, tmp_path, min_snr_gamma=5.0, p2_gamma=1.0)
    with pytest.raises(ConfigError, match=r"min_snr_gamma: found 5\.0 beside p2_gamma 1\.0"):
        one.loss(one.model(), first_batch(one))


@pytest.mark.parametrize("unet", [{}, {"learned_variance": True, "self_cond": True}])
def test_a_validation_depends_on_the_weights_alone(
    tiny_world: Any, tmp_path: Path, unet: dict[str, Any]
) -> None:
    one = stage(tiny_world, tmp_path, unet)
    torch.manual_seed(1)
    first = one.validate(one.model().train(), WORLD)
    torch.rand(5)
    assert one.validate(one.model().eval(), WORLD) == first
    values = config(tiny_world, tmp_path / "run", unet)
    values["optim"] |= {"device_batch_size": 2}
    assert stage_of(values).validate(one.model(), WORLD) == pytest.approx(first, rel=1e-5)
    assert ("bound" in first) == bool(unet)
    for weight in one.model().parameters():
        weight.data.add_(0.01)
    assert one.validate(one.model(), WORLD)["loss"] != pytest.approx(first["loss"], rel=1e-4)


def test_previews_depend_on_the_weights_alone(tiny_world: Any, tmp_path: Path) -> None:
    one = stage(tiny_world, tmp_path)
    torch.manual_seed(1)
    first = one.preview(one.model())["true_then_drawn"]
    torch.rand(5)
    assert torch.equal(one.preview(one.model())["true_then_drawn"], first)


def test_text_that_is_frozen_stays_as_it_is(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    values = config(tiny_world, tmp_path / "run", freeze_text=True)
    before = {name: weight.clone() for name, weight in stage_of(values).model().state_dict().items()}
    assert command("decoder_train", values, tmp_path) == 0
    after = load_decoder(tmp_path / "run")[0].state_dict()
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert {"unet.text_to_cond.weight", "unet.text_to_cond.bias", "unet.null_text_embed"} <= still
    assert "unet.image_to_tokens.0.weight" not in still
    thawed = stage(tiny_world, tmp_path)
    assert all(weight.requires_grad for weight in thawed.decoder.text_parameters())


def test_an_adapted_decoder_leaves_its_base_as_it_is(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    assert command("decoder_train", config(tiny_world, tmp_path / "base"), tmp_path) == 0
    values = config(tiny_world, tmp_path / "run", lora={"rank": 2})
    values["model"] |= {"scratch": None, "start": str(tmp_path / "base")}
    one = stage_of(values)
    learning = [name for name, weight in one.model().named_parameters() if weight.requires_grad]
    assert learning
    assert all(name.endswith((".0.up", ".0.down")) for name in learning)
    assert any("cross_attn" in name for name in learning)
    assert command("decoder_train", values, tmp_path) == 0
    assert (tmp_path / "run" / "adapter.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora": {"rank": 2}}, r"model\.lora: adapters need weights to adapt; name a start"),
        (
            {"lora": {"rank": 2}, "scratch": None, "start": "base", "sketch_steps": 2},
            r"model\.sketch_steps: found 2, expected 0 with adapters",
        ),
        (
            {"freeze_text": True, "scratch": {**UNET, "text_width": None}},
            r"found true for a decoder that reads no",
        ),
        (
            {"scratch": {**UNET, "image_embed_dim": 768}},
            r"image_embed_dim: found 768, but .*embeddings has 16;",
        ),
        (
            {"scratch": {**UNET, "text_width": 768}},
            r"model\.scratch\.text_width: found 768, but .* has 24; rem",
        ),
        (
            {"scratch": {**UNET, "side_px": 18}},
            r"model\.scratch\.side_px: found 18, expected a multiple of 4",
        ),
    ],
)
def test_settings_that_fit_nothing_are_refused(
    tiny_world: Any, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    values = config(tiny_world, tmp_path / "run")
    base = str(tiny_world.folder / "runs" / "decoder_train")
    values["model"] |= {name: base if value == "base" else value for name, value in changes.items()}
    with pytest.raises(CrestError, match=says):
        stage_of(values)


def test_memory_saved_is_not_paid_for_in_gradients(tiny_world: Any, tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        one = stage(tiny_world, tmp_path, checkpointing=checkpointing)
        torch.nn.init.normal_(one.decoder.unet.to_out.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
        loss, _ = one.loss(one.model(), first_batch(one))
        loss.backward()
        gradients.append(
            torch.cat([w.grad.flatten() for w in one.model().parameters() if w.grad is not None])
        )
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_compiled_decoder_trains_as_one_that_is_not(tiny_world: Any, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        one = stage(tiny_world, tmp_path, compiled=compiled)
        loss, _ = one.loss(one.model(), first_batch(one))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_compiled_decoder_can_be_averaged_and_exported(tiny_world: Any, tmp_path: Path) -> None:
    from crest.ema import Ema

    one = stage(tiny_world, tmp_path, compiled=True)
    plain = stage(tiny_world, tmp_path)
    assert one.model().state_dict().keys() == plain.model().state_dict().keys()
    assert Ema(one.model(), 0.5).model.state_dict().keys() == plain.model().state_dict().keys()


@pytest.fixture
def silent_world(tiny_world: Any, tmp_path: Path) -> Any:
    """The tiny world with embeddings that hold no text encodings."""
    folder = tmp_path / "world"
    shutil.copytree(tiny_world.folder / "data", folder / "data")
    embeddings = folder / "data" / "embeddings"
    parents = embeddings_parents(embeddings)
    shutil.rmtree(embeddings)
    for split in ("train", "val"):
        whole = read_embeddings(tiny_world.embeddings, split)  # type: ignore[arg-type]
        bare = EmbeddingShard(
            whole.ids, whole.image_embed, whole.text_embed, torch.empty(len(whole.ids), 0, 0)
        )
        write_shard(embeddings / f"{split}-000000.safetensors", bare)
    finish_embeddings(embeddings, {"train": 24, "val": 8}, parents)
    return type(tiny_world)(folder)


def test_a_decoder_that_reads_text_needs_text_encodings(silent_world: Any, tmp_path: Path) -> None:
    with pytest.raises(CrestError, match=r"holds no text_encodings, which this step reads; embed again with"):
        stage(silent_world, tmp_path)
    one = stage(silent_world, tmp_path, {"text_width": None})
    loss, _ = one.loss(one.model(), first_batch(one))
    assert loss.isfinite()
