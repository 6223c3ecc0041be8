"""What captioners answered, by picture: kept at once, so that a killed run asks and pays for nothing twice.

One SQLite file beside the records. A recipe is all that an answer depends on but the picture: weights or
interface, question, search. Answers outlive captions.jsonl: with more records, another weight of the model's
words or a larger budget, only what was never answered is asked.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from crest.errors import DataError

FILE: Final = "answers.sqlite"
TOGETHER: Final = 500
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS answers (
    recipe TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, reason TEXT NOT NULL, revision TEXT NOT NULL,
    PRIMARY KEY (recipe, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    recipe TEXT PRIMARY KEY, requests INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cost REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Answer:
    """What was said of one picture."""

    id: str
    text: str
    """empty when nothing usable was said, and never will be"""
    reason: str = ""
    """why not, by name"""
    revision: str = ""
    """what pins who answered"""


@dataclass(frozen=True)
class Spent:
    """What requests to an interface have used."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Answers:
    """The file of answers; may be used by the threads of one process."""

    def __init__(self, folder: Path) -> None:
        """Open or begin it in a data folder.

        Raises:
            DataError: the file is no such journal.
        """
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._base = sqlite3.connect(self.path, check_same_thread=False, timeout=60)
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise DataError(
                f"{self.path}: holds no captioner's answers ({error}); remove it and run again."
            ) from None

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def put(self, recipe: str, answers: Iterable[Answer], spent: Spent | None = None) -> None:
        """Keep answers, and what they cost, in one go."""
        rows = [(recipe, *astuple(answer)) for answer in answers]
        with self._lock, self._base:
            self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            if spent is not None:
                self._base.execute(
                    "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (recipe) DO UPDATE SET "
                    "requests = requests + excluded.requests, tokens_in = tokens_in + excluded.tokens_in, "
                    "tokens_out = tokens_out + excluded.tokens_out, cost = cost + excluded.cost",
                    (recipe, *astuple(spent)),
                )

    def get(self, recipe: str, ids: Sequence[str]) -> dict[str, Answer]:
        """Those of these pictures that were answered."""
        found: dict[str, Answer] = {}
        for start in range(0, len(ids), TOGETHER):
            some = ids[start : start + TOGETHER]
            marks = ", ".join("?" * len(some))
            query = f"SELECT id, text, reason, revision FROM answers WHERE recipe = ? AND id IN ({marks})"
            with self._lock:
                found |= {row[0]: Answer(*row) for row in self._base.execute(query, (recipe, *some))}
        return found

    def spent(self, recipe: str) -> Spent:
        """What was used so far, in this run and those before it."""
        query = "SELECT requests, tokens_in, tokens_out, cost FROM spent WHERE recipe = ?"
        with self._lock:
            row = self._base.execute(query, (recipe,)).fetchone()
        return Spent(*row) if row else Spent()
