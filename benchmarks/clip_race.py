"""Who finds held-out logos best after the same time: seed 002's recipe, open_clip's own script, or Crest.

`python -m benchmarks.clip_race --minutes 20` trains every contestant from random weights on the same cores,
one after the other, on the same split of configs/brand_logos. A contestant is a whole process, as a user
starts it; its clock runs from its start to its end, and it is killed at the limit. Before the clock starts,
the speed of its steps is measured, so that its learning rate comes to its end within the time; without that
the seed's 30 epochs would be cut off at their full rate.

All are judged by the same code, `clip_train.retrieval` on the same held-out pairs, each with the
preprocessing that it was trained for: the script's models with the script's, ours with ours. Crest keeps the
weights that are best on the val split and the script's runs choose nothing, so `test` is the split that
favours nobody.

A contestant that has finished is not run again; one that was stopped begins anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.clip_contestants import CONTESTANTS, DEFAULT, Contestant, Course
from benchmarks.clip_pairs import split_csv
from benchmarks.clip_upstream import run_limited
from benchmarks.harness import OUT, surroundings
from crest.config import guarded
from crest.errors import ConfigError, RunError
from crest.records import read_json, read_manifest, write_json
from crest.tars import MADE_BY

SHARDS: Final = Path("out/brand_logos/data/shards")
JUDGED: Final = ("val", "test")
BOOTSTRAP: Final = 1000
MARGIN: Final = 0.92
"""Share of the time that is planned for; the rest is for steps slower than those that were timed."""
CALIBRATION_S: Final = 20.0
"""How long steps are timed before the clock starts, at least."""

Apart = Callable[[str, str, Course], dict[str, Any]]
""""time" or "judge", name and course -> what `timed` or `judge` return."""


def race(course: Course, contestants: Sequence[Contestant], apart: Apart) -> dict[str, Any]:
    """Run those that have not finished yet, and judge them.

    Args:
        course: what they run on.
        contestants: in this order.
        apart: times or judges one, so that nothing of it stays in this process's memory.
    Returns:
        name -> what its result.json holds.
    """
    for split in ("train", *JUDGED):
        if not (course.folder / f"{split}.csv").exists():
            split_csv(course.shards, split, course.folder)
    results = {}
    for one in contestants:
        path = course.home(one.name) / "result.json"
        if not path.exists():
            print(f"{one.name}: {one.told} …", flush=True)
            write_json(path, run_one(one, course, apart))
        results[one.name] = read_json(path)
    return results


def run_one(contestant: Contestant, course: Course, apart: Apart) -> dict[str, Any]:
    """Time its steps, train it within the limit, judge what it has left."""
    home = course.home(contestant.name)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    speed = apart("time", contestant.name, course)
    steps = contestant.fitting_steps(speed, course, course.limit_s * MARGIN)
    ended = run_limited(contestant.command(course, steps), home / "said.txt", course.limit_s)
    if ended.returncode and not ended.was_stopped:
        raise RunError(
            f"{home / 'said.txt'}: {contestant.name} ended with {ended.returncode}, expected 0; read it."
        )
    judged = apart("judge", contestant.name, course) if contestant.weights(course) else {}
    done = contestant.steps_done(course)
    return {
        "told": contestant.told,
        "seconds": round(ended.seconds, 1),
        "was_stopped": ended.was_stopped,
        "steps": done,
        "steps_planned": steps,
        "samples": done * contestant.batch_size,
        "timed": speed,
        "judged": judged,
    }


def in_child(task: str, name: str, course: Course) -> dict[str, Any]:
    """`timed` or `judge` in a process of its own."""
    words = ["--minutes", str(course.limit_s / 60), "--shards", str(course.shards), "--task", task, name]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.clip_race", *words], stdout=subprocess.PIPE, text=True
    )
    if ran.returncode:
        raise RunError(f"benchmarks.clip_race --task {task} {name}: ended with {ran.returncode}; see above.")
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def timed(contestant: Contestant, course: Course, at_least_s: float = CALIBRATION_S) -> dict[str, float]:
    """Seconds of a step, of a validation and of getting ready, in this process."""
    start = time.perf_counter()
    step, validate = contestant.build(course)
    step()
    ready_s = time.perf_counter() - start
    times: list[float] = []
    while len(times) < 2 or sum(times) < at_least_s:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    validate()
    validation_s = time.perf_counter() - start
    # the mean and not the median: the whole run pays for slow steps too
    return {"step_s": sum(times) / len(times), "validation_s": validation_s, "ready_s": ready_s}


def judge(contestant: Contestant, course: Course) -> dict[str, dict[str, float]]:
    """Retrieval on each held-out split, with intervals and the level of chance."""
    from clip_train.retrieval import number_captions, retrieval_metrics
    from crest.pixels import open_pictures

    model = contestant.load(course)
    found = {}
    for split in JUDGED:
        pictures = open_pictures(course.shards, split, model.side_px)  # type: ignore[arg-type]
        images, texts = contestant.embed(model, course, split)
        same = number_captions(pictures.captions)
        found[split] = {
            "pairs": float(len(pictures)),
            **retrieval_metrics(images, texts, same, bootstrap=BOOTSTRAP),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """The result for people, as a Markdown table; R@k is the mean of both ways."""
    rows = [
        "| contestant | steps | samples | s | split | R@1 | R@5 (95 %) | R@10 | median rank |",
        "|---" * 9 + "|",
    ]
    chance = {}
    for name, result in results.items():
        head = [name, f"{result['steps']:,}", f"{result['samples']:,}", f"{result['seconds']:.0f}"]
        if not result["judged"]:
            rows.append(f"| {' | '.join([*head, 'no weights within the time', '', '', '', ''])} |")
        for split, found in result["judged"].items():
            chance[split] = found
            ranks = [found[f"{way}_median_rank"] for way in ("text_to_image", "image_to_text")]
            low, high = (_share(found[f"r_at_5_{end}"]) for end in ("low", "high"))
            cells = [
                split,
                _share(found["r_at_1"]),
                f"{_share(found['r_at_5'])} ({low} to {high})",
                _share(found["r_at_10"]),
                f"{sum(ranks) / 2:.1f}",
            ]
            rows.append(f"| {' | '.join([*head, *cells])} |")
    for split, found in chance.items():
        levels = [_share(found[f"chance_r_at_{k}"]) for k in (1, 5, 10)]
        half = f"{(found['pairs'] + 1) / 2:.1f}"
        rows.append(
            f"| chance | | | | {split} ({found['pairs']:.0f} pairs) | {' | '.join(levels)} | {half} |"
        )
    return "\n".join(rows)


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f} %"


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """R@5 of each Crest over that of each other contestant, by split."""
    found = {}
    for ours, theirs in ((a, b) for a in results for b in results):
        if not CONTESTANTS[ours].is_crest or CONTESTANTS[theirs].is_crest:
            continue
        for split in results[ours]["judged"]:
            if below := results[theirs]["judged"].get(split, {}).get("r_at_5"):
                above = results[ours]["judged"][split]["r_at_5"]
                found[f"r_at_5.{split}.{ours}_over_{theirs}"] = round(above / below, 3)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the race, or what is left of it, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip_race", description=main.__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="of each contestant")
    parser.add_argument("--shards", type=Path, default=SHARDS, help=f"default: {SHARDS}")
    parser.add_argument("--task", choices=("time", "judge"), help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTESTANTS)}")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(DEFAULT)

    def work() -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the Makefile sets it
        for name in names:
            if name not in CONTESTANTS:
                raise ConfigError(
                    f"benchmarks.clip_race: there is no {name}, expected some of {', '.join(CONTESTANTS)}."
                )
        read_manifest(arguments.shards, "shards", MADE_BY)
        course = Course(
            arguments.shards, OUT / "clip_race" / f"{arguments.minutes:g}", arguments.minutes * 60
        )
        if arguments.task:
            task = timed if arguments.task == "time" else judge
            print(json.dumps(task(CONTESTANTS[names[0]], course)))
            return
        results = race(course, [CONTESTANTS[name] for name in names], in_child)
        around = surroundings()
        path = OUT / "clip_race.json"
        write_json(path, {"minutes": arguments.minutes, "contestants": results, **ratios(results), **around})
        print(f"\n{table(results)}\n\n{json.dumps(ratios(results), indent=2)}\n{around['machine']}\n{path}")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
