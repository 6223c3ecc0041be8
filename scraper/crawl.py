"""Frontier + fetch + site -> what the site gave; an interrupted crawl goes on when run again.

Expected refusals become counted reasons; a site that cannot be reached at all stops the run. Nothing is
fetched twice and nothing lost, whenever the run is killed: an answer is in the cache before it is journalled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from crest.errors import FetchError
from scraper.assembly import assemble, found_from_json, journal_path
from scraper.cache import Cache
from scraper.config import ScraperConfig
from scraper.fetch import Answer, Fetcher
from scraper.frontier import Frontier
from scraper.harvest import Harvest, told
from scraper.likeness import look_to_json
from scraper.opt_out import page_opt_out
from scraper.pages import is_login, page_text, refusal_of_empty
from scraper.refused import Refused, Unreachable
from scraper.robots import product_token
from scraper.sites import Card, Visit, WebSite, web_site
from scraper.store import keep_picture
from scraper.turns import host_of


def is_crawled(config: ScraperConfig) -> bool:
    """Whether nothing is left to visit: the crawl saw everything, and its failures are not to be retried."""
    path = journal_path(config)
    if not path.exists():
        return False
    frontier = Frontier(path, config.source.root_url)
    try:
        return frontier.is_finished and not (config.fetch.retry_failed and frontier.failures())
    finally:
        frontier.close()


def cache_of(config: ScraperConfig) -> Cache:
    """Where the crawl keeps answers."""
    return Cache(config.fetch.cache_dir or config.data.dir / "cache")


def reach(config: ScraperConfig) -> Fetcher:
    """Meet the site before anything is written.

    Raises:
        FetchError: the site does not answer, or must not be asked.
    """
    fetcher = Fetcher(config.fetch, cache_of(config))
    fetcher.meet(config.source.root_url)
    host = urlsplit(config.source.root_url).hostname
    if not config.fetch.contact and host not in config.fetch.allow_hosts:
        print(f"{host}: is asked without a contact; name one in fetch.contact, so that it can reach you.")
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
            started = frontier.begin(again=config.fetch.refresh, retry=config.fetch.retry_failed)
            frontier.add(site.start(config.source))
            _Crawler(config, site, frontier, fetcher, started).visit_all()
            frontier.finish()
            if config.fetch.retry_failed and frontier.retried:
                before, after = frontier.retried, frontier.failures()
                print(
                    f"{config.data.dir}: made {sum(before.values()):,} failed visits once more "
                    f"({told(before)}); now {sum(after.values()):,} fail ({told(after)})."
                )
        return assemble(config, site, frontier, cache_of(config))
    finally:
        frontier.close()


class _Crawler:
    """Keeps as many fetches in flight as manners allow; the journal stays with the calling thread."""

    def __init__(
        self, config: ScraperConfig, site: WebSite, frontier: Frontier, fetcher: Fetcher, started: float
    ) -> None:
        self._config, self._site, self._frontier = config, site, frontier
        self._fetcher, self._started = fetcher, started
        self._agent = product_token(config.fetch.user_agent)
        self._next_best: defaultdict[str, list[Visit]] = defaultdict(list)
        """address of a picture -> what the cards that show it have in its place"""
        self._failed: set[str] = set()
        for outcome in frontier.outcomes():
            if outcome.reason:
                self._failed.add(outcome.url)
            elif outcome.purpose != "image":
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
        closed = {host_of(url) for url in taken if self._fetcher.delay_s(url) > 0}
        return next(iter(self._frontier.waiting(1, taken, sorted(closed))), None)

    def _make(self, visit: Visit) -> tuple[Any, list[Visit]]:
        """Fetch and read one visit; runs in a thread of the pool."""
        answer = self._fetcher.get(visit.url, fresh_since=self._started)
        return (self._picture(answer), []) if visit.purpose == "image" else self._page(visit, answer)

    def _picture(self, answer: Answer) -> dict[str, Any]:
        kept = keep_picture(
            answer.content,
            answer.url,
            self._config.data.dir,
            answer.body_path,
            max_megapixels=self._config.fetch.max_megapixels,
            svg_side_px=self._config.source.side_px,
        )
        provenance = {"headers": dict(answer.headers), "fetched_at": answer.fetched_at}
        assert kept.look is not None
        return {**asdict(kept), "look": look_to_json(kept.look), **provenance}

    def _page(self, visit: Visit, answer: Answer) -> tuple[Any, list[Visit]]:
        html = page_text(answer)
        said = self._config.fetch.respect_opt_out and page_opt_out(html, self._agent)
        if said:
            sentence = f"{visit.url}: asks not to be used for training ({said}); leave it out."
            raise Refused("opt_out_meta", sentence)
        found = self._site.read(visit, html, answer.final_url)
        if is_login(answer) or not (found.cards or found.references or found.texts or found.visits):
            raise refusal_of_empty(answer, html, self._site.expected(visit))
        pictures = (Visit(card.image_urls[0], "image") for card in found.cards if card.image_urls)
        return asdict(found), [*found.visits, *pictures]

    def _journal(self, visit: Visit, future: Future[tuple[Any, list[Visit]]]) -> None:
        try:
            result, follow = future.result()
        except Refused as refusal:
            home = _place(self._config.source.root_url)
            if isinstance(refusal, Unreachable) and _place(refusal.url) == home:  # not where it redirects to
                raise FetchError(str(refusal)) from None
            self._failed.add(visit.url)
            self._frontier.failed(visit, refusal.reason, self._next_best.get(visit.url, ()))
            return
        if visit.purpose != "image":
            follow = [*follow, *self._note_choices(found_from_json(result).cards)]
        self._frontier.done(visit, result, follow)

    def _note_choices(self, cards: Iterable[Card]) -> list[Visit]:
        """Note what each card has in place of a picture that fails; returns what is wanted already."""
        wanted: list[Visit] = []
        for card in cards:
            for url, instead in pairwise(card.image_urls):
                self._next_best[url].append(Visit(instead, "image"))
                if url in self._failed:
                    wanted.append(self._next_best[url][-1])
        return wanted


def _place(url: str) -> tuple[str | None, int | None]:
    """Name and port of a host; the ports that go without saying are none."""
    parts = urlsplit(url)
    return parts.hostname, None if parts.port in (80, 443) else parts.port
