"""Scalars and previews of a run: metrics.jsonl for programs, TensorBoard for eyes.

The only file that knows tensorboard. After a resume, lines and events past the resumed step are dropped, so
that a stopped run leaves the same record as one that never stopped.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from crest.records import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "events.out.tfevents"
"""What the names of TensorBoard's files begin with."""


class Tracker:
    """Writes a run's record.

    Args:
        run_dir: the run folder.
        start: the step that the run (re)starts from; what was recorded up to it is kept, 0 keeps nothing.
        active: False on all processes but the first; everything is then a no-op.
        again: what is recorded at step `start` itself is still to come, or comes once more.
    """

    def __init__(self, run_dir: Path, start: int, active: bool = True, again: bool = False) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        if self._path.exists():
            last = start - again if start else -1
            write_jsonl(self._path, (row for row in read_scalars(run_dir) if row["step"] <= last))
        _tell_once()
        with _naming(run_dir / EVENTS):
            self._writer = SummaryWriter(str(run_dir), purge_step=start + (not again) if start else 0)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers at a step."""
        if self._writer is None:
            return
        row = {"step": step, **{name: round(float(value), 6) for name, value in metrics.items()}}
        with _naming(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        with _naming(self._path.with_name(EVENTS)):
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def images(self, step: int, previews: Mapping[str, Tensor]) -> None:
        """Record picture grids, each (N, 3, H, W) in [0, 1]."""
        if self._writer is None:
            return
        with _naming(self._path.with_name(EVENTS)):
            for name, pictures in previews.items():
                self._writer.add_images(name, pictures.float().clamp(0, 1).cpu(), step)
            self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            with _naming(self._path.with_name(EVENTS)):
                self._writer.close()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say where, in an error of the system that does not: a full disk is told without a name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _tell_once() -> None:
    """Keep quiet about errors of TensorBoard's writing thread, which its next call raises in this one."""
    told = threading.excepthook
    if isinstance(told, _Quiet):
        return
    threading.excepthook = _Quiet(told)


class _Quiet:
    def __init__(self, told: Callable[[threading.ExceptHookArgs], object]) -> None:
        self._told = told

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        is_writer = type(arguments.thread).__name__ == "_AsyncWriterThread"
        if not (is_writer and isinstance(arguments.exc_value, OSError)):
            self._told(arguments)


def read_scalars(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, whether it is finished, going on or killed; nothing is written.

    Raises:
        DataError: a line other than the last is broken.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and not lines[-1].endswith("}"):  # being written, or cut by a kill
        lines.pop()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError:
        return list(read_jsonl(path))  # names the line


def last_images(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """The newest picture grid of each name that a run recorded.

    Returns:
        name -> step and PNG file; empty where there are none.
    """
    if not any(run_dir.glob(f"{EVENTS}.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={"images": 1, "scalars": 1})
    events.Reload()
    newest = {name: events.Images(name)[-1] for name in events.Tags()["images"]}
    return {name: (int(image.step), bytes(image.encoded_image_string)) for name, image in newest.items()}
