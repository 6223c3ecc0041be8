"""Adapters beside a file's weights in training: what is saved, exported, resumed; and their gradients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crest.adapters import adapt, adapters, base_of, inject, save_adapter
from crest.checkpoint import newest_state
from crest.config import LoraConfig, read_spec
from crest.errors import ConfigError, RunError
from crest.models.decoder import Decoder, DecoderSpec, load_decoder
from crest.models.prior import Prior, PriorSpec
from tests.crest.tiny_adapted import QUERY, UNET, Base, adapted, write_base
from tests.crest.toy_stage import ToyBatch, ToyStage
from tests.crest.toy_stage import train as train_toy

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "golden" / "published_models.json").read_text(encoding="utf-8")
)


class StoppedError(Exception):
    """A test's own way to end a run."""


class AdaptedStage(ToyStage):
    """A decoder's adapters learn to answer with zeros."""

    def __init__(self, place: str, stop_at: int = -1) -> None:
        super().__init__()
        self.place, self.stop_at = place, stop_at
        torch.manual_seed(4)
        decoder, digest, card = load_decoder(place)
        adapt(decoder, LoraConfig(rank=2), decoder.lora_targets, Base("decoder", digest, place, card))
        self.decoder, self.inputs = decoder, torch.randn(2, 3, 8, 8)

    def model(self) -> nn.Module:
        return self.decoder

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.draw.step == self.stop_at:
            raise StoppedError
        return answer(model, self.inputs + 0.1 * batch.draw.normal(1, 3, 8, 8)[:2]).square().mean(), {}

    def validate(self, model: nn.Module, world: object) -> dict[str, float]:
        return {"loss": float(answer(model, self.inputs).square().mean())}

    def card(self, model: nn.Module) -> dict[str, object]:
        spec = self.decoder.spec.model_dump(mode="json")
        return {"kind": "decoder", "family": "crest", "spec": spec, "parents": {"clip": "c" * 16}}


def train(stage: ToyStage, folder: Path, **settings: Any) -> Path:
    often = {"steps": 8, "save_every": 3, "validate_every": 4}
    return train_toy(stage, folder, **{**often, **settings})


def loss_of(place: str, inputs: Tensor) -> float:
    with torch.no_grad():
        return float(answer(load_decoder(place)[0].eval(), inputs).square().mean())


def answer(model: nn.Module, inputs: Tensor) -> Tensor:
    b = len(inputs)
    told = (torch.ones(b, 16), torch.ones(b, 4, 24), *torch.ones(2, b, dtype=torch.bool))
    out: Tensor = model(inputs, torch.arange(b), *told)
    return out


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_base(tmp_path / "base")


