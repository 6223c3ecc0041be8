"""Ask many addresses of many hosts at once: always the one whose host may be asked soonest.

So a slow host holds up nobody else. Refuses to ask a host with a delay for two things at once.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from scraper.fetch import Answer, Fetcher

_SHORTEST_REST_S: Final = 0.02
"""A host that may be asked so soon is waited for."""


class Turns:
    """Addresses that several threads work off; safe to share between them."""

    def __init__(self, urls: Iterable[tuple[int, str]], clock: Callable[[], float] = time.monotonic) -> None:
        """Sort addresses by host.

        Args:
            urls: (number, address), in the order in which each host is asked.
            clock: seconds that only grow.
        """
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[tuple[int, str]]] = {}
        self._left = 0
        for number, url in urls:
            self._waiting.setdefault(host_of(url), deque()).append((number, url))
            self._left += 1
        self._order = len(self._waiting)
        self._ready = [(0.0, order, host) for order, host in enumerate(self._waiting)]
        """heap of (time, order, host) of the hosts that nobody is at"""

    def take(self) -> tuple[int, str] | None:
        """The next address once its host may be asked; None when all are taken.

        Its host rests until it is given back.
        """
        with self._changed:
            while self._left:
                wait_s = self._ready[0][0] - self._clock() if self._ready else None
                if wait_s is not None and wait_s <= 0:
                    host = heapq.heappop(self._ready)[2]
                    self._left -= 1
                    return self._waiting[host].popleft()
                self._changed.wait(wait_s)
            return None

    def give_back(self, url: str, wait_s: float = 0.0) -> None:
        """The host of a taken address may be asked again in so many seconds."""
        with self._changed:
            self._let_on(host_of(url), wait_s)

    def put_back(self, number: int, url: str, wait_s: float) -> None:
        """A taken address was not asked after all, because its host wants to rest for so many seconds."""
        with self._changed:
            self._waiting[host_of(url)].appendleft((number, url))
            self._left += 1
            self._let_on(host_of(url), wait_s)

    def stop(self) -> None:
        """Nothing more is to be taken."""
        with self._changed:
            self._left = 0
            self._changed.notify_all()

    def _let_on(self, host: str, wait_s: float) -> None:
        if self._waiting[host]:
            self._order += 1  # hosts that may be asked at once take turns
            heapq.heappush(self._ready, (self._clock() + wait_s, self._order, host))
        self._changed.notify_all() if not self._left else self._changed.notify()


def host_of(url: str) -> str:
    """Scheme, name and port of an address, whoever asks there; whatever it is, for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def ask_all(
    fetcher: Fetcher, wanted: Sequence[tuple[int, str]], connections: int
) -> Iterator[tuple[int, Answer | Exception]]:
    """Ask all addresses, so many at once.

    Args:
        fetcher: knows the manners of each host.
        wanted: (number, address).
        connections: requests in flight; so many answers wait at most.
    Yields:
        (number, answer or what went wrong), in the order in which they answer.
    """
    turns = Turns(wanted)
    answers: queue.Queue[tuple[int, Answer | Exception] | None] = queue.Queue(connections)
    threads = [
        threading.Thread(target=_ask, args=(fetcher, turns, answers), daemon=True)
        for _ in range(min(connections, len(wanted)))
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = answers.get()
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        turns.stop()
        while any(thread.is_alive() for thread in threads):  # one may wait for room
            try:
                answers.get(timeout=0.01)
            except queue.Empty:
                continue


def _ask(fetcher: Fetcher, turns: Turns, answers: queue.Queue[tuple[int, Answer | Exception] | None]) -> None:
    """A thread's work: take an address, ask its host when it may be asked, hand on what it gave."""
    while (taken := turns.take()) is not None:
        number, url = taken
        outcome: Answer | Exception
        is_given_back = False
        try:
            fetcher.meet(url)
            rest_s = fetcher.wait_s(url)
            if rest_s > _SHORTEST_REST_S:
                turns.put_back(number, url, rest_s)
                continue
            if not fetcher.delay_s(url):
                turns.give_back(url)
                is_given_back = True
            outcome = fetcher.get(url)
        except Exception as error:
            outcome = error
        if not is_given_back:
            turns.give_back(url, fetcher.wait_s(url))
        answers.put((number, outcome))
    answers.put(None)
