"""Frontier + fetch + site -> what the site gave; an interrupted crawl goes on when run again.

Expected refusals become counted reasons; a site that cannot be reached at all stops the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crest.errors import DataError, FetchError
from crest.records import Record
from scraper.cache import Cache
from scraper.config import ScraperConfig
from scraper.fetch import Fetcher, Refused, Unreachable
from scraper.frontier import Frontier, Outcome
from scraper.harvest import Drop, Harvest, told
from scraper.likeness import Look, look_from_json, look_to_json
from scraper.pictures import keep_picture
from scraper.sites import Card, Found, Visit, WebSite, web_site


def journal_path(config: ScraperConfig) -> Path:
    """Where the journal of the crawl lies."""
    return config.data.dir / "frontier.sqlite"


def is_crawled(config: ScraperConfig) -> bool:
    """Whether the crawl of this data folder has seen everything."""
    path = journal_path(config)
    if not path.exists():
        return False
    frontier = Frontier(path, config.source.root_url)
    try:
        return frontier.is_finished
    finally:
        frontier.close()


def reach(config: ScraperConfig) -> Fetcher:
    """Meet the site before anything is written.

    Raises:
        FetchError: the site does not answer, or must not be asked.
    """
    cache = Cache(config.fetch.cache_dir or config.data.dir / "cache")
    fetcher = Fetcher(config.fetch, cache)
    fetcher.meet(config.source.root_url)
    return fetcher


def crawl(config: ScraperConfig, fetcher: Fetcher | None) -> Harvest:
    """Visit all of a site, or go on where the last run was interrupted.

    Args:
        config: names the site.
        fetcher: what `reach` gave; None reads the journal of a finished crawl again.
    Raises:
        FetchError: the site stopped answering.
        DataError: no card was found on any page.
    """
    site = web_site(config.source.site)
    frontier = Frontier(journal_path(config), config.source.root_url)
    try:
        if fetcher is not None:
            started = frontier.begin(again=config.fetch.refresh)
            frontier.add(site.start(config.source))
            _Crawler(config, site, frontier, fetcher, started).visit_all()
            frontier.finish()
        return _harvest(config, site, list(frontier.outcomes()))
    finally:
        frontier.close()


class _Crawler:
    """Keeps as many fetches in flight as manners allow; the journal stays with the calling thread."""

    def __init__(
        self, config: ScraperConfig, site: WebSite, frontier: Frontier, fetcher: Fetcher, started: float
    ) -> None:
        self._config, self._site, self._frontier = config, site, frontier
        self._fetcher, self._started = fetcher, started
        self._next_best: dict[str, str] = {}
        for outcome in frontier.outcomes():
            if outcome.purpose != "image" and outcome.result:
                self._note_choices(found_from_json(outcome.result).cards)

    def visit_all(self) -> None:
        from tqdm import tqdm

        flying: dict[Future[tuple[Any, list[Visit]]], Visit] = {}
        pool = ThreadPoolExecutor(self._config.fetch.connections)
        counts = self._frontier.counts()
        bar = tqdm(desc="crawl", unit="page", disable=None, initial=counts["done"] + counts["failed"])
        try:
            while True:
                while len(flying) < self._config.fetch.connections and (visit := self._next(flying.values())):
                    flying[pool.submit(self._make, visit)] = visit
                if not flying:
                    return
                landed, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in landed:
                    self._journal(flying.pop(future), future)
                bar.total = self._frontier.size
                bar.update(len(landed))
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)

    def _next(self, flying: Iterable[Visit]) -> Visit | None:
        """The first waiting visit whose host may be asked now: one with a delay only sees one at a time."""
        taken = [visit.url for visit in flying]
        closed = {_host(url) for url in taken if self._fetcher.delay_s(url) > 0}
        return next(iter(self._frontier.waiting(1, taken, sorted(closed))), None)

    def _make(self, visit: Visit) -> tuple[Any, list[Visit]]:
        """Fetch and read one visit; runs in a thread of the pool."""
        answer = self._fetcher.get(visit.url, fresh_since=self._started)
        if visit.purpose == "image":
            kept = keep_picture(answer.content, visit.url, self._config.data.dir, answer.body_path)
            return {**asdict(kept), "look": look_to_json(kept.look)}, []
        if "html" not in answer.content_type:
            raise Refused("not_html", f"{visit.url}: is {answer.content_type or 'untyped'}, expected a page.")
        found = self._site.read(visit, answer.content.decode("utf-8", errors="replace"), answer.final_url)
        pictures = (Visit(card.image_urls[0], "image") for card in found.cards if card.image_urls)
        return asdict(found), [*found.visits, *pictures]

    def _journal(self, visit: Visit, future: Future[tuple[Any, list[Visit]]]) -> None:
        try:
            result, follow = future.result()
        except Refused as refusal:
            is_home = urlsplit(visit.url).netloc == urlsplit(self._config.source.root_url).netloc
            if isinstance(refusal, Unreachable) and is_home:
                raise FetchError(str(refusal)) from None
            instead = self._next_best.get(visit.url)
            self._frontier.failed(visit, refusal.reason, [Visit(instead, "image")] if instead else [])
            return
        if visit.purpose != "image":
            self._note_choices(found_from_json(result).cards)
        self._frontier.done(visit, result, follow)

    def _note_choices(self, cards: Iterable[Card]) -> None:
        for card in cards:
            self._next_best.update(zip(card.image_urls, card.image_urls[1:], strict=False))


def found_from_json(value: Mapping[str, Any]) -> Found:
    """A page's finds as the journal kept them."""
    return Found(
        cards=tuple(_card(one) for one in value["cards"]),
        references=tuple(_card(one) for one in value["references"]),
        texts=tuple(value["texts"]),
        visits=tuple(Visit(**one) for one in value["visits"]),
    )


