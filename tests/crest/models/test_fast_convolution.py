"""Winograd's convolution is the direct one, in values and gradients, and is left where it is not made for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crest.models.fast_convolution import _Winograd, convolve, is_worth_it


def wide(**changes: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(**{"in_channels": 64, "out_channels": 128, "kernel_size": 3, "padding": 1, **changes})


@pytest.mark.parametrize(("count", "side"), [(3, (4, 6)), (1, (2, 2)), (5, (32, 16)), (2, (64, 64))])
def test_it_is_the_direct_convolution(count: int, side: tuple[int, int]) -> None:
    # in double, where nothing but a mistake makes a difference; the last two do not fit into one piece
    draw = torch.Generator().manual_seed(0)
    shapes = (count, 3, *side), (5, 3, 3, 3), (5,), (count, 5, *side)
    x, weight, bias, wanted = (torch.randn(s, dtype=torch.float64, generator=draw) for s in shapes)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    ours, theirs = _Winograd.apply(*inputs), F.conv2d(x, weight, bias, padding=1)
    assert float((ours - theirs).detach().abs().max()) < 1e-12
    for found, known in zip(
        torch.autograd.grad(ours, inputs, wanted), torch.autograd.grad(theirs, inputs, wanted), strict=True
    ):
        assert float((found - known).abs().max()) < 1e-10 * float(known.abs().max())


@torch.no_grad()
def test_in_fp32_it_rounds_about_as_much_as_the_direct_convolution() -> None:
    conv, x = wide(in_channels=128), torch.randn(2, 128, 16, 16)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    assert is_worth_it(conv, x)
    ours, theirs = ((out.double() - exact).norm() for out in (convolve(conv, x), conv(x)))
    assert float(ours) <= 3 * float(theirs)
    assert float(ours) <= 1e-6 * float(exact.norm())
    assert not torch.equal(convolve(conv, x), conv(x))  # another way was gone


def test_gradients_come_in_the_weights_own_layout() -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        conv = wide().to(memory_format=layout)
        (found,) = torch.autograd.grad(convolve(conv, torch.randn(1, 64, 4, 4)).sum(), conv.weight)
        assert found.is_contiguous(memory_format=layout)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    conv = wide(bias=False)
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 64, 4, 4, requires_grad=True)
    found, wanted = (torch.autograd.grad(out.sum(), x)[0] for out in (convolve(conv, x), conv(x)))
    assert torch.allclose(found, wanted, atol=1e-5)
    conv.weight.requires_grad_(True)
    x.requires_grad_(False)
    found, wanted = (torch.autograd.grad(out.sum(), conv.weight)[0] for out in (convolve(conv, x), conv(x)))
    assert torch.allclose(found, wanted, atol=1e-4)


class Shouting(nn.Conv2d):
    """More than a convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


OTHERS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "few channels": (wide(out_channels=64), torch.randn(1, 64, 4, 4)),
    "odd side": (wide(), torch.randn(1, 64, 4, 5)),
    "other kernel": (wide(kernel_size=1, padding=0), torch.randn(1, 64, 4, 4)),
    "stride": (wide(stride=2), torch.randn(1, 64, 4, 4)),
    "groups": (wide(groups=2), torch.randn(1, 64, 4, 4)),
    "dilation": (wide(dilation=2), torch.randn(1, 64, 4, 4)),
    "reflection": (wide(padding_mode="reflect"), torch.randn(1, 64, 4, 4)),
    "double": (wide().double(), torch.randn(1, 64, 4, 4, dtype=torch.float64)),
    "a subclass": (Shouting(64, 128, 3, padding=1), torch.randn(1, 64, 4, 4)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_is_not_made_for_is_left_to_the_module(name: str) -> None:
    conv, x = OTHERS[name]
    assert not is_worth_it(conv, x)
    assert torch.equal(convolve(conv, x), conv(x))


def test_low_precision_is_left_to_the_module() -> None:
    conv, x = wide(), torch.randn(1, 64, 4, 4)
    assert is_worth_it(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_worth_it(conv, x)
        assert convolve(conv, x).dtype == torch.bfloat16
