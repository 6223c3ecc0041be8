"""open_clip's own training script: run in its own process, read from its own log, and stepped in ours.

Ratios in benchmarks/clip.py are those of interleaved rounds (benchmarks/harness.py), for which both sides
must run in one process; a script that was started before or after would meet another load of the machine.
The step that is interleaved is no imitation: it calls the script's `train_one_epoch` on the script's own
model, loader, transform, loss, optimizer and schedule, one batch at a time. Its agreement with the whole
script is measured by `python -m benchmarks.clip_upstream`, which runs the script with the same flags in a
process of its own and reads the speed from its log; only that command uses the script's own figures.

The script's best setting on a CPU, which is what Crest is compared with: `--precision amp_bf16` (its
default "amp" is fp16 on a CPU, an order of magnitude slower than fp32) and `--workers 0` (on few cores
workers take from the model what they give to the data).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.clip_pairs import PLACE, Pairs, drawn
from benchmarks.harness import OUT, Step, surroundings
from crest.records import write_json

SCRIPT: Final = "open_clip_train.main"
MODEL, BATCH_SIZE = "ViT-B-32", 32
"""What benchmarks/clip.py trains."""
ROUNDS: Final = 4
STEPS: Final = 8
"""Steps that one round of the comparison takes on either side."""
_GRACE_S: Final = 10.0
_LINE: Final = re.compile(
    r"Train Epoch: (?P<epoch>\d+) \[ *(?P<samples>\d+)/(?P<size>\d+) .*?"
    r"Data \(t\): (?P<data_s>\S+) Batch \(t\): (?P<step_s>[^,\s]+), (?P<speed>[^/\s]+)/s,"
)


@dataclass(frozen=True)
class LoggedStep:
    """One line that the script logs of its training."""

    epoch: int
    samples: int
    """of this epoch so far"""
    data_s: float
    """spent waiting for the batch"""
    step_s: float
    """the whole step"""
    samples_per_s: float


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    seconds: float
    returncode: int
    was_stopped: bool
    """by the time limit"""


@dataclass(frozen=True)
class ScriptRun:
    """One run of the script."""

    folder: Path
    """holds out.log and checkpoints/"""
    ended: Ended

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self.folder / "out.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def read_log(text: str) -> list[LoggedStep]:
    """The training lines of an out.log, in order."""
    return [
        LoggedStep(
            int(found["epoch"]),
            int(found["samples"]),
            float(found["data_s"]),
            float(found["step_s"]),
            float(found["speed"]),
        )
        for found in map(_LINE.search, text.splitlines())
        if found
    ]


def steady_speed(steps: Sequence[LoggedStep]) -> float:
    """Median samples per second without the first step of each epoch, which starts workers and warms up.

    Raises:
        ValueError: no epoch has a second step.
    """
    epochs = [step.epoch for step in steps]
    steady = [
        step.samples_per_s for number, step in enumerate(steps) if number and epochs[number - 1] == step.epoch
    ]
    if not steady:
        raise ValueError(
            f"out.log: found {len(steps)} training lines and no second one of an epoch, expected steps; "
            "give the script more pairs than two batches."
        )
    return statistics.median(steady)


def script_flags(
    pairs: Pairs,
    *,
    model: str = MODEL,
    batch_size: int = BATCH_SIZE,
    epochs: int = 1,
    workers: int = 0,
    further: Sequence[str] = (),
) -> list[str]:
    """The script's flags at its best setting on a CPU; `further` ones win, because they come last."""
    return [
        *("--train-data", str(pairs.train_csv), "--dataset-type", "csv"),
        *("--model", model, "--batch-size", str(batch_size), "--epochs", str(epochs)),
        *("--device", "cpu", "--precision", "amp_bf16", "--workers", str(workers)),
        *("--warmup", "10", "--log-every-n-steps", "1", "--save-frequency", "0"),
        *further,
    ]


def run_script(flags: Sequence[str], folder: Path, limit_s: float | None = None) -> ScriptRun:
    """Run open_clip's script to its end or to the time limit, its start included.

    Args:
        flags: for the script; --logs and --name are set here.
        folder: of the run, which must not exist (the script refuses it, and exits with 0).
        limit_s: as for `run_limited`.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists, expected a new folder; remove it.")
    command = [sys.executable, "-m", SCRIPT, *flags, "--logs", str(folder.parent), "--name", folder.name]
    return ScriptRun(folder, run_limited(command, folder.parent / f"{folder.name}.said", limit_s))


def run_limited(command: Sequence[str], said: Path, limit_s: float | None) -> Ended:
    """Run a command to its end or to the time limit; what it prints goes into a file.

    Args:
        command: is given process and session of its own.
        said: where its output goes.
        limit_s: after so long it is asked to stop, and killed when it does not.
    """
    said.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with said.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        was_stopped = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            was_stopped = True
        finally:
            seconds = time.monotonic() - start
            _end(process)
    return Ended(seconds, int(process.returncode), was_stopped)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and the workers that it started, if any is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return


class _Window:
    """One batch at a time of the script's own endless loader, in the shape that `train_one_epoch` reads."""

    num_batches = 1

    def __init__(self, data: Any) -> None:
        self.dataloader = self
        self.num_samples = data.dataloader.num_samples
        self._batches = self._endless(data)

    def set_epoch(self, epoch: int) -> None:
        """The loader behind goes through its epochs by itself."""

    def __iter__(self) -> Iterator[Any]:
        yield next(self._batches)

    @staticmethod
    def _endless(data: Any) -> Iterator[Any]:
        for epoch in range(1 << 30):
            data.set_epoch(epoch)
            yield from data.dataloader


