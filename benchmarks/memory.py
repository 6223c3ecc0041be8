"""How near `--dry-run` comes: memory that is told beforehand against what training takes.

`python -m benchmarks.memory` trains small networks of several kinds for three steps each, through the loop's
own fit, in processes of their own, and compares: on a CPU the most that is resident less what was after a
tiny network of the kind had been trained, on a GPU torch.cuda.max_memory_allocated (`--device cuda`). Writes
out/bench/memory.json.

On a CPU crest.memory.GAPS was fitted, to runs like the first of these: those marked `fitted` say how well one
factor describes them, the others how well it foretells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness import OUT, surroundings
from crest.records import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crest.memory import MemoryEstimate

STEPS = 3
TINY = 0
"""The scale of what is trained first, so that libraries have taken what they take."""


@dataclass(frozen=True)
class Run:
    """One way of training."""

    kind: Literal["decoder", "prior"]
    precision: str = "fp32"
    checkpointing: bool = False
    optimizer: str = "adamw"
    lora: bool = False
    accumulation: int = 1
    samples: int = 16
    scale: int = 1
    fitted: bool = False
    """whether a run like it was looked at when GAPS was chosen"""

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        parts = [self.kind, f"x{self.scale}", self.precision, f"{self.samples} at once"]
        parts += ["checkpointing"] * self.checkpointing + ["lora"] * self.lora
        parts += [self.optimizer] * (self.optimizer != "adamw")
        return " ".join([*parts, *[f"{self.accumulation} passes"] * (self.accumulation > 1)])


RUNS = (
    Run("decoder", fitted=True),
    Run("decoder", "bf16", fitted=True),
    Run("decoder", checkpointing=True, samples=32, fitted=True),
    Run("decoder", optimizer="adamw_8bit", fitted=True),
    Run("decoder", accumulation=2),
    Run("decoder", lora=True, samples=32),
    Run("decoder", scale=2),
    Run("prior", samples=32, fitted=True),
    Run("prior", "bf16", samples=32, fitted=True),
    Run("prior", checkpointing=True, samples=64, fitted=True),
    Run("prior", optimizer="adamw_8bit", samples=32),
    Run("prior", lora=True, samples=64),
    Run("prior", scale=2, samples=32),
)


def network(run: Run) -> nn.Module:
    """The network of a run, from random weights, prepared as a stage would."""
    from crest.adapters import inject
    from crest.models.decoder import Decoder, DecoderSpec
    from crest.models.prior import Prior, PriorSpec

    made: Any
    if run.kind == "prior":
        width = 32 if run.scale == TINY else 512
        made = Prior(
            PriorSpec(
                image_embed_dim=width,
                text_width=width,
                depth=max(1, 8 * run.scale),
                heads=8,
                dim_head=64,
                ff_mult=4.0,
            )
        )
    else:
        made = Decoder(
            DecoderSpec(
                side_px=32,
                image_embed_dim=128,
                text_width=128,
                dim={TINY: 16, 1: 96, 2: 160}[run.scale],
                dim_mults=(1, 2, 4),
                num_resnet_blocks=2,
                self_attn=(False, False, True),
            )
        )
    if run.lora:
        inject(made, 8, 8, made.lora_targets)
    if run.checkpointing:
        made.save_memory()
    result: nn.Module = made
    return result


def batch(model: Any, run: Run, device: str = "cpu") -> tuple[Tensor, ...]:
    """Random inputs of one pass."""
    import torch

    spec, b = model.spec, run.samples
    shape = (spec.image_embed_dim,) if run.kind == "prior" else (3, spec.side_px, spec.side_px)
    keep = torch.ones(b, dtype=torch.bool, device=device)
    return (
        torch.randn(b, *shape, device=device),
        torch.zeros(b, dtype=torch.long, device=device),
        torch.randn(b, spec.image_embed_dim, device=device),
        torch.randn(b, spec.max_text_len, spec.text_width, device=device),
        keep,
        keep,
    )


def loss(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Mean squared error against the noised input."""
    error: Tensor = (model(*inputs) - inputs[0]).square().mean()
    return error