def test_a_run_holds_adapters_and_where_they_belong_alone(base: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(AdaptedStage(base, stop_at=5), run)
    state = newest_state(run)
    assert state is not None
    saved = json.loads((state / "state.json").read_text(encoding="utf-8"))
    assert saved["base"] == {"hash": load_decoder(base)[1], "place": base}
    for name in ("model", "ema"):
        assert all(key.endswith((".0.up", ".0.down")) for key in load_file(state / f"{name}.safetensors"))
    path = train(AdaptedStage(base), run)
    assert path == run / "adapter.safetensors"
    # config, metrics, the best and the last, and no state of a run that is done
    left = {file.name for file in run.rglob("*") if file.is_file() and "tfevents" not in file.name}
    assert left == {
        "config.json", "metrics.jsonl", "adapter.json", "adapter.safetensors", "best.adapter.json",
        "best.adapter.safetensors",
    }  # fmt: skip
    assert not any(folder.is_dir() for folder in run.iterdir())
    loss = json.loads((run / "adapter.json").read_text(encoding="utf-8"))["best"]["value"]
    inputs = AdaptedStage(base).inputs
    assert loss_of(f"{run}/best.adapter.safetensors", inputs) == pytest.approx(loss, rel=1e-4)
    assert loss < 0.9 * loss_of(base, inputs)
    assert train(AdaptedStage(base), run) == path  # finished before


def test_a_resumed_run_ends_with_the_same_bytes(base: str, tmp_path: Path) -> None:
    whole = train(AdaptedStage(base), tmp_path / "whole")
    for stop in (4, 7):
        with pytest.raises(StoppedError):
            train(AdaptedStage(base, stop_at=stop), tmp_path / "run")
    again = train(AdaptedStage(base), tmp_path / "run")
    ours, theirs = load_file(again), load_file(whole)  # their cards differ in the recipe: another run.dir
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_state_beside_another_base_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(AdaptedStage(base, stop_at=4), tmp_path / "run")
    other = write_base(tmp_path / "other", seed=3)
    ours, theirs = load_decoder(base)[1], load_decoder(other)[1]
    says = (
        rf"holds adapters beside the weights {ours} \({base}\), but model.start is {theirs} \({other}\); put"
    )
    with pytest.raises(RunError, match=says):
        train(AdaptedStage(other), tmp_path / "run")


def test_a_state_of_other_adapters_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(AdaptedStage(base, stop_at=4), tmp_path / "run")
    stage = AdaptedStage(base)
    stage.decoder, digest, card = load_decoder(base)
    adapt(stage.decoder, LoraConfig(targets=[QUERY]), (), Base("decoder", digest, base, card))
    with pytest.raises(RunError, match="does not fit this run's model"):
        train(stage, tmp_path / "run")


def test_merged_weights_are_exported_where_they_are_wanted(base: str, tmp_path: Path) -> None:
    alone, path = (train(AdaptedStage(base), tmp_path / kind, export=kind) for kind in ("adapter", "merged"))
    assert path == tmp_path / "merged" / "weights.safetensors"
    assert (tmp_path / "merged" / "adapter.safetensors").exists()
    wanted, found = (load_decoder(str(place.parent)) for place in (alone, path))
    assert found[2]["merged"]["base"] == load_decoder(base)[1]
    for name, weight in wanted[0].state_dict().items():
        assert torch.allclose(found[0].state_dict()[name], weight, atol=1e-6)
    with pytest.raises(ConfigError, match=r'run\.export: found "adapter", expected "auto" or "merged"'):
        train(ToyStage(), tmp_path / "toy", export="adapter")


def test_a_model_that_learns_more_than_adapters_is_saved_whole(base: str) -> None:
    decoder: Any = adapted(base, 1)
    assert base_of(decoder) is not None
    decoder.unet.to_out.weight.requires_grad_(True)
    assert base_of(decoder) is None


# --- gradients, arithmetic, sizes --------------------------------------------------------------------------


def gradients(model: Any, *, autocast: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = (
            answer(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))).square().mean()
        )
    loss.backward()
    return {
        f"{name}.{part}": weight.grad
        for name, adapter in adapters(model)
        for part, weight in adapter.named_parameters()
        if weight.grad is not None
    }


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    difference = sum(float((found[name] - wanted[name]).detach().square().sum()) for name in wanted)
    return (difference / sum(float(value.detach().square().sum()) for value in wanted.values())) ** 0.5


def test_gradients_are_those_of_the_whole_weight_s_by_the_chain_rule(base: str) -> None:
    model, plain = adapted(base, 1), load_decoder(base)[0]
    found = gradients(model)
    for name, adapter in adapters(model):
        weight = dict(plain.named_parameters())[name]
        weight.data += (1.5 * adapter.up @ adapter.down).detach().view_as(weight)
    loss = answer(plain, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))).square().mean()
    loss.backward()
    wanted = {}
    for name, adapter in adapters(model):
        gradient = dict(plain.named_parameters())[name].grad
        assert gradient is not None
        wanted[f"{name}.up"] = 1.5 * gradient.flatten(1) @ adapter.down.T
        wanted[f"{name}.down"] = 1.5 * adapter.up.T @ gradient.flatten(1)
    assert off(found, wanted) < 1e-5


