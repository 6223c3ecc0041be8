"""Compare variants of one piece of work fairly: interleaved in one process, medians of per-round ratios.

Times of different rounds are never divided by each other, because a shared machine drifts by more than what
is measured. Memory is the peak of a process that runs one variant alone. Refuses to guess: what was not run
is not in the table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from crest.records import write_json

Step = Callable[[], object]
Figures = Callable[[Mapping[str, Step], Mapping[str, Sequence[float]]], Mapping[str, float]]
OUT = Path("out/bench")
ALONE_STEPS = 3
"""Steps after which a process that trains has reached its peak memory."""
NAMED_VERSIONS = ("torch", "dalle2-pytorch", "open_clip_torch", "numpy")


@dataclass(frozen=True)
class Case:
    """One question: how do these variants of the same work compare?"""

    name: str
    variants: Mapping[str, Callable[[], Step]]
    """name -> builder of a step; what is built is not timed"""
    upstream: str = "upstream"
    """variant that the ratios are taken of"""
    ours: str = "crest"
    """variant that the ratios are taken by"""
    memory: bool = True
    """whether to run each variant alone for its peak memory"""
    rounds: int = 7
    repeats: Mapping[str, int] = field(default_factory=dict)
    """variant -> how often it runs within a round, where one run is too short to be timed (else once)"""
    figures: Figures | None = None
    """what else to tell, of the steps and their seconds, after they were timed; see benchmarks/peaks.py"""


@dataclass(frozen=True)
class Result:
    """What was measured for one case."""

    case: Case
    seconds: Mapping[str, Sequence[float]]
    """variant -> one time a round"""
    peak_mb: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)
    """what else the case tells"""

    @property
    def ratios(self) -> list[float]:
        """Upstream's time over ours, round by round; above 1, ours is faster."""
        pairs = zip(self.seconds[self.case.upstream], self.seconds[self.case.ours], strict=True)
        return [upstream / ours for upstream, ours in pairs]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """Distance between the quartiles of the ratios; 0 for a single round."""
        return quartile_distance(self.ratios)


def quartile_distance(values: Sequence[float]) -> float:
    """Third quartile minus first (inclusive method); 0 for one value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    repeats: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Time each step once a round; every other round runs them in reverse, so that neither always goes first.

    Args:
        steps: variant -> what to time; each has been run once before.
        rounds: how many times.
        clock: seconds, rising.
        repeats: variant -> how often it runs within a round, if not once.
    Returns:
        variant -> seconds of one run, of every round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        order = list(steps) if number % 2 == 0 else list(steps)[::-1]
        for name in order:
            times = (repeats or {}).get(name, 1)
            start = clock()
            for _ in range(times):
                steps[name]()
            seconds[name].append((clock() - start) / times)
    return seconds


def measure(what: str, case: Case) -> Result:
    """Peak memory of each variant alone, then all of them interleaved."""
    peak_mb = {name: peak_alone_mb(what, case.name, name) for name in case.variants} if case.memory else {}
    steps = {name: build() for name, build in case.variants.items()}
    for step in steps.values():
        step()
    seconds = interleave(steps, case.rounds, repeats=case.repeats)
    return Result(case, seconds, peak_mb, case.figures(steps, seconds) if case.figures else {})


def peak_alone_mb(what: str, case: str, variant: str) -> float:
    """Highest resident memory, in megabytes, of a fresh process that runs one variant alone."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness", what, case, variant], capture_output=True, text=True
    )
    if ran.returncode:
        raise RuntimeError(f"benchmarks.{what} {case} {variant}: failed alone\n{ran.stderr}")
    return float(json.loads(ran.stdout.splitlines()[-1])["peak_mb"])


def peak_mb() -> float:
    """Highest resident memory of this process so far, in megabytes.

    Linux carries ru_maxrss through fork and exec, so that a child of a large parent reports the parent's
    peak; VmHWM is this program's own.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1000


def surroundings() -> dict[str, Any]:
    """Machine, versions and commit, without which a figure means nothing."""
    from crest.world import machine

    versions = {"python": sys.version.split()[0]}
    for name in NAMED_VERSIONS:
        versions[name] = metadata.version(name)
    return {"machine": machine(), "versions": versions, "commit": commit()}


def commit() -> str:
    """The commit that was measured, with a + when files differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    head = git("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--untracked-files=no") else head


def report(results: Sequence[Result], around: Mapping[str, Any]) -> dict[str, Any]:
    """The flat object that out/bench/<what>.json holds."""
    flat: dict[str, Any] = {}
    for result in results:
        name = result.case.name
        flat[f"ratio.{name}"] = round(result.ratio, 4)
        flat[f"spread.{name}"] = round(result.spread, 4)
        for variant, seconds in result.seconds.items():
            flat[f"seconds.{name}.{variant}"] = round(statistics.median(seconds), 5)
        for variant, peak in result.peak_mb.items():
            flat[f"peak_mb.{name}.{variant}"] = round(peak, 1)
        for figure, value in result.figures.items():
            flat[f"{figure}.{name}"] = value
        flat[f"rounds.{name}"] = result.case.rounds
    return {**flat, **around}


def table(results: Sequence[Result]) -> str:
    """The same for people, as a Markdown table."""
    rows = [
        "| case | upstream s | Crest s | ratio | spread | upstream peak MB | Crest peak MB |",
        "|---" * 7 + "|",
    ]
    for result in results:
        case = result.case
        seconds = [statistics.median(result.seconds[name]) for name in (case.upstream, case.ours)]
        peaks = [
            f"{result.peak_mb[name]:.0f}" if name in result.peak_mb else ""
            for name in (case.upstream, case.ours)
        ]
        cells = [
            case.name,
            *(f"{value:.3f}" for value in seconds),
            f"{result.ratio:.2f}",
            f"{result.spread:.2f}",
        ]
        rows.append(f"| {' | '.join([*cells, *peaks])} |")
    for result in results:
        if result.figures:
            told = ", ".join(f"{figure} {value:g}" for figure, value in result.figures.items())
            rows.append(f"\n{result.case.name}: {told}")
    return "\n".join(rows)


def run(what: str, cases: Sequence[Case]) -> Path:
    """Measure all cases of one benchmark, print the table, write out/bench/<what>.json."""
    results = []
    for case in cases:
        print(f"{what}: {case.name}, {case.rounds} rounds of {' and '.join(case.variants)} …", flush=True)
        results.append(measure(what, case))
    around = surroundings()
    path = OUT / f"{what}.json"
    write_json(path, report(results, around))
    print(f"\n{table(results)}\n\n{around['machine']}, commit {around['commit'] or 'unknown'}\n{path}\n")
    return path


def _alone(what: str, case_name: str, variant: str) -> None:
    from benchmarks.__main__ import cases_of

    case = next(case for case in cases_of(what) if case.name == case_name)
    step = case.variants[variant]()
    for _ in range(ALONE_STEPS):
        step()
    print(json.dumps({"peak_mb": peak_mb(), "pid": os.getpid()}))


if __name__ == "__main__":
    _alone(*sys.argv[1:])
