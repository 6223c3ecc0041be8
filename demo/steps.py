"""The demo's thirteen steps and the journal of what is finished, from what it was made and how long it took.

Light on purpose: a finished demo must say so before anything heavy is imported. Trains and draws nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import crest
from crest.errors import ConfigError, RunError, WeightsError
from crest.records import file_hash, hash_of, read_json, write_json
from demo.config import STOCK, DemoConfig, PlaceConfig, step_path, stock_named


@dataclass(frozen=True)
class Step:
    """One of the demo's steps."""

    name: str
    """as in metrics.json: seconds.<name>"""
    does: str
    """said when it starts"""
    needs: tuple[str, ...]
    """steps whose results it reads"""
    reads: Mapping[str, tuple[str, ...]]
    """config -> the sections that matter to it; none named: all"""
    owns: tuple[str, ...]
    """what it writes, relative to the working folder"""
    proof: tuple[str, ...]
    """files that are there once it is finished"""


STEPS: Final = (
    Step("scrape", "serve the league's site on loopback and scrape it", (),
         {"demo": ("world",), "data": ("data", "source", "screen")}, ("data",), ("data/manifest.json",)),
    Step("captioner", "fine-tune the captioner on the logos that have words", ("scrape",),
         {"captioner": ()}, ("runs/captioner",), ("runs/captioner/weights.json",)),
    Step("captions", "compare the captioners with what the site says of held-out logos", ("captioner",),
         {"captions": ()}, ("captions",), ("captions/report.json",)),
    Step("caption", "describe the logos that have none", ("captioner",),
         {"data": ("caption",)}, ("data/captions.jsonl", "data/captions.json"), ("data/captions.json",)),
    Step("pack", "pack shards, split without leaks", ("caption",),
         {"data": ("pack",)}, ("data/shards", "data/pixels"), ("data/shards/manifest.json",)),
    Step("clip", "fine-tune CLIP", ("pack",), {"clip": ()}, ("runs/clip",), ("runs/clip/weights.json",)),
    Step("embed", "embed logos and captions with the tuned CLIP", ("clip",),
         {"embed": ()}, ("data/embeddings",), ("data/embeddings/clip/manifest.json",)),
    Step("prior", "fine-tune the prior", ("embed",),
         {"prior": ()}, ("runs/prior",), ("runs/prior/weights.json",)),
    Step("decoder", "fine-tune the decoder", ("embed",),
         {"decoder_64": ()}, ("runs/decoder_64",), ("runs/decoder_64/weights.json",)),
    Step("generate", "draw held-out prompts with stock and tuned models, same seeds", ("prior", "decoder"),
         {"demo": ("prompts",), "generate_stock": (), "generate": ()}, ("prompts.jsonl", "truth", "samples"),
         ("prompts.jsonl", "samples/stock/manifest.json", "samples/tuned/manifest.json")),
    Step("eval", "judge the drawings by their specification and by the reference CLIP",
         ("captions", "generate"), {"eval": ()}, ("judge", "reports"),
         ("judge/metrics.json", "reports/tuned_against_stock/metrics.json")),
    Step("survey", "export the survey", ("generate",), {"survey": ()}, ("survey",), ("survey/index.html",)),
    Step("report", "write the page", ("eval", "survey"), {"demo": ("report",)}, ("report",),
         ("report/index.html", "report/metrics.json")),
)  # fmt: skip

Sources = Mapping[str, str]
"""What a step is made from: name -> hash."""


@dataclass(frozen=True)
class Plan:
    """What is left to do."""

    todo: tuple[Step, ...]
    """in order"""
    stale: tuple[Step, ...]
    """those of them whose finished or begun results no longer hold"""
    reasons: tuple[str, ...]
    """why, one sentence's part for each cause"""