def test_each_sum_is_made_once_a_pass(base: str) -> None:
    model = adapted(base, 1)
    made: list[nn.Module] = []
    for _, adapter in adapters(model):
        adapter.register_forward_hook(lambda module, *_: made.append(module))
    answer(model, torch.randn(2, 3, 8, 8))
    assert sorted(map(id, made)) == sorted(id(adapter) for _, adapter in adapters(model))


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_with_checkpointing(base: str, autocast: bool) -> None:
    model: Any = adapted(base, 1)
    wanted = gradients(model, autocast=autocast)
    model.save_memory()
    assert off(gradients(model, autocast=autocast), wanted) < 1e-6


def test_a_frozen_half_precision_base_learns_alike(base: str) -> None:
    found = {}
    for stored in (torch.bfloat16, torch.float32):
        model = adapted(base, 1)
        for name, weight in model.named_parameters():
            if not name.endswith((".up", ".down")):
                weight.data = weight.data.bfloat16().to(stored)  # the same numbers
        found[stored] = gradients(model, autocast=True)
    assert all(gradient.dtype == torch.float32 for gradient in found[torch.bfloat16].values())
    # bfloat16's last digit is 0.008; measured 0.014
    assert off(found[torch.bfloat16], found[torch.float32]) < 0.03


def test_a_change_below_the_weight_s_last_digit_is_not_lost_under_autocast() -> None:
    layer = nn.Linear(256, 256, bias=False)
    nn.init.uniform_(layer.weight, 1.0, 2.0)  # the last digit of bfloat16 is 1/128 there
    inject(layer, 1, 1.0, ["weight"])
    (_, adapter), *_ = adapters(layer)
    nn.init.constant_(adapter.up, 0.001)
    nn.init.constant_(adapter.down, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        moved = layer.weight.to(torch.bfloat16).float() - layer.parametrizations.weight.original.to(  # type: ignore[union-attr, operator]
            torch.bfloat16
        )
    assert float(moved.detach().mean()) == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize(
    ("name", "rank", "most"),
    [
        ("laion decoder v1.0.2", 8, 0.0025),
        ("laion decoder v1.0.2", 16, 0.005),
        ("laion prior ViT-L/14", 8, 0.004),
        ("laion prior ViT-L/14", 16, 0.008),
        ("upsampler 64 to 256", 16, 0.007),
    ],
)
def test_adapters_of_published_weights_take_less_than_a_hundredth(
    name: str, rank: int, most: float, tmp_path: Path
) -> None:
    model: Any
    with torch.device("meta"):
        if PUBLISHED[name]["kind"] == "prior":
            model = Prior(read_spec(PriorSpec, PUBLISHED[name]["spec"], name))
        else:
            model = Decoder(read_spec(DecoderSpec, PUBLISHED[name]["spec"], name))
    whole = 4 * sum(weight.numel() for weight in model.parameters())
    if name == "laion decoder v1.0.2":
        assert whole == pytest.approx(3.93e9, rel=1e-3)
    adapt(model, LoraConfig(rank=rank), model.lora_targets, Base("decoder", "0" * 16, "there", {}))
    for _, adapter in adapters(model):
        adapter.to_empty(device="cpu")
    save_adapter(tmp_path / "adapter.safetensors", model)
    assert (tmp_path / "adapter.safetensors").stat().st_size < most * whole < 0.01 * whole


def test_default_targets_are_those_that_a_network_has() -> None:
    def targets(**settings: Any) -> set[str]:
        decoder = Decoder(DecoderSpec.model_validate({**UNET, **settings}))
        beside = Base("decoder", "0" * 16, "x", {})
        names = adapt(decoder, LoraConfig(rank=2), decoder.lora_targets, beside)
        return {name.removesuffix(".0.weight").removesuffix(".weight").split(".")[-1] for name in names}

    # attention, its output, and what a block is told of time and picture
    assert targets() == {"to_q", "to_kv", "to_out", "1"}
    blind = {"text_width": None, "image_cond": False, "attend_at_middle": False, "memory_efficient": True}
    assert targets(**blind, self_attn=[False, False]) <= targets()
    with pytest.raises(ConfigError, match=r"model\.lora: x has none of the matrices"):
        adapt(nn.Linear(8, 8), LoraConfig(rank=2), ["to_q.weight"], Base("decoder", "0" * 16, "x", {}))