def script_batches(flags: Sequence[str]) -> Step:
    """One batch of the script's own loader, without what is done with it."""
    from open_clip import get_tokenizer, image_transform
    from open_clip.factory import get_model_config
    from open_clip_train.data import get_data
    from open_clip_train.params import parse_args

    args = parse_args(list(flags))
    args.distributed = False
    side_px = get_model_config(args.model)["vision_cfg"]["image_size"]
    transforms = [image_transform(side_px, is_train=is_train) for is_train in (True, False)]
    window = _Window(get_data(args, tuple(transforms), epoch=0, tokenizer=get_tokenizer(args.model))["train"])
    return lambda: next(iter(window))


def script_step(flags: Sequence[str]) -> Step:
    """One training step of the script, made of the script's own parts in the order of its `main`.

    Args:
        flags: as for `run_script`; those that only `main` heeds (logs, saving, evaluation) do nothing here.
    """
    import torch
    from open_clip import create_loss, create_model_and_transforms, get_tokenizer
    from open_clip_train.data import get_data
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.main import random_seed
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    args = parse_args(list(flags))
    device = init_distributed_device(args)
    args.distill = args.wandb = False
    if args.force_image_size is not None:
        (args.force_image_size,) = args.force_image_size  # as its main does with a single number
    random_seed(args.seed, 0)
    model, train_transform, val_transform = create_model_and_transforms(
        args.model,
        args.pretrained,
        precision=args.precision,
        device=device,
        aug_cfg=args.aug_cfg,
        force_image_size=args.force_image_size,
        output_dict=True,
    )
    if args.lock_image:
        model.lock_image_tower(args.lock_image_unlocked_groups, args.lock_image_freeze_bn_stats)
    random_seed(args.seed, args.rank)

    def is_spared(name: str, weight: Any) -> bool:
        return weight.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    learning = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for name, w in learning if is_spared(name, w)], "weight_decay": 0.0},
            {"params": [w for name, w in learning if not is_spared(name, w)], "weight_decay": args.wd},
        ],
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        eps=args.eps,
    )
    data = get_data(args, (train_transform, val_transform), epoch=0, tokenizer=get_tokenizer(args.model))
    window = {"train": _Window(data["train"])}
    scheduler = cosine_lr(optimizer, args.lr, args.warmup, 1 << 20)
    loss = create_loss(args)
    numbers = iter(range(1 << 30))

    def step() -> None:
        torch.set_float32_matmul_precision("highest")  # torch's default, which Crest's side changes
        train_one_epoch(model, window, loss, next(numbers), optimizer, None, scheduler, None, args)

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Measure how far the step in our process agrees with the script, whose workers are 0 or 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip_upstream", description=main.__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.WARNING)
    model, batch_size = arguments.model, arguments.batch_size
    pairs = drawn(STEPS * batch_size)
    speeds: dict[str, list[float]] = {"script_workers_0": [], "script_workers_2": [], "in_process": []}
    step = script_step(script_flags(pairs, model=model, batch_size=batch_size))
    step()
    for number in range(arguments.rounds):
        for workers in (0, 2):
            flags = script_flags(pairs, model=model, batch_size=batch_size, workers=workers)
            ran = run_script(flags, PLACE / "script" / f"{os.getpid()}-{number}-{workers}")
            speeds[f"script_workers_{workers}"].append(steady_speed(read_log(ran.log)))
            shutil.rmtree(ran.folder)  # it holds a checkpoint, whatever the flags say
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        speeds["in_process"].append(batch_size / statistics.median(times))
        print({name: round(values[-1], 2) for name, values in speeds.items()}, flush=True)
    medians = {name: round(statistics.median(values), 3) for name, values in speeds.items()}
    ratios = [ours / its for ours, its in zip(speeds["in_process"], speeds["script_workers_0"], strict=True)]
    found = {
        "model": model,
        "batch_size": batch_size,
        "samples_per_s": medians,
        "rounds": speeds,
        "in_process_over_script": round(statistics.median(ratios), 4),
        **surroundings(),
    }
    write_json(OUT / "clip_upstream.json", found)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
