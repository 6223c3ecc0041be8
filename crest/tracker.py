"""Scalars and previews of a run: metrics.jsonl for programs, TensorBoard for eyes.

The only file that knows tensorboard. After a resume, lines and events past the resumed step are dropped, so
that a stopped run leaves the same record as one that never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from crest.records import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes a run's record.

    Args:
        run_dir: the run folder.
        start: the step that the run (re)starts from; what was recorded up to it is kept, 0 keeps nothing.
        active: False on all processes but the first; everything is then a no-op.
    """

    def __init__(self, run_dir: Path, start: int, active: bool = True) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        if self._path.exists():
            write_jsonl(self._path, (row for row in _whole_rows(self._path) if 0 < start >= row["step"]))
        self._writer = SummaryWriter(str(run_dir), purge_step=start + 1 if start else 0)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers at a step."""
        if self._writer is None:
            return
        row = {"step": step, **{name: round(float(value), 6) for name, value in metrics.items()}}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, previews: Mapping[str, Tensor]) -> None:
        """Record picture grids, each (N, 3, H, W) in [0, 1]."""
        if self._writer is None:
            return
        for name, pictures in previews.items():
            self._writer.add_images(name, pictures.float().clamp(0, 1).cpu(), step)
        self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()


def _whole_rows(path: Path) -> list[dict[str, float]]:
    # a killed run may leave half a line at the end
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and not lines[-1].endswith("}"):
        path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    return list(read_jsonl(path))
