"""The data room: crawling, packing and training reads, each beside what others do, in one run on this machine."""

from __future__ import annotations

from benchmarks import data_folder, data_reads
from benchmarks.harness import Case


def cases() -> list[Case]:
    """All that is timed."""
    return [*data_folder.cases(), *data_reads.cases()]
