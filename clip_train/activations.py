"""What a locked part of a CLIP makes of pictures and captions, computed once and kept on disk.

A file of rows, written in order under a `.part` name: a stopped computation goes on behind its last whole
row. Its name holds a hash of all that the rows depend on. Refuses to keep what does not fit the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from crest.errors import DataError

BATCH: Final = 64
"""Rows that are computed at once."""


def kept_rows(
    path: Path,
    count: int,
    compute: Callable[[int, int], Tensor],
    *,
    what: str,
) -> Tensor:
    """Rows of activations, memory-mapped; computed where they are not on disk yet.

    Args:
        path: of the file; equal names hold equal rows.
        count: N.
        compute: first and last number -> (last - first, ...) rows.
        what: for the progress bar.
    Returns:
        (N, ...) of the type that `compute` gives.
    Raises:
        DataError: the disk is too small.
    """
    from tqdm import tqdm

    probe = compute(0, 1).detach().cpu().contiguous()
    shape, kind = tuple(probe.shape[1:]), probe.dtype
    row_bytes = probe.nbytes
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        done = part.stat().st_size // row_bytes if part.exists() else 0
        _check_room(path, (count - done) * row_bytes)
        with (
            part.open("ab") as stream,
            tqdm(total=count, initial=done, desc=what, unit="logo", disable=None) as bar,
        ):
            stream.truncate(done * row_bytes)
            for first in range(done, count, BATCH):
                last = min(first + BATCH, count)
                rows = compute(first, last).detach().cpu().contiguous()
                stream.write(rows.view(torch.uint8).numpy().tobytes())
                bar.update(last - first)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    size = count * (row_bytes // probe.element_size())
    return torch.from_file(str(path), shared=False, size=size, dtype=kind).view(count, *shape)


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path.parent}: needs {needed / 1e9:.1f} GB for kept activations and has {free / 1e9:.1f} GB; "
            "lower data.views, take model.mode lora, or make room there."
        )
