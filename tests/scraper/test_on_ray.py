"""The same work on a Ray of two workers: the same bytes, and a killed worker costs its part alone.

One cluster for all of them: it takes seconds to start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scraper.collect import collect
from scraper.config import WorkConfig
from scraper.executor import ray_cluster, run_jobs

sys.path.append(str(Path(__file__).parent))
from chores import Task, do, tried
from shop import AsPng, Draw, Shop, part_bytes

ON_RAY = WorkConfig(executor="ray", workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(ON_RAY):
        yield


def test_results_come_in_order_and_a_killed_worker_costs_only_its_part(tmp_path: Path) -> None:
    tasks = [Task(number, tmp_path, deaths=int(number == 3)) for number in range(8)]
    assert list(run_jobs(do, tasks, ON_RAY, size=8)) == [number**2 for number in range(8)]
    assert tried(tmp_path) == {number: 1 + (number == 3) for number in range(8)}


def test_a_table_gives_the_same_bytes_as_on_local_processes(
    tmp_path: Path, server: Any, draw: Draw, as_png: AsPng
) -> None:
    shop = Shop(tmp_path, server, draw, as_png)
    shop.stock(24)
    collect(shop.config())
    other = tmp_path / "other"
    collect(shop.config(data={"dir": str(other)}, work={"workers": 2, "executor": "ray"}))
    assert part_bytes(other) == part_bytes(shop.data)
