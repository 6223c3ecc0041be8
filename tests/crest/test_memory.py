"""What a run takes is the sum of its parts, each of which can be counted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest.adapters import inject
from crest.config import OptimConfig
from crest.ema import Ema
from crest.ledger import without_numbers
from crest.memory import CUDA_WORKSPACE_BYTES, GAPS, MemoryEstimate, estimate, free_bytes, try_passes
from crest.optimizers import build_optimizer

OPTIM = OptimConfig(lr=1e-3, batch_size=8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256))
        self.register_buffer("table", torch.zeros(1000))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def adapted() -> nn.Module:
    model = Small()
    inject(model, 4, 4, ["layers.*.weight"])
    return model


def sized(
    build: Any, device_type: str = "cuda", rows: int = 8, processes: int = 1, **optim: Any
) -> MemoryEstimate:
    passes = try_passes(
        without_numbers(build),
        lambda: torch.randn(rows, 256),
        lambda model, x: model(x).square().mean(),
        precision="fp32",
        device_type=device_type,
        judged=lambda: torch.randn(rows, 256),
    )
    settings = OPTIM.model_copy(update=optim)
    told = {"precision": "fp32", "device_type": device_type, "samples": rows, "processes": processes}
    return estimate(passes, settings, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [Small, adapted])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_what_is_held_all_the_time_is_told_to_the_byte(build: Any, optimizer: str) -> None:
    model = build()
    settings = OPTIM.model_copy(update={"optimizer": optimizer})
    moved, ema = build_optimizer(model, settings), Ema(model, 0.9)
    model(torch.randn(8, 256)).square().mean().backward()
    moved.step()
    states = [
        value for entry in moved.state.values() for value in entry.values() if isinstance(value, Tensor)
    ]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    own = {weight.data_ptr() for weight in model.parameters()}
    average = [*ema.model.parameters(), *ema.model.buffers()]
    found = sized(build, optimizer=optimizer)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.trained == sum(weight.numel() for weight in learning)
    assert found.weights_bytes == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert found.gradients_bytes == sum(weight.grad.nbytes for weight in learning if weight.grad is not None)
    assert found.optimizer_bytes == sum(state.nbytes for state in states if state.ndim)  # without counters
    assert found.ema_bytes == sum(tensor.nbytes for tensor in average if tensor.data_ptr() not in own)


def test_a_peak_is_all_of_it_and_what_a_pass_holds() -> None:
    found = sized(Small, rows=4096)
    held = found.weights_bytes + found.optimizer_bytes + found.ema_bytes + CUDA_WORKSPACE_BYTES
    assert held + found.activations_bytes <= found.peak_bytes
    assert found.peak_bytes <= held + found.activations_bytes + found.gradients_bytes
    assert sized(Small, rows=8192).activations_bytes == pytest.approx(2 * found.activations_bytes, rel=0.01)


def test_averages_on_the_host_and_other_processes_count_where_they_are() -> None:
    found, learning = sized(Small), 4 * (256 * 512 * 2 + 512 + 256)
    away = sized(Small, ema_device="cpu")
    # what travels is a piece of at most CHUNK numbers: here all of it
    assert found.peak_bytes - learning <= away.peak_bytes <= found.peak_bytes
    assert sized(Small, processes=2).peak_bytes == found.peak_bytes + learning
    assert "in the host's memory" in away.table()


def test_a_cpu_holds_more_than_its_tensors() -> None:
    on_cpu, on_gpu = sized(Small, "cpu"), sized(Small)
    assert on_cpu.peak_bytes == pytest.approx(GAPS * (on_gpu.peak_bytes - CUDA_WORKSPACE_BYTES), rel=0.02)


def test_the_table_tells_every_part() -> None:
    lines = sized(Small).table().splitlines()
    named = ["parameters", "weights", "gradients", "optimizer", "averages", "activations", "peak"]
    assert [line.split()[0] for line in lines] == named
    assert "8 samples at once, fp32" in lines[5]


def test_a_machine_tells_what_is_free() -> None:
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 62


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpus_peak_is_within_a_tenth_of_the_estimate(checkpointing: bool, precision: str) -> None:
    from benchmarks.memory import Run, measured_on_cuda, planned

    run = Run("decoder", precision=precision, checkpointing=checkpointing, scale=2)
    assert planned(run, "cuda").peak_bytes == pytest.approx(measured_on_cuda(run), rel=0.1)
