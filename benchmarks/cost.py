"""What a training step costs against size: seconds and memory of decoder and prior for dims 64 to 320.

`python -m benchmarks.cost` steps each size in processes of their own, alone and shared by two (gloo, each
with half of the batch and of the threads), and draws out/bench/cost.html beside out/bench/cost.json. Refuses
to extrapolate: a size that was not run, or did not fit, is not on the plot.

Sizes are small so that two cores get through them: decoders of 32 px, multiples 1, 2 and 4, one block a
level, batches of 8; priors of 4 layers that read 40 tokens of text, batches of 32, where the dim is the
embedding's. Random data: no step takes longer for another picture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from benchmarks.harness import OUT, Step, peak_mb, surroundings
from crest.page import Line, curves, page, table, text
from crest.records import write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

Model = Literal["decoder", "prior"]
MODELS: Final[tuple[Model, ...]] = ("decoder", "prior")
DIMS: Final = (64, 128, 192, 256, 320)
PROCESSES: Final = (1, 2)
BATCH: Final = {"decoder": 8, "prior": 32}
STEPS: Final = 5
"""Timed, after two that are not."""


@dataclass(frozen=True)
class Cost:
    """What one size took."""

    model: Model
    dim: int
    processes: int
    weights: int
    seconds: float
    """median of a step"""
    peak_mb: float
    """of the largest process"""


def network(model: Model, dim: int) -> nn.Module:
    """The network of one size, from random weights."""
    import torch

    from crest.models.decoder import Decoder
    from crest.models.decoder_spec import DecoderSpec
    from crest.models.prior import Prior, PriorSpec

    torch.manual_seed(0)
    if model == "prior":
        return Prior(PriorSpec(image_embed_dim=dim, text_width=dim, depth=4, heads=dim // 32, dim_head=32))
    spec = DecoderSpec(
        side_px=32, image_embed_dim=512, text_width=None, dim=dim, dim_mults=(1, 2, 4), self_attn=(False,) * 3
    )
    return Decoder(spec)


def step_of(model: Model, dim: int, batch_size: int) -> tuple[Step, int]:
    """A step of training: forward, backward, clipping, AdamW, averaged weights.

    Args:
        model: which.
        dim: its size.
        batch_size: of all processes together; this one takes its share.
    Returns:
        the step, and how many weights it moves.
    """
    import torch

    from crest.config import OptimConfig
    from crest.ema import Ema
    from crest.optimizers import build_optimizer
    from crest.world import open_world

    world = open_world("cpu", "fp32")
    optim = OptimConfig(lr=1e-4, batch_size=batch_size)
    plain = network(model, dim)
    ema = Ema(plain, optim.ema_decay)
    wrapped, optimizer = world.prepare(plain, build_optimizer(plain, optim))
    told = _told(model, dim, batch_size // world.size)
    wanted = torch.randn_like(told[0])

    def step() -> None:
        loss: Tensor = (wrapped(*told) - wanted).square().mean()
        world.backward(loss)
        world.accelerator.clip_grad_norm_(plain.parameters(), optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(plain, 1)

    return step, sum(weight.numel() for weight in plain.parameters() if weight.requires_grad)


def _told(model: Model, dim: int, count: int) -> tuple[Any, ...]:
    import torch

    t, keep = torch.arange(count), torch.ones(count, dtype=torch.bool)
    if model == "decoder":
        return torch.randn(count, 3, 32, 32), t, torch.randn(count, 512), None, keep, keep
    embed = torch.randn(2, count, dim)
    return embed[0], t, embed[1], torch.randn(count, 40, dim), keep, keep


def measure(model: Model, dim: int, processes: int, steps: int = STEPS) -> Cost:
    """Step one size in processes of their own.

    Raises:
        RuntimeError: they failed; with what they said.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [model, str(dim), str(processes), str(steps)]
    ran = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), "-m", "benchmarks.cost", "--alone", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"model"')]
    if ran.returncode or not found:
        raise RuntimeError(f"benchmarks.cost {' '.join(words)}: failed\n{ran.stderr}")
    return Cost(**found[0])


def alone(model: Model, dim: int, processes: int, steps: int) -> None:
    """One process of `measure`: the first of them prints what all took."""
    import torch

    step, weights = step_of(model, dim, BATCH[model])
    for _ in range(2):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = torch.tensor(peak_mb())
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
    if int(os.environ.get("RANK", "0")) == 0:
        cost = Cost(model, dim, processes, weights, statistics.median(seconds), float(peak))
        print(json.dumps(asdict(cost)), flush=True)


def drawn(costs: Sequence[Cost], around: str) -> str:
    """The page: a plot of seconds and one of memory for each model, and the figures."""
    parts = [f"<h1>Cost against size</h1><p>{text(around)}</p>"]
    for model in dict.fromkeys(cost.model for cost in costs):
        parts.append(f"<h2>{text(model)}, batches of {BATCH[model]}</h2>")
        for what, unit in (("seconds", "seconds a step"), ("peak_mb", "megabytes, largest process")):
            lines = [
                Line(
                    f"{processes} process{'es' if processes > 1 else ''}",
                    [(cost.dim, getattr(cost, what)) for cost in _of(costs, model, processes)],
                    tone="accent" if processes == 1 else "better",
                    dash="" if processes == 1 else "6 3",
                )
                for processes in PROCESSES
                if _of(costs, model, processes)
            ]
            parts.append(f"<h3>{unit}</h3>")
            parts.append(curves(lines, across="dim", description=f"{model}: {unit} against dim"))
    rows = [
        [
            f"{cost.model} {cost.dim}",
            str(cost.processes),
            f"{cost.weights / 1e6:.1f}",
            f"{cost.seconds:.3f}",
            f"{cost.peak_mb:.0f}",
        ]
        for cost in costs
    ]
    parts.append(table("All that was measured", ["", "processes", "million weights", "s", "MB"], rows))
    return page("Cost against size", "\n".join(parts))


def _of(costs: Sequence[Cost], model: Model, processes: int) -> list[Cost]:
    return [cost for cost in costs if (cost.model, cost.processes) == (model, processes)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all sizes, or those named, and draw the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, metavar="DIM")
    parser.add_argument("--steps", type=int, default=STEPS, help="timed at each size")
    parser.add_argument("--alone", nargs=4, metavar="WORD", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.alone:
        model, *numbers = arguments.alone
        alone(model, *map(int, numbers))
        return 0
    costs = []
    for model in MODELS:
        for dim in arguments.dims:
            for processes in PROCESSES:
                costs.append(measure(model, dim, processes, arguments.steps))
                print(costs[-1], flush=True)
    around = surroundings()
    write_json(OUT / "cost.json", {"costs": [asdict(cost) for cost in costs], **around})
    write_bytes(OUT / "cost.html", drawn(costs, f"{around['machine']}, {around['commit']}").encode())
    print(OUT / "cost.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
