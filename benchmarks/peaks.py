"""What this machine can do at most, measured: matrix products and 3x3 convolutions in fp32 and bf16.

A share of the peak says how much there is left to gain; it holds for the moment that it was measured in. Work
is counted by torch's own counter over one of our steps: multiplications and additions of products,
convolutions and attention, nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from benchmarks.harness import Figures, Step

Precision = Literal["fp32", "bf16"]
Kind = Literal["product", "convolution"]
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices."""
CHANNELS = 256
PIXELS = {"cpu": 32, "cuda": 128}
PICTURES = {"cpu": 8, "cuda": 32}


def peak_gflops(kind: Kind, precision: Precision, device: str = "cpu", seconds: float = 1.0) -> float:
    """The best of as many runs as fit into some seconds, in GFLOP/s, in the arithmetic of open_world()."""
    import torch
    import torch.nn.functional as F

    torch.set_float32_matmul_precision("high" if device == "cuda" else "medium")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if kind == "product":
        n = SIDE[device]
        left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        flops = 2 * n**3

        def once() -> object:
            return left @ right
    else:
        pictures, side = PICTURES[device], PIXELS[device]
        x = torch.randn(pictures, CHANNELS, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        flops = 2 * x.numel() * CHANNELS * 9

        def once() -> object:
            return F.conv2d(x, weight, padding=1)

    def timed() -> float:
        start = time.perf_counter()
        once()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.no_grad():
        timed()
        best, until = timed(), time.perf_counter() + seconds
        while time.perf_counter() < until:
            best = min(best, timed())
    return flops / best / 1e9


def gflop(step: Step) -> float:
    """Work of one run of a step, in GFLOP (10^9 multiplications and additions)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def share_of_peak(
    kind: Kind, precision: Precision, *, counted: int = 1, device: str = "cpu", seconds: float = 1.0
) -> Figures:
    """Figures of a case: work of our step, how fast it was done, the peak just now, and the share of it.

    Args:
        kind: what the step is mostly made of.
        precision: of its products.
        counted: steps whose work is counted and averaged, where steps differ.
        device: "cpu" or "cuda".
        seconds: how long the peak is looked for.
    """

    def figures(steps: Mapping[str, Step], times: Mapping[str, Sequence[float]]) -> dict[str, float]:
        work = statistics.fmean(gflop(steps["crest"]) for _ in range(counted))
        speed, peak = work / statistics.median(times["crest"]), peak_gflops(kind, precision, device, seconds)
        return {
            "gflop": round(work, 3),
            "gflops": round(speed, 1),
            f"peak_gflops_{precision}_{kind}": round(peak, 1),
            "share_of_peak": round(speed / peak, 3),
        }

    return figures
