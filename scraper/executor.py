"""Work that falls into parts: the same pure function for each part, on processes or on a Ray cluster.

Results come in the order of the jobs, whoever finished first, so that what is written from them is the same
for any number of workers. A worker that dies costs the part it was at, which is done again; the other workers
go on. The only file that knows ray.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, TypeVar

from crest.errors import ConfigError, RunError
from scraper.config import WorkConfig

Job = TypeVar("Job")
Result = TypeVar("Result")

ATTEMPTS: Final = 3
"""So many workers may die of one job."""
AHEAD: Final = 4
"""Jobs for each worker that are done or in work beyond the first that is not: one slow part holds up nobody
at once, and few results are held."""
_ASSIGNED: Final = 2
"""Jobs that a worker holds: it has the next one when it is done with the first."""
_END_S: Final = 5.0
_STORE_BYTES: Final = 128 << 20
"""Memory for objects of a Ray cluster on this machine; jobs and results are small."""


def worker_count(work: WorkConfig) -> int:
    """How many parts are in work at once on this machine."""
    return work.workers or os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], work: WorkConfig, *, size: int
) -> Iterator[Result]:
    """Apply a function to every job.

    Args:
        function: at the top of a module, its job and result picklable; it may be called twice for one job.
        jobs: taken as they are needed, never all at once.
        work: who works.
        size: how many jobs there are; a single one needs no other process.
    Yields:
        one result a job, in the order of the jobs.
    Raises:
        RunError: workers died of one job again and again.
        ConfigError: Ray is asked for and not installed, or does not answer.
    """
    if work.executor == "ray":
        yield from _on_ray(function, jobs, work)
        return
    workers = min(worker_count(work), size)
    if workers <= 1:
        yield from map(function, jobs)
        return
    crew = _Crew(function, workers)
    try:
        yield from crew.results(jobs)
    finally:
        crew.end()


def _died(name: str, number: int, how: str) -> RunError:
    return RunError(
        f"{name}: job {number} ended {ATTEMPTS} workers ({how}), expected none to die; lower work.workers if "
        "memory ran out, then run the same command again: what is finished is kept."
    )


class _Worker:
    """A process, the line to it, and what it has to do."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, function))
        self.jobs: deque[int] = deque()
        self.process.start()
        theirs.close()


class _Crew:
    """Worker processes of this machine, replaced when they die."""

    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        self._function = function
        self._size = workers
        self._workers: list[_Worker] = []
        self._held: dict[int, bytes] = {}
        """jobs that are not done, pickled"""
        self._waiting: deque[int] = deque()
        """those of them that no worker has"""
        self._done: dict[int, tuple[bool, Any]] = {}
        self._deaths: dict[int, int] = {}

    def results(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """The function's results, in the order of the jobs."""
        source = enumerate(jobs)
        turn = 0
        has_more = True
        while True:
            while has_more and len(self._held) + len(self._done) < self._size * AHEAD:
                number, job = next(source, (-1, None))
                has_more = number >= 0
                if has_more:
                    self._held[number] = pickle.dumps(job)
                    self._waiting.append(number)
            self._assign()
            while turn in self._done:
                is_well, value = self._done.pop(turn)
                if not is_well:
                    raise value
                turn += 1
                yield value
                self._take(0)  # the consumer may have been slow
            if not self._held and not has_more:
                return
            if turn not in self._done and self._held:
                self._take(None)

    def _assign(self) -> None:
        """Give what waits to whoever has least to do."""
        while self._waiting:
            if len(self._workers) < min(self._size, len(self._held)):
                self._workers.append(_Worker(self._function))
            idlest = min(self._workers, key=lambda worker: len(worker.jobs))
            if len(idlest.jobs) >= _ASSIGNED:
                return
            number = self._waiting.popleft()
            idlest.jobs.append(number)
            with contextlib.suppress(OSError):  # it died; _take will see that
                idlest.line.send_bytes(self._held[number])

    def _take(self, timeout_s: float | None) -> None:
        """Take the results that are there; without any, wait for one."""
        by_line = {worker.line: worker for worker in self._workers}
        for line in wait(list(by_line), timeout_s):
            worker = by_line[line]  # type: ignore[index]
            try:
                is_well, value = pickle.loads(worker.line.recv_bytes())
            except (EOFError, OSError):
                self._bury(worker)
                continue
            number = worker.jobs.popleft()
            del self._held[number]
            self._done[number] = is_well, value
        self._assign()

    def _bury(self, worker: _Worker) -> None:
        """A worker died: the job it was at counts a death, and all of its jobs wait again, before others."""
        self._workers.remove(worker)
        worker.line.close()
        worker.process.join()
        if worker.jobs:
            number = worker.jobs[0]
            self._deaths[number] = self._deaths.get(number, 0) + 1
            if self._deaths[number] >= ATTEMPTS:
                raise _died(self._function.__name__, number, _how(worker.process.exitcode))
        self._waiting.extendleft(reversed(worker.jobs))

    def end(self) -> None:
        """Stop all workers at once: what they write appears whole or not at all."""
        for worker in self._workers:
            worker.process.terminate()
            worker.line.close()
        for worker in self._workers:
            worker.process.join(_END_S)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"


def _work(line: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: jobs come in over the line, results go out, until the parent ends or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                inbox.put(line.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone: whatever this process is at is nobody's any more

    threading.Thread(target=listen, daemon=True).start()
    while True:
        job = pickle.loads(inbox.get())
        try:
            answer = pickle.dumps((True, function(job)))
        except Exception as error:
            answer = pickle.dumps((False, _sendable(error)))
        line.send_bytes(answer)


def _sendable(error: Exception) -> Exception:
    """The error itself where it survives the journey, else its words."""
    with contextlib.suppress(Exception):
        return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def ray_cluster(work: WorkConfig) -> Iterator[Any]:
    """Ray, connected to a cluster: the one that this process is connected to, else that of the settings.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
    try:
        import ray
    except ImportError:
        raise ConfigError(
            'work.executor: is "ray", which is not installed; pip install ray, or set it to "local".'
        ) from None
    if ray.is_initialized():
        yield ray
        return
    path = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    here = {"num_cpus": worker_count(work), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        _knock(work.address)
        ray.init(
            address=work.address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": path}},  # workers import from here: no upload
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if work.address else here),
        )
    except Exception as error:  # Ray raises a bare one when it does not come up in its 30 s
        ray.shutdown()
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"work.address: no Ray cluster answers at {work.address or 'this machine'} ({why}); start "
            'one or try again when the machine is less busy, or set work.executor to "local".'
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _on_ray(function: Callable[[Job], Result], jobs: Iterable[Job], work: WorkConfig) -> Iterator[Result]:
    with ray_cluster(work) as ray:
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(function)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        window = AHEAD * max(1, min(work.workers or cpus, cpus))
        pending: deque[Any] = deque()
        turn = 0
        for job in jobs:
            pending.append(remote.remote(job))
            if len(pending) >= window:
                yield _got(ray, pending.popleft(), function.__name__, turn)
                turn += 1
        while pending:
            yield _got(ray, pending.popleft(), function.__name__, turn)
            turn += 1


def _knock(address: str | None) -> None:
    """Raise OSError when nobody listens at host:port: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _END_S).close()


def _got(ray: Any, reference: Any, name: str, number: int) -> Any:
    """A job's result, or the error that it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise _died(name, number, str(error).strip().splitlines()[0]) from None
