"""A source of this machine -> records and images/: what crawl.py is for a web site.

Never edits its input: pictures are copied, few of them into files that one can look at, many into tars. They
are read by a few threads, a bounded number ahead of the one that is noted, so that a source of any size takes
the memory of its records alone.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

from crest.errors import DataError
from crest.records import Record
from scraper.config import ScraperConfig
from scraper.harvest import Drop, Harvest
from scraper.likeness import Look
from scraper.pictures import Checked, check_picture
from scraper.refused import Refused
from scraper.sites import Item, local_source
from scraper.store import FileStore, Store, TarStore

BATCH: Final = 8
"""Pictures that a thread checks before it hands them on."""
LOOKED_AT: Final = 1000
"""So many pictures of a source become a file each; of more, or where nobody knows, tars are made."""


def gather(
    config: ScraperConfig, is_done: Callable[[str], bool], claim: Callable[[], None]
) -> Harvest | None:
    """Copy a local source's pictures into the data folder.

    Args:
        config: names the source and the data folder.
        is_done: told the fingerprint of the input; True means that nothing has to be done.
        claim: called before what was stored earlier is replaced.
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
    is_small = listing.pictures is not None and listing.pictures <= LOOKED_AT
    store: Store = FileStore(config.data.dir) if is_small else TarStore(config.data.dir)
    try:
        outcomes = checked(listing.entries, config, store)
        for entry, outcome in tqdm(outcomes, total=listing.size, desc="gather", unit="logo", disable=None):
            counts["cards"] += 1
            if isinstance(entry, Item):
                counts["pictures"] += 1
                counts["caption_missing" if entry.card.caption is None else "caption_whole"] += 1
            if isinstance(outcome, Drop):
                dropped.append(outcome)
                continue
            assert isinstance(entry, Item)
            records.append(_record(entry, outcome, store.place(outcome), config))
            if outcome.look is not None:
                looks[outcome.id] = outcome.look
        if not counts["cards"]:
            raise DataError(
                f"{config.source.path}: holds nothing that {config.source.site} reads; correct source.path."
            )
        claim()
        store.finish()
    except BaseException:
        store.give_up()
        raise
    return Harvest(tuple(records), looks, tuple(dropped), dict(counts), listing.fingerprint)


def checked(
    entries: Iterable[Item | Drop], config: ScraperConfig, store: Store
) -> Iterator[tuple[Item | Drop, Checked | Drop]]:
    """Every entry and what became of it, in the order of the source, a bounded number ahead."""
    if not config.screen.pixels:  # nothing is decoded: threads would only wait for each other
        yield from ((entry, _check(entry, config, store)) for entry in entries)
        return
    threads = os.cpu_count() or 1
    source, waiting = iter(entries), deque[Future[list[tuple[Item | Drop, Checked | Drop]]]]()

    def check_all(batch: list[Item | Drop]) -> list[tuple[Item | Drop, Checked | Drop]]:
        return [(entry, _check(entry, config, store)) for entry in batch]

    with ThreadPoolExecutor(threads) as pool:
        try:
            while batch := list(islice(source, BATCH)):
                waiting.append(pool.submit(check_all, batch))
                if len(waiting) > threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check(entry: Item | Drop, config: ScraperConfig, store: Store) -> Checked | Drop:
    if isinstance(entry, Drop):
        return entry
    try:
        found = check_picture(
            entry.read(),
            entry.where,
            max_megapixels=config.fetch.max_megapixels,
            svg_side_px=config.source.side_px,
            is_looked_at=config.screen.pixels,
        )
    except Refused as refusal:
        return Drop(refusal.reason, entry.where)
    store.prepare(found)
    return found


def _record(entry: Item, found: Checked, image: str, config: ScraperConfig) -> Record:
    card, source = entry.card, config.source
    assert source.path is not None
    return Record(
        id=found.id,
        image=image,
        source=card.source or source.path.name,
        caption=card.caption,
        group=card.group,
        page_url=card.page_url,
        image_url=card.image_urls[0] if card.image_urls else entry.where,
        title=card.title,
        kind=card.kind,
        years=card.years,
        licence=card.licence or source.licence,
        width_px=found.width_px,
        height_px=found.height_px,
        further_captions=card.further_captions,
        written_by=card.written_by or source.written_by,
        source_file=card.source_file,
        sha256=found.sha256,
        fetched_at=card.fetched_at,
        headers=card.headers,
        frames=found.frames,
    )
