"""Averaged weights, by exact numbers."""

import pytest
import torch
from torch import nn

from crest.ema import Ema


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.register_buffer("count", torch.tensor([0.0]))


def test_the_average_moves_by_its_factor_which_starts_low() -> None:
    model = Counted()
    ema = Ema(model, 0.15)
    model.weight.data.fill_(2.0)
    ema.update(model, 0)  # min(0.15, 1/10)
    assert float(ema.model.weight) == pytest.approx(1.9)
    ema.update(model, 1)  # min(0.15, 2/11)
    assert float(ema.model.weight) == pytest.approx(0.15 * 1.9 + 0.85 * 2.0)


def test_a_decay_of_zero_follows_the_weights() -> None:
    model = Counted()
    ema = Ema(model, 0.0)
    model.weight.data.fill_(7.0)
    ema.update(model, 1000)
    assert float(ema.model.weight) == 7.0


def test_buffers_are_copied_and_frozen_weights_stay() -> None:
    model = Counted()
    ema = Ema(model, 0.9)
    model.count.fill_(3.0)
    ema.update(model, 500)
    assert float(ema.model.count) == 3.0
    assert float(ema.model.frozen) == 5.0


def test_the_average_is_another_model_that_learns_nothing() -> None:
    model = Counted()
    ema = Ema(model, 0.9)
    model.weight.data.fill_(9.0)
    assert float(ema.model.weight) == 1.0
    assert not ema.model.training
    assert not any(weight.requires_grad for weight in ema.model.parameters())


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 5))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def moved(model: nn.Module, seed: int) -> None:
    for number, tensor in enumerate((*model.parameters(), *model.buffers())):
        if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter)):
            generator = torch.Generator().manual_seed(100 * seed + number)
            tensor.data.add_(torch.randn(tensor.shape, generator=generator).to(tensor.device))


@pytest.mark.parametrize("chunk", [1 << 24, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_on_the_host_the_numbers_are_the_same(
    chunk: int, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crest.ema.CHUNK", chunk)
    model = small()
    model[0].requires_grad_(not frozen)
    beside, on_host = Ema(model, 0.9), Ema(model, 0.9, "cpu")
    for step in range(3):
        moved(model, step)
        beside.update(model, step)
        on_host.update(model, step)
    ours, theirs = on_host.model.state_dict(), beside.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(ours["4.weight"], model[4].weight)


def test_a_frozen_base_is_not_held_twice() -> None:
    model = small()
    model[0].requires_grad_(False)
    for ema in (Ema(model, 0.9), Ema(model, 0.9, "cpu")):
        places = {name: weight.data_ptr() for name, weight in ema.model.named_parameters()}
        shared = [name for name, own in model.named_parameters() if own.data_ptr() == places[name]]
        assert shared == ["0.weight", "0.bias"]
        assert ema.model[0].weight is not model[0].weight  # what is done to one stays with it
        model[0].weight.requires_grad_(True)
        assert not ema.model[0].weight.requires_grad
        model[0].weight.requires_grad_(False)


def test_what_learns_only_later_is_refused_instead_of_shared() -> None:
    model = small()
    model[0].requires_grad_(False)
    ema = Ema(model, 0.9)
    model[0].requires_grad_(True)
    with pytest.raises(AssertionError, match=r"0\.weight did not learn"):
        ema.update(model, 0)


def test_the_average_is_lent_where_it_lies_and_copied_where_not() -> None:
    model = small()
    for ema in (Ema(model, 0.9), Ema(model, 0.9, "cpu")):
        with ema.on(torch.device("cpu")) as lent:
            assert lent is ema.model
        with ema.on(torch.device("meta")) as copied:
            assert all(weight.is_meta for weight in (*copied.parameters(), *copied.buffers()))
            assert copied[0].weight.is_contiguous(memory_format=torch.channels_last)
            assert not copied.training
        assert not any(weight.is_meta for weight in ema.model.parameters())


@pytest.mark.gpu
def test_a_gpus_averages_on_the_host_are_the_same_while_steps_go_on() -> None:
    made = []
    for place in ("same", "cpu"):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(2000, 2000) for _ in range(8))).to("cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ema = Ema(model, 0.9, place)  # type: ignore[arg-type]
        ema.guard(optimizer)
        for step in range(10):
            for number, weight in enumerate(model.parameters()):
                generator = torch.Generator("cuda").manual_seed(100 * step + number)
                weight.grad = torch.randn(weight.shape, generator=generator, device="cuda")
            optimizer.step()  # would change weights that are still being averaged, were it not held
            ema.update(model, step)
        assert ema.model[0].weight.is_cuda == (place == "same")
        assert place == "same" or ema.model[0].weight.is_pinned()
        with ema.on(torch.device("cuda", torch.cuda.current_device())) as lent:
            made.append([weight.cpu() for weight in lent.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
