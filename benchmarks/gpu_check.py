"""Check Crest on a CUDA device: the tests marked gpu, then short training steps, timed in fp32 and bf16.

Refuses to pass where there is nothing to check.
"""

from __future__ import annotations

import subprocess
import sys
import time

from crest.config import guarded
from crest.errors import CrestError, DeviceError

STEPS = 5


def main() -> int:
    """Run everything; the exit status is that of the first failure."""
    return guarded(check)


def check() -> None:
    """Run the gpu tests and time training steps.

    Raises:
        DeviceError: there is no CUDA device.
        CrestError: a test failed.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(
            "gpu-check: this machine has no CUDA device that torch can use, so nothing was checked; "
            "run it on one that has."
        )
    from crest.world import machine

    print(machine(), flush=True)
    status = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-v"]).returncode
    if status:
        raise CrestError(f"gpu-check: the tests marked gpu ended with status {status}; see above.")
    time_steps()


def time_steps() -> None:
    """Print milliseconds per step of decoder and prior at the demo's size, in fp32 and bf16."""
    import torch

    from benchmarks import steps

    stages = (
        ("decoder", steps.our_decoder, steps.decoder_recipe()),
        ("prior", steps.our_prior, steps.prior_recipe()),
    )
    for name, build, recipe in stages:
        for precision in ("fp32", "bf16"):
            step = build(recipe, precision, "cuda")
            step()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            took_ms = (time.perf_counter() - start) / STEPS * 1000
            print(f"{name} {precision}: {took_ms:.1f} ms a step of {recipe.batch_size}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
