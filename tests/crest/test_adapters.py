"""Low-rank adapters: nothing at first, all that learns, plain weights in the end, and bound to their base."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crest.adapters import (
    adapters,
    base_hash,
    inject,
    is_adapted,
    load_adapter,
    merge,
    plain_state,
    save_adapter,
)
from crest.ema import Ema
from crest.errors import ConfigError, WeightsError

EVERY = ["linear.weight", "turned.weight", "attention.*weight", "conv.weight"]


class Mixed(nn.Module):
    """One of every kind of matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.turned = Conv1D(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.turned(self.linear(self.conv(images).flatten(2).transpose(1, 2)))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


@pytest.fixture
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def teach(model: nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.02)
    for _ in range(steps):
        (model(IMAGES) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_untrained_adapter_changes_nothing(model: Mixed) -> None:
    before = model(IMAGES)
    names = inject(model, 2, 4.0, EVERY)
    assert torch.equal(model(IMAGES), before)
    assert set(names) == {
        "conv.weight",
        "linear.weight",
        "turned.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


def test_adapters_alone_learn(model: Mixed) -> None:
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    digest, before = base_hash(model), model(IMAGES).detach()
    inject(model, 2, 4.0, EVERY)
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 2 * (
        (8 + 27) + (8 + 8) + (8 + 8) + (24 + 8) + (8 + 8)
    )
    teach(model)
    assert not torch.allclose(model(IMAGES), before, atol=1e-2)
    assert base_hash(model) == digest
    merged = plain_state(model)
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in base if name.endswith("bias"))


def test_the_change_is_of_the_rank_asked_for_and_scaled(model: Mixed) -> None:
    base = model.linear.weight.detach().clone()
    inject(model, 2, 6.0, ["linear.weight"])
    teach(model)
    adapter = dict(adapters(model))["linear.weight"]
    change = (model.linear.weight - base).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    assert torch.allclose(change, 3.0 * adapter.up.detach() @ adapter.down.detach(), atol=1e-6)


def test_merged_weights_say_the_same_to_one_in_a_million(model: Mixed) -> None:
    inject(model, 2, 4.0, EVERY)
    teach(model)
    adapted = model(IMAGES).detach()
    plain = Mixed()
    plain.load_state_dict(plain_state(model))
    assert torch.allclose(plain(IMAGES), adapted, atol=1e-6)
    merge(model)
    assert not is_adapted(model)
    assert torch.allclose(model(IMAGES), adapted, atol=1e-6)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_an_adapter_travels_without_its_base(model: Mixed, tmp_path: Path) -> None:
    inject(model, 2, 4.0, EVERY)
    teach(model)
    save_adapter(tmp_path / "adapter.safetensors", model)
    torch.manual_seed(0)
    fresh, injected = Mixed(), Mixed()
    injected.load_state_dict(fresh.state_dict())
    inject(injected, 2, 4.0, EVERY)
    for other in (fresh, injected):
        load_adapter(tmp_path / "adapter.safetensors", other)
        assert torch.allclose(other(IMAGES), model(IMAGES), atol=1e-6)


def test_another_base_is_refused(model: Mixed, tmp_path: Path) -> None:
    inject(model, 2, 4.0, EVERY)
    save_adapter(tmp_path / "adapter.safetensors", model)
    torch.manual_seed(1)
    with pytest.raises(WeightsError, match=r"belongs to the weights .* but these are"):
        load_adapter(tmp_path / "adapter.safetensors", Mixed())


def test_a_file_that_is_no_adapter_is_refused(model: Mixed, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_adapter(tmp_path / "broken.safetensors", model)


def test_averaged_weights_have_adapters_of_their_own(model: Mixed) -> None:
    inject(model, 2, 4.0, EVERY)
    ema = Ema(model, 0.5)
    teach(model, steps=1)
    ema.update(model, 100)
    ours, theirs = dict(adapters(ema.model)), dict(adapters(model))
    assert torch.allclose(ours["linear.weight"].up, theirs["linear.weight"].up / 2)
    assert base_hash(ema.model) == base_hash(model)


@pytest.mark.parametrize(
    ("rank", "patterns", "says"),
    [
        (2, ["decoder.*"], "matches no weight matrix"),
        (9, ["linear.weight"], "is 8 x 8, which has no adapter of rank 9"),
        (2, ["linear.bias"], "matches no weight matrix"),
    ],
)
def test_what_has_no_adapter_is_refused(model: Mixed, rank: int, patterns: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        inject(model, rank, 1.0, patterns)
    assert not is_adapted(model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_weight_of_two_modules_is_refused(model: Mixed) -> None:
    model.again = nn.Linear(8, 8)  # type: ignore[assignment]
    model.again.weight = model.linear.weight
    with pytest.raises(ConfigError, match="two modules share"):
        inject(model, 2, 1.0, ["linear.weight"])
