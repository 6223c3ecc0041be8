"""Work for the executor's tests, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from crest.errors import DataError


@dataclass(frozen=True)
class Task:
    """Something to do, as the workers get it."""

    number: int
    folder: Path
    sleep_s: float = 0.0
    deaths: int = 0
    fails: bool = False


def do(task: Task) -> int:
    """The square; notes that it was tried, and dies as often as the task says."""
    tries = task.folder / f"{task.number}.tries"
    with tries.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if len(tries.read_text().splitlines()) <= task.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.sleep_s)
    if task.fails:
        raise DataError(f"part {task.number}: is no part.")
    return task.number**2


def tried(folder: Path) -> dict[int, int]:
    """How often each task was begun."""
    return {int(path.stem): len(path.read_text().splitlines()) for path in folder.glob("*.tries")}