class Journal:
    """steps.json of a working folder: seconds, sources and peak memory of every step that has begun.

    Args:
        folder: the demo's working folder.
        beat_s: how often a running step's seconds are written, so that a killed demo still knows them.
    """

    def __init__(self, folder: Path, beat_s: float = 5.0) -> None:
        self.folder, self._beat_s = folder, beat_s
        self._path = folder / "steps.json"
        self.rows: dict[str, dict[str, Any]] = read_json(self._path) if self._path.exists() else {}
        """step -> {"seconds", "done", "made_from", "peak_mb"}"""
        self._note: Callable[[], None] | None = None

    def plan(self, sources: Mapping[str, Sources]) -> Plan:
        """Which steps are to be run, and which of those were made from something else than `sources`.

        Args:
            sources: for every step, what it would be made from now.
        """
        todo: list[Step] = []
        stale: list[Step] = []
        reasons: list[str] = []
        for step in STEPS:
            row = self.rows.get(step.name)
            rests_on_sand = any(other.name in step.needs for other in todo)
            if row is None:
                todo.append(step)
                continue
            reason = self._changed(step, row, sources[step.name])
            if reason or rests_on_sand:
                stale.append(step)
                reasons += [reason] if reason else []
            if reason or rests_on_sand or not row["done"]:
                todo.append(step)
        return Plan(tuple(todo), tuple(stale), tuple(reasons))

    def _changed(self, step: Step, row: Mapping[str, Any], sources: Sources) -> str:
        before = row["made_from"]
        changed = [name for name in {**before, **sources} if before.get(name) != sources.get(name)]
        if changed:
            return f"{' and '.join(changed)} changed since {step.name} ran"
        gone = [name for name in step.proof if row["done"] and not (self.folder / name).exists()]
        return f"{self.folder / gone[0]} is gone" if gone else ""

    def forget(self, steps: Sequence[Step]) -> None:
        """Remove what these steps wrote, so that they start afresh.

        Raises:
            RunError: people have answered the survey that would go.
        """
        survey = self.folder / "survey"
        if any(step.name == "survey" for step in steps):
            answers = [survey / name for name in ("answers.csv", "tally.html") if (survey / name).exists()]
            if answers:
                raise RunError(
                    f"{answers[0]}: belongs to a survey of drawings that are to be drawn anew; move {survey} "
                    "to another place and run make demo again."
                )
        for step in reversed(steps):  # the last first, so that an interruption leaves nothing built on sand
            self.rows.pop(step.name, None)
            self._write()
            for name in step.owns:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(self, step: Step, sources: Sources, since: float | None = None) -> Iterator[None]:
        """Keep the time of a step, over interruptions too, and mark it done when the block ends well.

        Args:
            since: `time.monotonic()` when it really began, if earlier than now.
        """
        row = self.rows.setdefault(step.name, {"seconds": 0.0, "done": False, "peak_mb": 0})
        row.update(done=False, made_from=dict(sources))
        before, started = float(row["seconds"]), since or time.monotonic()
        over = threading.Event()

        def note() -> None:
            row["seconds"] = round(before + time.monotonic() - started, 2)
            row["peak_mb"] = max(row["peak_mb"], peak_mb())
            self._write()

        def beat() -> None:
            while not over.wait(self._beat_s):
                note()

        note()
        self._note = note
        clock = threading.Thread(target=beat, daemon=True)
        clock.start()
        done = False
        try:
            yield
            done = True
        finally:
            over.set()
            clock.join()
            row["done"] = done
            note()
            self._note = None

    def seconds(self) -> dict[str, float]:
        """Seconds of every step that has begun, up to now for the one that runs."""
        if self._note is not None:
            self._note()
        return {step.name: self.rows[step.name]["seconds"] for step in STEPS if step.name in self.rows}

    def peak_mb(self) -> int:
        """Most memory that the demo's process ever held, in megabytes."""
        return max((int(row["peak_mb"]) for row in self.rows.values()), default=0)

    def _write(self) -> None:
        write_json(self._path, self.rows)


def peak_mb() -> int:
    """Most resident memory of this process so far and of the largest child that has ended, in megabytes."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with contextlib.suppress(OSError):  # getrusage inherits the peak of whoever started us
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                own = int(line.split()[1]) * 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return round((own + children) / 1e6)


def sources_of(config: DemoConfig) -> dict[str, dict[str, str]]:
    """For every step, what it would be made from with this config: name -> hash.

    Raises:
        ConfigError: a step's config is missing or broken.
        WeightsError: a step needs stock weights that are not there.
    """
    own = config.model_dump(mode="json")
    weights: dict[str, str] = {}
    sources: dict[str, dict[str, str]] = {}
    for step in STEPS:
        found = sources[step.name] = {}
        for name, sections in step.reads.items():
            if name == "demo":
                found |= {section: hash_of(own[section]) for section in sections}
                continue
            path = step_path(config, name)
            if not path.exists():
                raise ConfigError(
                    f"{path}: there is no such config file, and {step.name} needs it; put it there, or name "
                    "another place.configs."
                )
            values = read_json(path)
            kept = {key: value for key, value in values.items() if key in sections or not sections}
            kept.pop("$schema", None)
            changes = [
                change
                for change in config.place.changes.get(name, ())
                if change.partition(".")[0] in sections or not sections
            ]
            found[f"{name}.json"] = hash_of(kept, changes)
            for stock in sorted(stock_named(kept)):
                if stock not in weights:
                    weights[stock] = file_hash(stock_file(stock, config.place))[:16]
                found[stock] = weights[stock]
    return sources


def stock_file(name: str, place: PlaceConfig) -> Path:
    """Where the stock weights of a name lie, without importing what would load them.

    Raises:
        WeightsError: they are not there.
    """
    moved = f"{place.stock}/{name.removeprefix(STOCK)}"
    folder = Path(crest.__file__).parent / moved if moved.startswith(STOCK) else Path(moved)
    path = folder / "weights.safetensors"
    if not path.exists():
        raise WeightsError(
            f"{path}: the stock weights are not there, and the demo starts from them; check the file out "
            "again, or train them with make stock (under two hours)."
        )
    return path
