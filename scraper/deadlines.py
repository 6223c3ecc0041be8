"""Ends what takes too long in all: a server that lets a byte drip now and then never times out by itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

_LOOK_EVERY_S: Final = 0.25
_IDLE_S: Final = 10.0


class Deadlines:
    """Sockets and when they are to be cut off; one thread looks after all while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[float, socket.socket]] = {}
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        """Cut `sock` off when what is done within takes longer; a read that waits then meets its end."""
        key = id(sock)
        with self._lock:
            self._watched[key] = time.monotonic() + seconds, sock
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._watcher.start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(key, None)

    def _watch(self) -> None:
        busy_at = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                if self._watched:
                    busy_at = now
                elif now - busy_at > _IDLE_S:
                    self._watcher = None
                    return
                late = [sock for until, sock in self._watched.values() if until < now]
            for sock in late:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, which may be in mid-read
