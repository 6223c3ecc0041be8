"""A folder of pictures -> records and images/: what crawl.py is for a web site.

Never edits its input: pictures are copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crest.records import Record
from scraper.config import ScraperConfig
from scraper.fetch import Refused
from scraper.harvest import Drop, Harvest
from scraper.likeness import Look
from scraper.pictures import keep_picture
from scraper.sites.folder import FolderCard, Listing, read_folder


def gather(config: ScraperConfig, is_done: Callable[[str], bool]) -> Harvest | None:
    """Copy a folder's pictures into the data folder.

    Args:
        config: names both folders.
        is_done: told the fingerprint of the input; True means that nothing has to be done.
    Returns:
        the harvest, or None when `is_done`.
    """
    from tqdm import tqdm

    assert config.source.path is not None
    listing = read_folder(config.source.path)
    if is_done(listing.fingerprint):
        return None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        gathering = pool.map(lambda one: _record(one, config), listing.cards)
        outcomes = list(tqdm(gathering, total=len(listing.cards), desc="gather", unit="logo", disable=None))
    found = [one for one in outcomes if not isinstance(one, Drop)]
    dropped = [Drop(reason, what) for reason, what in listing.dropped]
    dropped += [one for one in outcomes if isinstance(one, Drop)]
    return Harvest(
        records=tuple(record for record, _ in found),
        looks={record.id: look for record, look in found},
        dropped=tuple(dropped),
        counts=_counts(listing),
        fingerprint=listing.fingerprint,
    )


def _counts(listing: Listing) -> dict[str, int]:
    return {
        "cards": len(listing.cards) + len(listing.dropped),
        "pictures": len(listing.cards),
        **listing.counts,
    }


def _record(one: FolderCard, config: ScraperConfig) -> tuple[Record, Look] | Drop:
    card, path = one.card, one.path
    try:
        kept = keep_picture(path.read_bytes(), str(path), config.data.dir)
    except Refused as refusal:
        return Drop(refusal.reason, path.name)
    assert config.source.path is not None
    record = Record(
        id=kept.id,
        image=kept.image,
        source=Path(config.source.path).name,
        caption=card.caption,
        group=card.group,
        page_url=card.page_url,
        image_url=path.relative_to(config.source.path).as_posix(),
        title=card.title,
        kind=card.kind,
        years=card.years,
        licence=card.licence or config.source.licence,
        width_px=kept.width_px,
        height_px=kept.height_px,
    )
    return record, kept.look
