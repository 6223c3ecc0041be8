"""A source of this machine -> records and images/: what crawl.py is for a web site.

Never edits its input: pictures are copied. They are read by a few threads, a bounded number ahead of the one
that is noted, so that a source of any size takes the memory of its records alone.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from crest.errors import DataError
from crest.records import Record
from scraper.config import ScraperConfig
from scraper.harvest import Drop, Harvest
from scraper.likeness import Look
from scraper.pictures import keep_picture
from scraper.refused import Refused
from scraper.sites import Item, local_source

AHEAD: Final = 4
"""Pictures in work for each thread."""


def gather(config: ScraperConfig, is_done: Callable[[str], bool]) -> Harvest | None:
    """Copy a local source's pictures into the data folder.

    Args:
        config: names the source and the data folder.
        is_done: told the fingerprint of the input; True means that nothing has to be done.
    Returns:
        the harvest, or None when `is_done`.
    Raises:
        DataError: the source is missing, empty, or of another make.
    """
    from tqdm import tqdm

    assert config.source.path is not None
    listing = local_source(config.source.site).open(config.source)
    if is_done(listing.fingerprint):
        return None
    records: list[Record] = []
    looks: dict[str, Look] = {}
    dropped: list[Drop] = []
    counts = Counter({"cards": 0, "pictures": 0, "caption_whole": 0, "caption_missing": 0})
    outcomes = taken(listing.entries, config)
    for entry, outcome in tqdm(outcomes, total=listing.size, desc="gather", unit="logo", disable=None):
        counts["cards"] += 1
        if isinstance(entry, Item):
            counts["pictures"] += 1
            counts["caption_missing" if entry.card.caption is None else "caption_whole"] += 1
        if isinstance(outcome, Drop):
            dropped.append(outcome)
            continue
        record, look = outcome
        records.append(record)
        if look is not None:
            looks[record.id] = look
    if not counts["cards"]:
        raise DataError(
            f"{config.source.path}: holds nothing that {config.source.site} reads; correct source.path."
        )
    return Harvest(tuple(records), looks, tuple(dropped), dict(counts), listing.fingerprint)


def taken(
    entries: Iterable[Item | Drop], config: ScraperConfig
) -> Iterator[tuple[Item | Drop, tuple[Record, Look | None] | Drop]]:
    """Every entry and what became of it, in the order of the source, a bounded number ahead."""
    threads = os.cpu_count() or 1
    waiting: deque[tuple[Item | Drop, Future[tuple[Record, Look | None] | Drop]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(_record, entry, config)))
                if len(waiting) >= threads * AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _record(entry: Item | Drop, config: ScraperConfig) -> tuple[Record, Look | None] | Drop:
    if isinstance(entry, Drop):
        return entry
    card, source = entry.card, config.source
    assert source.path is not None
    try:
        kept = keep_picture(
            entry.read(),
            entry.where,
            config.data.dir,
            max_megapixels=config.fetch.max_megapixels,
            svg_side_px=source.side_px,
            is_looked_at=config.screen.pixels,
        )
    except Refused as refusal:
        return Drop(refusal.reason, entry.where)
    record = Record(
        id=kept.id,
        image=kept.image,
        source=card.source or Path(source.path).name,
        caption=card.caption,
        group=card.group,
        page_url=card.page_url,
        image_url=card.image_urls[0] if card.image_urls else entry.where,
        title=card.title,
        kind=card.kind,
        years=card.years,
        licence=card.licence or source.licence,
        width_px=kept.width_px,
        height_px=kept.height_px,
        further_captions=card.further_captions,
        written_by=card.written_by or source.written_by,
        source_file=card.source_file,
        sha256=kept.sha256,
        fetched_at=card.fetched_at,
        headers=card.headers,
        frames=kept.frames,
    )
    return record, kept.look