def _card(value: Mapping[str, Any]) -> Card:
    return Card(**{**value, "image_urls": tuple(value["image_urls"])})


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def _harvest(config: ScraperConfig, site: WebSite, outcomes: list[Outcome]) -> Harvest:
    """Records and losses from the journal alone, in the order of the pages, whatever came first."""
    images = {outcome.url: outcome for outcome in outcomes if outcome.purpose == "image"}
    pages = [outcome for outcome in outcomes if outcome.purpose != "image"]
    failures: dict[str, int] = {}
    for page in pages:
        if page.reason:
            failures[page.reason] = failures.get(page.reason, 0) + 1
    read = [(Visit(page.url, page.purpose), found_from_json(page.result)) for page in pages if page.result]
    assembled = site.assemble(read)
    if not assembled.cards:
        raise DataError(
            f"{config.source.root_url}: no card on {len(read)} pages ({told(failures)} failed), "
            f"expected cards like those of {config.source.site}; "
            f"look whether the site changed or turned us away, then remove {journal_path(config)} "
            "and run again."
        )
    records: list[Record] = []
    looks: dict[str, Look] = {}
    dropped: list[Drop] = []
    for card in assembled.cards:
        one = _record(config, card, images)
        if isinstance(one, Drop):
            dropped.append(one)
            continue
        record, kept = one
        records.append(record)
        looks[record.id] = look_from_json(kept["look"])
    counts = {"pages": len(read), "cards": len(assembled.cards), "pictures": len(records), **assembled.counts}
    return Harvest(
        records=tuple(records),
        looks=looks,
        dropped=tuple(dropped),
        counts=counts,
        fingerprint="",
        page_failures=failures,
    )


def _record(
    config: ScraperConfig, card: Card, images: Mapping[str, Outcome]
) -> tuple[Record, dict[str, Any]] | Drop:
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
            licence=card.licence or config.source.licence,
            width_px=kept["width_px"],
            height_px=kept["height_px"],
        )
        return record, kept
    return Drop(reason, card.image_urls[0] if card.image_urls else f"{card.page_url} {card.title}")
