"""The smallest stage, stopped in every way, each life in a fork: `python stopped_toy.py FOLDER CASE …`.

A case is `signal@place`: KILL, TERM or INT in the second micro-batch (micro), in a backward pass (backward),
after the optimizer moved the weights and before the averages (moved), in a validation (validate), or after so
many milliseconds (12ms); or `full@N`, a disk that is full from its N-th write on; or `full@WORD`, one that is
full for files of this word. Prints a JSON of what each came to.
"""

import builtins
import errno
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "crest")]
from toy_stage import ToyBatch, ToyStage, train  # noqa: E402

from crest.checkpoint import newest_state  # noqa: E402
from crest.config import guarded  # noqa: E402

STEPS, AT = 9, 4
SETTINGS: dict[str, Any] = {"save_every": 7, "validate_every": 5, "preview_every": 4, "log_every": 1}


class Stopped(ToyStage):
    """Stops itself; batch norm, so that a forward pass leaves traces."""

    def __init__(self, stop: Callable[[], None], place: str) -> None:
        super().__init__(batch_size=8, micro=4, dropout=0.3)
        self.stop, self.place, self.validations = stop, place, 0
        self.now = -1

    def stop_if(self, is_there: bool) -> None:
        if is_there:
            self.stop()

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.now = batch.draw.step
        second = self.now == AT and batch.draw.first == 4
        loss, figures = super().loss(model, batch)
        if self.place == "micro":
            self.stop_if(second)
        if self.place == "backward" and second:
            loss.register_hook(lambda gradient: self.stop())
        return loss, figures

    def validate(self, model: nn.Module, world: Any) -> dict[str, float]:
        self.validations += 1
        self.stop_if(self.place == "validate" and self.validations == 2)  # that of step 5
        return super().validate(model, world)


def in_fork(work: Callable[[], object]) -> int:
    """The exit status of a child, negative for a signal."""
    child = os.fork()
    if child == 0:
        os._exit(guarded(lambda: work() and None))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live(folder: Path, case: str) -> int:
    """One life, ended as the case says."""
    kind, _, place = case.partition("@")
    if kind == "full":
        return in_fork(lambda: (fill_disk(place), go(folder)))
    number = getattr(signal, f"SIG{kind}")
    stage = Stopped(lambda: os.kill(os.getpid(), number), place)

    def work() -> None:
        if place == "moved":
            register_optimizer_step_post_hook(lambda *_: stage.stop_if(stage.now == AT))
        if place.endswith("ms"):
            main = os.getpid()
            late = threading.Timer(int(place[:-2]) / 1000, lambda: os.kill(main, number))
            late.daemon = True
            late.start()
        train(stage, folder, STEPS, **SETTINGS)

    return in_fork(work)


def go(folder: Path) -> None:
    """A life that nothing stops."""
    train(Stopped(lambda: None, ""), folder, STEPS, **SETTINGS)


def fill_disk(what: str) -> None:
    """Have every write fail after so many, or to files of this word, as on a full disk."""
    left, word, real = [int(what) if what.isdecimal() else 0], "" if what.isdecimal() else what, io.open

    def opened(*args: Any, **kwargs: Any) -> Any:
        stream = real(*args, **kwargs)
        mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
        is_other = isinstance(args[0], int) or word not in str(args[0]).rpartition("/run/")[2]
        if is_other or not any(letter in mode for letter in "wax+"):
            return stream
        write = stream.write

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: Any) -> None:
                stream.close()

            def write(self, content: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(content)

        return Full()

    io.open = builtins.open = opened  # type: ignore[assignment]


def newest(folder: Path) -> int:
    """The step of the newest whole state; 0 without one."""
    state = newest_state(folder)
    return 0 if state is None else int(state.stem.removeprefix("step-"))


def main(folder: Path, cases: list[str]) -> None:
    for slow in ("accelerate", "torch.utils.tensorboard", "torch._dynamo", "torch.distributed.fsdp"):
        importlib.import_module(slow)  # once, not in every life
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    told = []
    for case in cases:
        run, before = folder / case / "run", time.monotonic()
        status = live(run, case)
        ended = {"case": case, "status": status, "state": newest(run), "seconds": time.monotonic() - before}
        told.append({**ended, "again": in_fork(partial(go, run))})
    assert in_fork(partial(go, folder / "straight" / "run")) == 0
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
