"""What to visit next, what has been seen and what came of it: a journal in SQLite that survives SIGKILL.

A visit and all that follows from it are one transaction, so that nothing is lost and nothing fetched twice.
The root address of the site is kept as a mark: the demo's site may come back on another port.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crest.errors import DataError
from scraper.sites import Visit
from scraper.turns import host_of

TOGETHER_S: Final = 0.2
_ROOT: Final = "~root~/"
_FORMAT: Final = "2"
"""Of what the crawl puts into results."""
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS visits (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    url TEXT UNIQUE NOT NULL,
    purpose TEXT NOT NULL,
    host TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'todo',
    reason TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT 'null'
);
CREATE INDEX IF NOT EXISTS by_state ON visits (state, position);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one visit."""

    url: str
    purpose: str
    reason: str
    """why there is no result; empty when there is one"""
    result: Any


class Frontier:
    """The journal of one crawl; belongs to one thread."""

    def __init__(self, path: Path, root_url: str) -> None:
        """Open or begin the journal at `path` of a site at `root_url`.

        Raises:
            DataError: the file is no journal.
        """
        self._root_url = root_url
        self._written_at = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            with _full_disk_as_os_error(path):
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=NORMAL")
                self._base.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: is no journal of a crawl ({error}); remove it and run again.") from None
        self._path = path
        if self._note("format") != _FORMAT:  # new, or of an earlier version, whose results lack something
            with self._transaction():
                self._base.execute("DELETE FROM visits")
                self._base.execute("DELETE FROM notes")
                self._keep_note("format", _FORMAT)
        self.size = sum(self.counts().values())
        """How many visits were ever queued."""

    def close(self) -> None:
        """Write what waits and close the file."""
        if self._base.in_transaction:
            self._base.execute("COMMIT")
        self._base.close()

    @contextmanager
    def _transaction(self, *, at_once: bool = True) -> Iterator[None]:
        """One change; small ones may wait a moment to be written together: the cache has their answers."""
        with _full_disk_as_os_error(self._path):
            if not self._base.in_transaction:
                self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            if at_once or time.monotonic() - self._written_at > TOGETHER_S:
                self._base.execute("COMMIT")
                self._written_at = time.monotonic()

    def begin(self, *, again: bool, retry: bool = False) -> float:
        """Start, or go on with what is not finished.

        Args:
            again: start a finished crawl over.
            retry: make the failed visits of a finished crawl once more, and only those.
        Returns:
            the Unix time of the start; answers since then need not be asked for again.
        """
        with self._transaction():
            if again and self.is_finished:
                self._base.execute("DELETE FROM visits")
                self._base.execute("DELETE FROM notes WHERE name != 'format'")
                self.size = 0
            elif retry and self.is_finished:
                self._keep_note("retried", json.dumps(self.failures()))
                self._base.execute("DELETE FROM notes WHERE name IN ('started', 'finished')")
                self._base.execute("UPDATE visits SET state = 'todo', reason = '' WHERE state = 'failed'")
            self._base.execute("INSERT OR IGNORE INTO notes VALUES ('started', ?)", (repr(time.time()),))
        return float(self._note("started") or 0.0)

    @property
    def retried(self) -> dict[str, int] | None:
        """Named reason -> visits that had failed when they were last made once more; None if never."""
        note = self._note("retried")
        return None if note is None else {str(name): int(count) for name, count in json.loads(note).items()}

    def failures(self) -> dict[str, int]:
        """Named reason -> visits that failed, most frequent first."""
        rows = self._base.execute(
            "SELECT reason, COUNT(*) FROM visits WHERE state = 'failed' GROUP BY reason ORDER BY 2 DESC, 1"
        )
        return dict(rows)

    def _keep_note(self, name: str, value: str) -> None:
        self._base.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def _note(self, name: str) -> str | None:
        row = self._base.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def is_finished(self) -> bool:
        """Whether everything was visited."""
        return self._note("finished") is not None

    def finish(self) -> None:
        """Note that everything was visited."""
        with self._transaction():
            self._keep_note("finished", repr(time.time()))

    def add(self, visits: Iterable[Visit]) -> None:
        """Queue visits; an address that was ever seen is not queued again."""
        with self._transaction():
            self._insert(visits)

    def _insert(self, visits: Iterable[Visit]) -> None:
        rows = [
            (self._packed(visit.url), visit.purpose, self._packed_host(host_of(visit.url)))
            for visit in visits
        ]
        insert = "INSERT OR IGNORE INTO visits (url, purpose, host) VALUES (?, ?, ?)"
        self.size += self._base.executemany(insert, rows).rowcount if rows else 0

    def done(self, visit: Visit, result: Any, follow: Iterable[Visit] = ()) -> None:
        """Journal what a visit gave and queue what follows from it, in one transaction."""
        self._close_visit(visit, "done", "", result, follow)

    def failed(self, visit: Visit, reason: str, follow: Iterable[Visit] = ()) -> None:
        """Journal why a visit gave nothing, and queue what is tried instead."""
        self._close_visit(visit, "failed", reason, None, follow)

    def _close_visit(
        self, visit: Visit, state: str, reason: str, result: Any, follow: Iterable[Visit]
    ) -> None:
        text = self._packed(json.dumps(result, ensure_ascii=False))
        with self._transaction(at_once=state == "failed"):
            self._base.execute(
                "UPDATE visits SET state = ?, reason = ?, result = ? WHERE url = ?",
                (state, reason, text, self._packed(visit.url)),
            )
            self._insert(follow)

    def waiting(self, count: int, taken: Sequence[str] = (), closed_hosts: Sequence[str] = ()) -> list[Visit]:
        """The next visits to make, in the order they were found.

        Args:
            count: at most so many.
            taken: addresses that are being visited now.
            closed_hosts: hosts, as `host_of` names them, that must not be asked now.
        """
        marks = ",".join("?" * len(closed_hosts))
        rows = self._base.execute(
            f"SELECT url, purpose FROM visits WHERE state = 'todo' AND host NOT IN ({marks}) "
            "ORDER BY position LIMIT ?",
            (*(self._packed_host(host) for host in closed_hosts), count + len(taken)),
        ).fetchall()
        busy = set(taken)
        found = (Visit(self._unpacked(url), purpose) for url, purpose in rows)
        return [visit for visit in found if visit.url not in busy][:count]

    def counts(self) -> dict[str, int]:
        """How many visits are todo, done and failed."""
        rows = self._base.execute("SELECT state, COUNT(*) FROM visits GROUP BY state")
        return {"todo": 0, "done": 0, "failed": 0, **dict(rows)}

    def outcomes(self) -> Iterator[Outcome]:
        """What came of every visit that was made, in the order they were found."""
        rows = self._base.execute(
            "SELECT url, purpose, reason, result FROM visits WHERE state != 'todo' ORDER BY position"
        )
        for url, purpose, reason, result in rows:
            yield Outcome(self._unpacked(url), purpose, reason, json.loads(self._unpacked(result)))

    def _packed(self, text: str) -> str:
        return text.replace(self._root_url, _ROOT)

    def _packed_host(self, host: str) -> str:
        """A host with the slash that a root address ends in."""
        return self._packed(f"{host}/")

    def _unpacked(self, text: str) -> str:
        return text.replace(_ROOT, self._root_url)


@contextmanager
def _full_disk_as_os_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(28, "No space left on device", str(path)) from None
        raise
