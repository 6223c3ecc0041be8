"""Whose turn it is: no slow host holds up another, no host with a delay is asked for two things at once."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from scraper.turns import Turns, ask_all, host_of

SLOW, FAST = "http://slow.example/", "http://fast.example/"


class Clock:
    """Seconds that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_hosts_take_turns_and_a_host_rests_until_it_is_given_back() -> None:
    clock = Clock()
    turns = Turns([(0, f"{SLOW}0"), (1, f"{SLOW}1"), (2, f"{FAST}2"), (3, f"{FAST}3")], clock)
    assert turns.take() == (0, f"{SLOW}0")
    assert turns.take() == (2, f"{FAST}2")
    turns.give_back(f"{SLOW}0", 5.0)
    turns.give_back(f"{FAST}2", 0.0)
    assert turns.take() == (3, f"{FAST}3")
    clock.now += 5.0
    assert turns.take() == (1, f"{SLOW}1")
    assert turns.take() is None


def test_what_was_put_back_is_taken_again_first() -> None:
    clock = Clock()
    turns = Turns([(0, f"{SLOW}0"), (1, f"{SLOW}1")], clock)
    taken = turns.take()
    assert taken is not None
    turns.put_back(*taken, wait_s=1.0)
    clock.now += 1.0
    assert turns.take() == (0, f"{SLOW}0")


def test_a_thread_that_waits_for_a_host_is_woken_when_it_is_given_back() -> None:
    turns = Turns([(0, f"{SLOW}0"), (1, f"{SLOW}1")])
    turns.take()
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(turns.take()))
    waiting.start()
    waiting.join(0.05)
    assert not got
    turns.give_back(f"{SLOW}0")
    waiting.join(5)
    assert got == [(1, f"{SLOW}1")]


def test_stopping_frees_whoever_waits() -> None:
    turns = Turns([(0, f"{SLOW}0"), (1, f"{SLOW}1")])
    turns.take()
    waiting = threading.Thread(target=turns.take)
    waiting.start()
    turns.stop()
    waiting.join(5)
    assert not waiting.is_alive()


class Web:
    """Stands for a Fetcher: hosts with delays, and when each was asked."""

    def __init__(self, delays: dict[str, float]) -> None:
        self.delays = delays
        self.asked: list[tuple[float, str]] = []
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def meet(self, url: str) -> None:
        with self._lock:
            self._next.setdefault(host_of(url), time.monotonic() + self.delay_s(url))

    def delay_s(self, url: str) -> float:
        return self.delays[host_of(url)]

    def wait_s(self, url: str) -> float:
        return max(0.0, self._next[host_of(url)] - time.monotonic())

    def get(self, url: str) -> str:
        with self._lock:
            self.asked.append((time.monotonic(), url))
            self._next[host_of(url)] = time.monotonic() + self.delay_s(url)
        if url.endswith("broken"):
            raise ValueError(url)
        return url


def test_a_slow_host_holds_up_nobody_else() -> None:
    web = Web({host_of(SLOW): 0.15, host_of(FAST): 0.0})
    wanted = [(number, f"{SLOW}{number}") for number in range(4)]
    wanted += [(number, f"{FAST}{number}") for number in range(4, 30)]
    answers = dict(ask_all(web, wanted, 3))  # type: ignore[arg-type]
    assert answers == dict(wanted)
    order = [url for _, url in web.asked]
    assert order[:26] == [url for _, url in wanted[4:]]
    times = [at for at, url in web.asked if url.startswith(SLOW)]
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) >= 0.13


def test_what_goes_wrong_is_handed_on_and_the_others_go_on() -> None:
    web = Web({host_of(FAST): 0.0})
    wanted = [(0, f"{FAST}0"), (1, f"{FAST}broken"), (2, f"{FAST}2")]
    answers = dict(ask_all(web, wanted, 2))  # type: ignore[arg-type]
    assert (answers[0], answers[2]) == (f"{FAST}0", f"{FAST}2")
    assert isinstance(answers[1], ValueError)


def test_leaving_early_ends_the_threads() -> None:
    web = Web({host_of(FAST): 0.0})
    before = threading.active_count()
    asking = ask_all(web, [(number, f"{FAST}{number}") for number in range(500)], 4)  # type: ignore[arg-type]
    next(asking)
    asking.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(web.asked) < 100


@pytest.mark.parametrize("url", ["http://[broken", "", "no address"])
def test_what_is_no_address_is_a_host_of_its_own(url: str) -> None:
    assert Turns([(0, url)]).take() == (0, url)
