"""Work that falls into parts: the same pure function for each part, on processes or on a Ray cluster.

Results come in the order of the jobs, whoever finished first, so that what is written from them is the same
for any number of workers. A worker that dies costs the part it was at, which is done again.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Final, TypeVar

from scraper.config import WorkConfig

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD: Final = 2
"""Jobs that wait for each worker, so that none is idle and few results are held."""


def worker_count(work: WorkConfig) -> int:
    """How many parts are in work at once."""
    return work.workers or os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], work: WorkConfig, *, size: int
) -> Iterator[Result]:
    """Apply a function to every job.

    Args:
        function: at the top of a module, its job and result picklable; it may be called twice for one job.
        jobs: taken as they are needed, never all at once.
        work: who works.
        size: how many jobs there are; one alone is done in this process.
    Yields:
        one result a job, in the order of the jobs.
    """
    workers = min(worker_count(work), size)
    if workers <= 1:
        yield from map(function, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
