"""What a CLIP run's folder holds so far, finished or not; computes nothing and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crest.records import read_json
from crest.tracker import last_images, read_scalars

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far."""

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    card: Mapping[str, Any]
    """empty while the run goes on"""
    report: Mapping[str, Any]
    images: Mapping[str, tuple[int, bytes]]
    shards: Mapping[str, Any]
    """the manifest of what it learned from, where that folder is still there"""

    @property
    def is_finished(self) -> bool:
        """Whether training is over, whatever became of the weights."""
        return bool(self.card or self.report)

    @property
    def refused(self) -> str:
        """Why the weights were not promoted; empty when they were, or while it goes on."""
        return str(self.report.get("refused") or "")

    @property
    def validated(self) -> list[tuple[int, dict[str, float]]]:
        """(step, held-out figures) of every validation."""
        found = [(int(row["step"]), under(row, "val/")) for row in self.rows]
        return [(step, figures) for step, figures in found if figures]

    @property
    def last_step(self) -> int | None:
        """The last step that was recorded."""
        return max((int(row["step"]) for row in self.rows), default=None)

    @property
    def before(self) -> Metrics:
        """Figures of the weights that it started from."""
        at_start = [figures for step, figures in self.validated if step == 0]
        found: Metrics = self.report.get("before") or (at_start[0] if at_start else {})
        return found

    @property
    def after(self) -> Metrics:
        """Figures of the exported weights, or of the last validation while it goes on."""
        exported = self.card.get("step")
        later = [figures for step, figures in self.validated if step and exported in (None, step)]
        found: Metrics = self.report.get("after") or (later[-1] if later else {})
        return found

    @property
    def best_by(self) -> str:
        """The figure by which weights are chosen."""
        chosen = self.card.get("best", {}).get("by") or self.config.get("judge", {}).get("best_by")
        return str(chosen or "r_at_1")


def read_run(run_dir: Path) -> Run:
    """Gather what there is.

    Raises:
        DataError: no config.json, hence no run; or a broken file.
    """
    config = read_json(run_dir / "config.json")
    manifest = Path(str(config.get("data", {}).get("shards", ""))) / "manifest.json"

    def found(path: Path) -> Mapping[str, Any]:
        value: Mapping[str, Any] = read_json(path) if path.exists() else {}
        return value

    return Run(
        run_dir.name,
        config,
        read_scalars(run_dir),
        found(run_dir / "weights.json") or found(run_dir / "refused.weights.json"),
        found(run_dir / "report.json"),
        last_images(run_dir),
        found(manifest),
    )


def under(row: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The figures of a row whose names begin so, without it."""
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
