"""8-bit Adam learns as AdamW does, in a quarter of its memory, and goes on bit for bit."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crest.checkpoint import State, load_state, save_state
from crest.config import OptimConfig
from crest.ema import Ema
from crest.errors import ConfigError
from crest.optimizers import AdamW8bit, build_optimizer, optimizer_bytes
from tests.crest.toy_stage import ToyStage, train

EIGHT = OptimConfig(lr=0.01, batch_size=1, optimizer="adamw_8bit", weight_decay=0.1)
PLAIN = EIGHT.model_copy(update={"optimizer": "adamw"})


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 32, 3, padding=1), nn.SiLU())
    return nn.Sequential(*layers, nn.Conv2d(32, 3, 1)).to(memory_format=torch.channels_last)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    loss: Tensor = (model(images) - images.flip(1)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def learned(optim: OptimConfig, steps: int = 150) -> tuple[nn.Module, list[float]]:
    model = network()
    optimizer = build_optimizer(model, optim)
    return model, [step(model, optimizer, seed) for seed in range(steps)]


def test_it_learns_what_adamw_learns() -> None:
    (_, plain), (_, eight) = learned(PLAIN), learned(EIGHT)
    assert plain[-1] < 0.15 * plain[0]
    assert sum(eight[-20:]) == pytest.approx(sum(plain[-20:]), rel=0.1)


def test_the_first_step_is_adamws() -> None:
    """Averages are rounded after they are used, so the first step knows nothing of it."""
    (plain, _), (eight, _) = learned(PLAIN, 1), learned(EIGHT, 1)
    for one, other in zip(plain.parameters(), eight.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_weights_keep_their_place_in_memory() -> None:
    """The library's own optimizer would lay them out anew, and channels-last speed be gone."""
    model = network()
    before = [(weight.data_ptr(), weight.stride()) for weight in model.parameters()]
    step(model, build_optimizer(model, EIGHT), 0)
    assert [(weight.data_ptr(), weight.stride()) for weight in model.parameters()] == before
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_that_lies_otherwise_than_its_weight_meets_the_right_numbers() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(64, 16, 3, 3)
    moved = []
    for order in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(torch.zeros(64, 16, 3, 3).contiguous(memory_format=torch.channels_last))
        weight.grad = gradient.clone().contiguous(memory_format=order)
        AdamW8bit([weight], lr=0.01).step()
        moved.append(weight.detach())
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[0].sign(), -gradient.sign())


def test_what_it_keeps_is_what_is_told() -> None:
    model = network()
    optimizer = build_optimizer(model, EIGHT)
    step(model, optimizer, 0)
    kept = sum(
        value.nbytes
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    )
    assert kept == sum(optimizer_bytes(weight, EIGHT) for weight in model.parameters())
    large = model[2].weight
    assert optimizer_bytes(large, EIGHT) < 0.26 * optimizer_bytes(large, PLAIN)


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> State:
        model = network()
        return State(0, model, Ema(model, 0.9), build_optimizer(model, EIGHT))

    straight, back = fresh(), fresh()
    for seed in range(3):
        step(straight.model, straight.optimizer, seed)
    save_state(tmp_path, straight)
    assert load_state(tmp_path, back)
    for seed in range(3, 6):
        for state in (straight, back):
            step(state.model, state.optimizer, seed)
    for one, other in zip(straight.model.parameters(), back.model.parameters(), strict=True):
        assert torch.equal(one, other)
    codes = [entry["first"].dtype for entry in back.optimizer.state.values()]
    assert torch.uint8 in codes
    assert torch.float32 in codes  # the small weights


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Through fit, where accelerate loads the state once more. The toy is widened past the small weights."""
    from safetensors.torch import load_file

    def stage() -> ToyStage:
        made = ToyStage()
        torch.manual_seed(1)
        made.network = nn.Sequential(nn.Linear(4, 96), nn.Tanh(), nn.Linear(96, 64), nn.Linear(64, 1))
        return made

    settings = {"optimizer": "adamw_8bit", "schedule": "constant"}
    straight = train(stage(), tmp_path / "straight", steps=10, **settings)
    stopping = stage()
    left = iter(range(7))

    def stop() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    stopping.on_batch = stop
    with pytest.raises(KeyboardInterrupt):
        train(stopping, tmp_path / "stopped", steps=10, **settings)
    back = train(stage(), tmp_path / "stopped", steps=10, **settings)
    ours, theirs = load_file(straight), load_file(back)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_where_the_library_is_missing_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ConfigError, match=r'needs bitsandbytes.*pip install "crest-logos\[8bit\]"'):
        build_optimizer(network(), EIGHT)


@pytest.mark.gpu
def test_it_moves_weights_on_a_gpu_as_on_the_cpu() -> None:
    on_cpu, on_gpu = network(), network().to("cuda")
    optimizers = [build_optimizer(model, EIGHT) for model in (on_cpu, on_gpu)]
    for seed in range(3):
        for model, optimizer in zip((on_cpu, on_gpu), optimizers, strict=True):
            for number, weight in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * seed + number)
                weight.grad = torch.randn(weight.shape, generator=generator).to(weight.device)
            optimizer.step()
    for one, other in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert torch.allclose(one, other.cpu(), atol=2e-3)
