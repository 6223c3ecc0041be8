"""The data room in one run: tables and folders to shards, and training reads, beside the ways of others.

Two further measurements have commands of their own, because they count rather than race:
`python -m benchmarks.data_duplicates` (near duplicates among 10,000 drawn logos) and
`python -m benchmarks.data_urls memory 1000 10000 100000` (peak memory by the length of a table).
"""

from __future__ import annotations

from benchmarks import data_folder, data_reads, data_urls
from benchmarks.harness import Case


def cases() -> list[Case]:
    """All that is timed."""
    return [*data_urls.cases(), *data_folder.cases(), *data_reads.cases()]
