"""Ctrl-C and SIGTERM that are not lost, do not strike where they would do harm, and leave what can go on.

Ctrl-C raises KeyboardInterrupt; SIGTERM, which a cluster sends some seconds before SIGKILL, raises Ended.
Libraries swallow either now and then, above all when imported: `heed` raises it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

ENDED: Final = 143
"""Exit status after SIGTERM: 128 + 15, as shells have it."""


class Ended(KeyboardInterrupt):
    """SIGTERM came."""


class _Asked:
    """What signals asked for, and whether this is a moment to obey."""

    by: type[KeyboardInterrupt] | None = None
    held: int = 0
    process: int = 0


_asked = _Asked()


def listen() -> None:
    """Remember Ctrl-C and SIGTERM besides raising, where nobody else handles them."""
    _asked.by, _asked.held, _asked.process = None, 0, os.getpid()
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _remember)


def heed() -> None:
    """Raise what a signal asked for and something swallowed; called between the steps of long work."""
    if _asked.by is not None:
        raise _asked.by


def is_asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _asked.by is not None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Do what must not be done by half; a signal that comes meanwhile is obeyed afterwards."""
    _asked.held += 1
    before = _asked.by
    try:
        yield
    finally:
        _asked.held -= 1
    if not _asked.held and _asked.by is not before:
        heed()


def _remember(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _asked.process:  # a forked worker has nothing to save
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        signal.raise_signal(number)
        return
    if number == signal.SIGTERM and _asked.by is Ended:
        return  # it is being obeyed
    _asked.by = Ended if number == signal.SIGTERM else KeyboardInterrupt
    if not _asked.held:
        raise _asked.by
