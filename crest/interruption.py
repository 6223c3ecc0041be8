"""Ctrl-C that is not lost: libraries swallow a KeyboardInterrupt now and then, above all when imported."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = threading.Event()


def listen() -> None:
    """Remember Ctrl-C besides raising KeyboardInterrupt, where nobody else handles it."""
    _asked.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)


def heed() -> None:
    """Raise the KeyboardInterrupt that something swallowed; called between the steps of long work."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt
