"""What is booked is what torch would allocate, to the byte, without any of it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from crest.ledger import pretence, pretend, without_numbers
from crest.memory import try_passes
from crest.models.decoder import Decoder, DecoderSpec
from crest.models.prior import Prior, PriorSpec

DECODER: dict[str, Any] = {
    "side_px": 32,
    "image_embed_dim": 32,
    "text_width": 24,
    "max_text_len": 8,
    "dim": 32,
    "dim_mults": (1, 2),
    "self_attn": (False, True),
    "cond_dim": 48,
}
PRIOR: dict[str, Any] = {"image_embed_dim": 64, "text_width": 64, "max_text_len": 16, "depth": 4}
BATCH = 4


def decoder(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderSpec.model_validate({**DECODER, **settings}))


def prior(**settings: Any) -> Prior:
    torch.manual_seed(0)
    return Prior(PriorSpec.model_validate({**PRIOR, **settings}))


def inputs(model: Decoder | Prior, count: int = BATCH) -> list[Tensor]:
    spec = model.spec
    x = torch.randn(count, 3, 32, 32) if isinstance(model, Decoder) else torch.randn(count, 64)
    words = torch.randn(count, spec.max_text_len, spec.text_width or 0)
    keep = torch.ones(count, dtype=torch.bool)
    told = F.normalize(torch.randn(count, spec.image_embed_dim), dim=-1)
    return [x, torch.arange(count), told, words, keep, keep]


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    torch.manual_seed(1)
    result: Tensor = (model(*batch) - 0.1).square().mean()
    return result


def booked(build: Any, precision: str = "fp32", device_type: str = "cpu", **settings: Any) -> Any:
    made = without_numbers(lambda: build(**settings))
    return try_passes(made, lambda: inputs(made), loss, precision=precision, device_type=device_type)


def allocated(model: nn.Module, batch: Any, precision: str) -> int:
    """What torch's own allocator held at most during one pass, which is what is counted on a GPU."""
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        given = batch()
        with low:
            value = loss(model, given)
        value.backward()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("build", [decoder, prior])
def test_a_pass_is_booked_as_torch_allocates_it(build: Any, checkpointing: bool, precision: str) -> None:
    def settled() -> Any:
        model = build()
        if checkpointing:
            model.save_memory()
        return model

    real = settled()
    measured = allocated(real, lambda: inputs(real), precision)
    assert booked(settled, precision).peak_bytes == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize(("build", "share"), [(decoder, 0.7), (prior, 0.75)])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(build: Any, share: float) -> None:
    plain, frugal = build(), build()
    frugal.save_memory()
    batch = inputs(plain)
    for model in (plain, frugal):
        loss(model, batch).backward()
    for name, weight in plain.named_parameters():
        other = frugal.get_parameter(name).grad
        assert (weight.grad is None) == (other is None), name
        if weight.grad is not None and other is not None:
            assert torch.allclose(other, weight.grad, rtol=1e-5, atol=1e-7), name

    def thrifty() -> Any:
        model = build()
        model.save_memory()
        return model

    assert booked(thrifty).activation_bytes < share * booked(build).activation_bytes


def test_weights_without_numbers_cost_nothing_and_are_all_there() -> None:
    """LAION's decoder v1.0.2, whose 3.9 GB would not fit into this test."""
    made = without_numbers(
        lambda: decoder(
            side_px=64,
            image_embed_dim=768,
            text_width=768,
            max_text_len=77,
            dim=320,
            dim_mults=(1, 2, 3, 4),
            num_resnet_blocks=4,
            cond_dim=512,
            self_attn=(False, True, True, True),
            sparse_attn=True,
            attn_heads=8,
            attn_dim_head=64,
            learned_variance=True,
            arithmetic="1.1",
            init_cross_embed=True,
        )
    )
    assert sum(weight.numel() for weight in made.parameters()) == 982_518_470
    assert all(weight.is_meta for weight in made.parameters())


class TwoLayers(nn.Module):
    """A network whose bytes can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1000, 2000, bias=False)
        self.second = nn.Linear(2000, 500, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


def test_bytes_are_those_that_are_counted_by_hand() -> None:
    rows, size = 300, 4
    model = without_numbers(TwoLayers)
    with pretence("cpu") as ledger:
        pretend(model, ledger)
        assert ledger.live == 0
        x = torch.empty(rows, 1000)
        hidden = model.first(x)
        out = model.second(hidden)
        assert ledger.live == size * rows * (1000 + 2000 + 500)
        total = out.sum()
        del x, hidden, out
        held = size * rows * (1000 + 2000)  # for the gradients of both weights
        assert ledger.live == held + 64  # a scalar takes a line
        total.backward()
        assert ledger.kept == size * (1000 * 2000 + 2000 * 500)
        del total
        assert ledger.live == ledger.kept


def test_rules_of_cuda_hold_without_a_gpu() -> None:
    with pretence("cuda") as ledger, torch.autocast("cpu", torch.float16):
        x = torch.empty(2, 64, 8, 8)
        convolved = F.conv2d(x, torch.empty(64, 64, 3, 3), padding=1)
        assert convolved.dtype == torch.float16
        assert F.group_norm(convolved, 8).dtype == torch.float32
        assert F.silu(convolved).dtype == torch.float16
        query = torch.empty(2, 4, 512, 32, requires_grad=True)
        before = ledger.live
        mixed = F.scaled_dot_product_attention(query, query, query)
        assert mixed.dtype == torch.float16
        # three casts at most, the output and a sum a row: no weight of a pair
        assert ledger.live - before < 2 * 5 * query.numel()
        mixed.sum().backward()


def test_a_mask_that_is_not_known_keeps_every_row() -> None:
    with pretence("cpu"):
        keep = torch.empty(7) > 0
        assert len(keep.nonzero()) == 7
        assert len((~keep).nonzero()) == 0
