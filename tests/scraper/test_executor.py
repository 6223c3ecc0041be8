"""Parts of work on processes: results in order; a worker that dies costs its part alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crest.errors import ConfigError, DataError, RunError
from scraper.config import WorkConfig
from scraper.executor import ATTEMPTS, run_jobs

sys.path.append(str(Path(__file__).parent))
from chores import Task, do, tried

LOCAL = WorkConfig(workers=2)


def test_results_come_in_the_order_of_the_jobs_whoever_is_done_first(tmp_path: Path) -> None:
    tasks = [Task(number, tmp_path, sleep_s=0.2 if number == 0 else 0.0) for number in range(20)]
    assert list(run_jobs(do, tasks, LOCAL, size=20)) == [number**2 for number in range(20)]
    workers = {line for path in tmp_path.glob("*.tries") for line in path.read_text().splitlines()}
    assert len(workers) == 2
    assert str(os.getpid()) not in workers


def test_one_worker_needs_no_other_process(tmp_path: Path) -> None:
    tasks = [Task(number, tmp_path) for number in range(3)]
    assert list(run_jobs(do, tasks, WorkConfig(workers=1), size=3)) == [0, 1, 4]
    assert {path.read_text() for path in tmp_path.glob("*.tries")} == {f"{os.getpid()}\n"}


def test_jobs_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    taken = 0

    def tasks() -> Iterator[Task]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield Task(number, tmp_path)

    results = run_jobs(do, tasks(), LOCAL, size=1000)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    results.close()  # type: ignore[attr-defined]
    assert taken < 40


def test_a_worker_that_is_killed_costs_only_the_part_it_was_at(tmp_path: Path) -> None:
    tasks = [
        Task(number, tmp_path, sleep_s=0.05, deaths=ATTEMPTS - 1 if number == 3 else 0)
        for number in range(10)
    ]
    assert list(run_jobs(do, tasks, LOCAL, size=10)) == [number**2 for number in range(10)]
    assert tried(tmp_path) == {number: ATTEMPTS if number == 3 else 1 for number in range(10)}


def test_a_part_that_kills_every_worker_stops_with_a_sentence(tmp_path: Path) -> None:
    tasks = [Task(number, tmp_path, deaths=99 if number == 1 else 0) for number in range(4)]
    with pytest.raises(RunError, match=r"^do: job 1 ended 3 workers \(killed by SIGKILL\), .* is kept\.$"):
        list(run_jobs(do, tasks, LOCAL, size=4))
    assert tried(tmp_path)[1] == ATTEMPTS


def test_an_error_comes_back_as_it_was_raised_in_its_turn(tmp_path: Path) -> None:
    tasks = [Task(number, tmp_path, fails=number == 2) for number in range(6)]
    results = run_jobs(do, tasks, LOCAL, size=6)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="part 2: is no part"):
        next(results)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from chores import Task, do
from scraper.config import WorkConfig
from scraper.executor import run_jobs

if __name__ == "__main__":
    folder = Path({folder!r})
    tasks = [Task(number, folder, sleep_s=60.0) for number in range(4)]
    list(run_jobs(do, tasks, WorkConfig(workers=2), size=4))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_stops_leaves_no_orphans(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while len(tried(tmp_path)) < 2 or not all(tried(tmp_path).values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [int(path.read_text()) for path in tmp_path.glob("*.tries")]
    parent.send_signal(how)
    started = time.monotonic()
    parent.wait(60)
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < started + 5
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_address_where_no_ray_answers_is_told() -> None:
    work = WorkConfig(executor="ray", address="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^work\.address: no Ray cluster answers at 127\.0\.0\.1:1 "):
        list(run_jobs(do, [], work, size=0))
