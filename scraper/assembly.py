"""The journal of a crawl -> records and losses: from the journal alone, in the order of the pages.

Refuses a crawl in which no page held a card: says which page, what was looked for, where the page is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crest.errors import DataError
from crest.records import Record
from scraper.cache import Cache
from scraper.config import ScraperConfig
from scraper.frontier import Frontier, Outcome
from scraper.harvest import Drop, Harvest, told
from scraper.likeness import Look, look_from_json
from scraper.opt_out import linked_licence
from scraper.pages import keep_for_inspection
from scraper.sites import Card, Found, Visit, WebSite

MEANINGS: Final = {
    "login_page": "it asks to log in",
    "wall_page": "it shows nothing without JavaScript or consent",
    "opt_out_meta": "it asks not to be used for training",
    "opt_out_header": "it asks not to be used for training",
    "robots": "robots.txt asks to stay away",
}
"""What some reasons mean for a page, in words."""
EMPTY: Final = ("nothing_found", "login_page", "wall_page")
"""Reasons of pages that came, and held nothing."""
INSPECTED: Final = 3
"""Such pages that are kept for inspection beside others that were read."""


def journal_path(config: ScraperConfig) -> Path:
    """Where the journal of the crawl lies."""
    return config.data.dir / "frontier.sqlite"


def found_from_json(value: Mapping[str, Any]) -> Found:
    """A page's finds as the journal kept them."""
    return Found(
        cards=tuple(_card(one) for one in value["cards"]),
        references=tuple(_card(one) for one in value["references"]),
        texts=tuple(value["texts"]),
        visits=tuple(Visit(**one) for one in value["visits"]),
    )


def _card(value: Mapping[str, Any]) -> Card:
    lists = {name: tuple(value[name]) for name in ("image_urls", "further_captions")}
    return Card(**{**value, **lists})


def assemble(config: ScraperConfig, site: WebSite, frontier: Frontier, cache: Cache) -> Harvest:
    """Records and losses of a finished crawl, whatever came first.

    Raises:
        DataError: no card on any page.
    """
    outcomes = list(frontier.outcomes())
    images = {outcome.url: outcome for outcome in outcomes if outcome.purpose == "image"}
    pages = [outcome for outcome in outcomes if outcome.purpose != "image"]
    failures = dict(Counter(page.reason for page in pages if page.reason).most_common())
    read = [(Visit(page.url, page.purpose), found_from_json(page.result)) for page in pages if page.result]
    assembled = site.assemble(read)
    if not assembled.cards:
        raise _no_cards(config, site, pages, failures, cache)
    _show_empty(config, site, pages, cache)
    records: list[Record] = []
    looks: dict[str, Look] = {}
    dropped: list[Drop] = []
    for card in assembled.cards:
        one = _record(config, card, images)
        if isinstance(one, Drop):
            dropped.append(one)
            continue
        record, look = one
        records.append(record)
        looks[record.id] = look
    counts = {"pages": len(read), "cards": len(assembled.cards), "pictures": len(records), **assembled.counts}
    retried = frontier.retried
    if retried is not None:
        counts["visits_retried"] = sum(retried.values())
        counts["visits_still_failing"] = sum(frontier.failures().values())
    return Harvest(tuple(records), looks, tuple(dropped), counts, "", failures)


def _show_empty(config: ScraperConfig, site: WebSite, pages: list[Outcome], cache: Cache) -> None:
    """Say which pages held nothing while others did, and keep the first few to be looked at."""
    empty = [page for page in pages if page.reason in EMPTY and cache.find(page.url) is not None]
    for page in empty[:INSPECTED]:
        path = keep_for_inspection(cache.read(page.url), page.url, config.data.dir)
        print(
            f"{page.url}: {page.reason}, expected {site.expected(Visit(page.url, page.purpose))}; see {path}"
        )
    if len(empty) > INSPECTED:
        print(f"{config.data.dir}: {len(empty) - INSPECTED} further pages held nothing either.")


def _no_cards(
    config: ScraperConfig, site: WebSite, pages: list[Outcome], failures: Mapping[str, int], cache: Cache
) -> DataError:
    """The sentence for a site that changed or turned us away; keeps the first page that can be looked at."""
    folder = config.data.dir
    kept = next((page for page in pages if cache.find(page.url) is not None), None)
    first = kept or (pages[0] if pages else None)
    if first is None:
        return DataError(f"{config.source.root_url}: no page to visit; look at source.targets.")
    looked_at = "none could be kept"
    if kept is not None:
        looked_at = f"kept as {keep_for_inspection(cache.read(kept.url), kept.url, folder)}"
    others = f"the same or worse on {len(pages) - 1} more" if len(pages) > 1 else "the only page"
    meaning = f" ({MEANINGS[first.reason]})" if first.reason in MEANINGS else ""
    return DataError(
        f"{first.url}: no card{meaning}, {others} (pages that failed: {told(failures)}), expected "
        f"{site.expected(Visit(first.url, first.purpose))}; {looked_at}: look whether the site changed "
        "or turned us away, then run python -m scraper --retry-failed."
    )


def _record(config: ScraperConfig, card: Card, images: Mapping[str, Outcome]) -> tuple[Record, Look] | Drop:
    reason = "no_image"
    for url in card.image_urls:
        outcome = images.get(url)
        if outcome is None:
            break
        if outcome.result is None:
            reason = outcome.reason
            continue
        kept = outcome.result
        record = Record(
            id=kept["id"],
            image=kept["image"],
            source=config.source.site,
            caption=card.caption,
            group=card.group,
            page_url=card.page_url,
            image_url=url,
            title=card.title,
            kind=card.kind,
            years=card.years,
            licence=card.licence or linked_licence(kept["headers"]) or config.source.licence,
            width_px=kept["width_px"],
            height_px=kept["height_px"],
            further_captions=card.further_captions,
            written_by=card.written_by or config.source.written_by,
            source_file=card.source_file,
            sha256=kept["sha256"],
            fetched_at=kept["fetched_at"],
            headers=kept["headers"],
            frames=kept["frames"],
        )
        return record, look_from_json(kept["look"])
    return Drop(reason, card.image_urls[0] if card.image_urls else f"{card.page_url} {card.title}")
