"""A table of logos on a local server: what the tests of tables buy from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from crest.records import Record, read_jsonl, read_records
from scraper.config import ScraperConfig

Draw = Callable[..., Image.Image]
AsPng = Callable[[Image.Image], bytes]


@dataclass
class Shop:
    """A table of logos on a local server, and a data folder for it."""

    folder: Path
    server: Any
    draw: Draw
    as_png: AsPng

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def table(self) -> Path:
        return self.folder / "table.csv"

    def stock(self, count: int, first: int = 0) -> None:
        """Serve logos and write the table of all up to there."""
        for number in range(first, first + count):
            self.server.say(f"/{number}.png", self.as_png(self.draw(number)))
        self.write([(f"{self.server.url}/{number}.png", f"logo {number}") for number in range(first + count)])

    def write(self, rows: list[tuple[str, str]], columns: str = "url,caption") -> None:
        lines = [",".join(row) for row in rows]
        self.table.write_text("\n".join([columns, *lines]) + "\n")

    def config(self, **sections: dict[str, Any]) -> ScraperConfig:
        fetch = {"delay_s": 0, "allow_hosts": ["127.0.0.1"], "backoff_s": 0.01, "timeout_s": 5, "retries": 0}
        values: dict[str, Any] = {
            "data": {"dir": str(self.data)},
            "source": {"site": "url_table", "path": str(self.table), **sections.pop("source", {})},
            "fetch": {**fetch, **sections.pop("fetch", {})},
            "pack": {"side_px": 64, **sections.pop("pack", {})},
            "work": {"workers": 1, "rows_per_part": 10, **sections.pop("work", {})},
            **sections,
        }
        return ScraperConfig.model_validate(values)

    def records(self) -> list[Record]:
        return read_records(self.data / "records.jsonl")

    def pictures_asked(self) -> int:
        return sum(count for path, count in self.server.requests.items() if path.endswith(".png"))


def part_bytes(folder: Path) -> dict[str, bytes]:
    """What must be the same whoever did the work: all but the records' times."""
    found = {}
    for path in sorted((folder / "parts").iterdir()):
        if path.suffix == ".jsonl":
            rows = [{**row, "fetched_at": ""} for row in read_jsonl(path)]
            found[path.name] = json.dumps(rows).encode()
        elif path.suffix != ".json":
            found[path.name] = path.read_bytes()
    return found
