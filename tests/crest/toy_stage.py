"""The smallest Stage: an MLP that learns a fixed function. Run as a script, it is killed and started again.

`python toy_stage.py FOLDER KILLS SEED` trains in child processes, kills each with SIGKILL at a random moment
after a random number of batches, and lets the last one finish. It forks after the imports: lives are short.
"""

import fcntl
import importlib
import os
import random
import signal
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from crest.config import OptimConfig, RunConfig
from crest.loop import fit
from crest.pixels import batch_numbers
from crest.records import Split
from crest.world import Draw, World

SAMPLES = 40


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    draw: Draw
    ids: tuple[str, ...] = ()


class ToyStage:
    """Learns sin of a sum, with noise that belongs to the sample and dropout that belongs to the step."""

    best_by = "loss"

    def __init__(self, seed: int = 3, batch_size: int = 8, micro: int = 8, dropout: float = 0.0) -> None:
        self.seed, self.batch_size, self.micro = seed, batch_size, micro
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        if not dropout:
            del self.network[1]  # batch statistics would differ between one batch and two halves
        self.data = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))
        self.on_batch = lambda: None
        self.spoil_step = -1

    def model(self) -> nn.Module:
        return self.network

    def batches(self, split: Split, world: World, start: int) -> Iterator[ToyBatch]:
        step = start
        mine = self.batch_size // world.size
        while True:
            numbers = torch.from_numpy(batch_numbers(self.seed, SAMPLES, self.batch_size, step))
            for first in range(world.rank * mine, (world.rank + 1) * mine, self.micro):
                self.on_batch()
                own = numbers[first : first + self.micro]
                inputs = self.data[own]
                if step == self.spoil_step:
                    inputs = inputs * torch.inf
                ids = tuple(f"logo-{number}" for number in own.tolist())
                yield ToyBatch(inputs, Draw(self.seed, step, first, self.micro), ids)
            step += 1

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = batch.inputs.sum(dim=1, keepdim=True).sin()
        error = model(batch.inputs + 0.01 * batch.draw.normal(1, 4)) - wanted
        return error.square().mean(), {"bias": error.mean().detach()}

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        return {"loss": float((model(self.data) - self.data.sum(dim=1, keepdim=True).sin()).square().mean())}

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        return {"drawn": torch.full((1, 3, 4, 4), 0.5)}

    def card(self, model: nn.Module) -> dict[str, object]:
        return {"kind": "toy", "spec": {}, "parents": {}}


def configs(folder: Path, steps: int = 30, **settings: object) -> tuple[RunConfig, OptimConfig]:
    """A run of so many steps; settings are fields of either section."""
    run: dict[str, object] = {"dir": folder, "seed": 3, "steps": steps, "device": "cpu", "precision": "fp32"}
    run |= {"log_every": 2, "validate_every": 6, "preview_every": 1000, "save_every": 5}
    optim: dict[str, object] = {"lr": 0.02, "batch_size": 8, "ema_decay": 0.9, "warmup_steps": 3}
    for name, value in settings.items():
        (run if name in RunConfig.model_fields else optim)[name] = value
    return RunConfig.model_validate(run), OptimConfig.model_validate(optim)


def train(
    stage: ToyStage, folder: Path, steps: int = 30, export_best: bool = False, **settings: object
) -> Path:
    """fit() as a room calls it."""
    run, optim = configs(folder, steps, **settings)
    recipe = {"run": run.model_dump(mode="json"), "optim": optim.model_dump(mode="json")}
    accumulation = stage.batch_size // stage.micro // int(os.environ.get("WORLD_SIZE", "1"))
    return fit(stage, run, optim, recipe=recipe, accumulation=accumulation, export_best=export_best)


def live(folder: Path, batches: int | None, delay_s: float) -> bool:
    """One life in a child process, killed after it read so many batches; True when it finished."""
    leave, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        stage = ToyStage(batch_size=8, micro=4, dropout=0.3)
        if batches is not None:
            stage.on_batch = lambda: os.read(leave, 1) and None  # waits until it may
        train(stage, folder)
        os._exit(0)
    os.close(leave)
    if batches is not None:
        os.write(hold, b"." * batches)
        wait_until_empty(hold, child)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(hold)
    return status == 0


def wait_until_empty(pipe: int, child: int) -> None:
    """Until the child has taken every leave that it was given, or has ended."""
    waiting = bytearray(4)
    while fcntl.ioctl(pipe, termios.FIONREAD, waiting) == 0 and int.from_bytes(waiting, sys.byteorder):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def main(folder: Path, kills: int, seed: int) -> None:
    """Print how many lives ended before their time."""
    for slow in ("accelerate", "torch.utils.tensorboard", "torch._dynamo"):
        importlib.import_module(slow)  # once, not in every life
    chance, died = random.Random(seed), 0
    for _ in range(kills):
        died += not live(folder, chance.randint(1, 16), chance.uniform(0, 0.02))
    assert live(folder, None, 0.0)
    print(f"died {died}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