def planned(run: Run, device_type: str = "cpu") -> MemoryEstimate:
    """What is told beforehand."""
    from crest.ledger import without_numbers
    from crest.memory import estimate, try_passes

    made = without_numbers(lambda: network(run))
    passes = try_passes(
        made,
        lambda: batch(made, run),
        loss,
        precision=run.precision,
        device_type=device_type,
        accumulation=run.accumulation,
    )
    told = {"precision": run.precision, "device_type": device_type, "samples": run.samples}
    return estimate(passes, _optim(run), **told)  # type: ignore[arg-type]


def _optim(run: Run) -> Any:
    from crest.config import OptimConfig

    return OptimConfig.model_validate(
        {"lr": 1e-4, "batch_size": run.samples * run.accumulation, "optimizer": run.optimizer}
    )


class _Stage:
    """The smallest stage over such a network."""

    best_by = "loss"

    def __init__(self, run: Run, device: str) -> None:
        self.run, self.device = run, device

    def model(self) -> nn.Module:
        return network(self.run)

    def batches(self, split: str, world: object, start: int) -> Iterator[tuple[Tensor, ...]]:
        from crest.ledger import without_numbers

        shapes = without_numbers(lambda: network(self.run))
        while True:
            yield batch(shapes, self.run, self.device)

    def loss(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(model, inputs), {}

    def resting(self, step: int) -> tuple[()]:
        return ()

    def validate(self, model: nn.Module, world: object) -> dict[str, float]:
        return {}

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        return {}

    def card(self, model: nn.Module) -> dict[str, Any]:
        return {"kind": self.run.kind, "spec": {}, "parents": {}}


def train(run: Run, device: str) -> None:
    """A few steps of the loop, saved and exported."""
    from crest.config import RunConfig
    from crest.loop import fit
    from crest.world import open_world

    world = open_world(device, run.precision)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(dir=Path(folder) / "run", steps=STEPS, device=device, log_every=STEPS)
        fit(_Stage(run, device), config, _optim(run), recipe={}, world=world, accumulation=run.accumulation)


def measured_resident(run: Run) -> int:
    """Bytes resident at most while a run trains, less those after a tiny one had been; this process's own."""
    import gc

    train(replace(run, scale=TINY, samples=2), "cpu")
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    train(run, "cpu")
    return _status("VmHWM") - before


def measured_on_cuda(run: Run) -> int:
    """Bytes that torch held at most on a GPU while a run trained."""
    import torch

    train(replace(run, scale=TINY, samples=2), "cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(run, "cuda")
    return torch.cuda.max_memory_allocated() - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: tells no {name}")


def _alone(run: Run, device: str) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--alone",
        json.dumps(asdict(run)),
        "--device",
        device,
    ]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all runs, or one in this process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.alone:
        run = Run(**json.loads(arguments.alone))
        print(measured_on_cuda(run) if arguments.device == "cuda" else measured_resident(run))
        return
    rows = []
    print(f"{'run':<44} {'told MB':>8} {'took MB':>8} {'off by':>7}")
    for run in RUNS:
        told, took = planned(run, arguments.device).peak_bytes, _alone(run, arguments.device)
        off = told / took - 1
        mark = "  fitted" * run.fitted
        print(f"{run.name:<44} {told / 1e6:>8.0f} {took / 1e6:>8.0f} {off:>+7.1%}{mark}", flush=True)
        rows.append({**asdict(run), "told_bytes": told, "took_bytes": took, "off_by": off})
    for fitted, what in ((True, "fitted"), (False, "foretold")):
        worst = max(abs(float(row["off_by"])) for row in rows if row["fitted"] is fitted)
        print(f"{what}: off by {worst:.1%} at most")
    write_json(OUT / "memory.json", {**surroundings(), "device": arguments.device, "runs": rows})


if __name__ == "__main__":
    main()
