"""Source -> records.jsonl, images/, crawl.json and dropped.html: crawl or gather, screen, say what was lost.

A data folder belongs to one source; refuses another one. manifest.json comes last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from crest.config import resolved_json
from crest.errors import DataError
from crest.records import (
    Manifest,
    Record,
    hash_of,
    read_json,
    read_manifest,
    write_json,
    write_jsonl,
    write_manifest,
    write_text,
)
from scraper.config import ScraperConfig, SourceConfig
from scraper.harvest import Drop, Harvest, reasons, told

MADE_BY = "python -m scraper (make scrape)"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_source(config: ScraperConfig) -> None:
    """Look whether the source can be read and the data folder is its own.

    Raises:
        DataError: no such folder, nothing in it, or a data folder of another source.
    """
    check_owner(config)
    source = config.source
    if source.site == "url_table":
        from scraper.sites.url_table import open_table

        open_table(source)
    elif source.path is not None and source.profile is None:
        from scraper.sites import local_source

        local_source(source.site).open(source)


def collect(config: ScraperConfig) -> None:
    """Do what `python -m scraper` does; a finished folder is left as it is.

    Raises:
        FetchError: the site does not answer.
        DataError: the source gave nothing.
    """
    if config.source.site == "url_table":
        from scraper.table import collect_table

        collect_table(config)
        return
    started = time.monotonic()
    harvest = _crawled(config) if config.source.is_web else _gathered(config)
    if harvest is None:
        say_up_to_date(config)
        return
    from scraper.screen import screen

    screened = screen(harvest.records, harvest.looks, config.screen)
    dropped = (*harvest.dropped, *screened.dropped)
    if not screened.records:
        raise DataError(
            f"{config.data.dir}: none of {len(harvest.records)} pictures passed ({told(reasons(dropped))}); "
            "look at the section screen."
        )
    write_report(
        config,
        write_kept(config.data.dir, screened.records, config.screen.wide_aspect),
        write_dropped(config.data.dir, dropped),
        counts=harvest.counts,
        page_failures=harvest.page_failures,
        fingerprint=harvest.fingerprint,
        seconds=time.monotonic() - started,
    )


def say_up_to_date(config: ScraperConfig) -> None:
    """Print that a finished folder is left as it is."""
    manifest = read_manifest(config.data.dir, "records", MADE_BY)
    print(f"{config.data.dir}: up to date, {manifest.counts['kept']:,} logos; nothing to do.")


def _gathered(config: ScraperConfig) -> Harvest | None:
    from scraper.gather import gather

    check_owner(config)
    return gather(config, lambda fingerprint: is_done(config, fingerprint), lambda: claim(config))


def _crawled(config: ScraperConfig) -> Harvest | None:
    from scraper.crawl import crawl, is_crawled, reach

    check_owner(config)
    needs_fetching = config.fetch.refresh or not is_crawled(config)
    if not needs_fetching and is_done(config, ""):
        return None
    fetcher = reach(config) if needs_fetching else None
    claim(config)
    return crawl(config, fetcher)


def is_done(config: ScraperConfig, fingerprint: str) -> bool:
    """Whether the folder was finished with these settings and this input."""
    if not (config.data.dir / "manifest.json").exists():
        return False
    manifest = read_manifest(config.data.dir, "records", MADE_BY)
    return manifest.details.get("made_from") == made_from(config, fingerprint)


def made_from(config: ScraperConfig, fingerprint: str) -> str:
    """What a finished folder came from, as one hash: source, thresholds and fingerprint of the input."""
    return hash_of(identity(config.source), config.screen.model_dump(mode="json"), fingerprint)


def identity(source: SourceConfig) -> dict[str, object]:
    """What makes two sources the same: not the port of a site on this machine."""
    value = source.model_dump(mode="json")
    parts = urlsplit(source.url or "")
    if parts.hostname in _LOOPBACK:
        value["url"] = f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}/"
    return value


def check_owner(config: ScraperConfig) -> None:
    """Look whether the data folder is this source's own, or nobody's yet.

    Raises:
        DataError: it belongs to another source.
    """
    path = config.data.dir / "config.json"
    if not path.exists():
        return
    before = identity(SourceConfig.model_validate(read_json(path)["source"]))
    now = identity(config.source)
    changed = [
        name for name in now if json.dumps(now[name]) != json.dumps(before[name]) and name != "licence"
    ]
    if changed:
        name = changed[0]
        raise DataError(
            f"{config.data.dir}: was made with source.{name} {before[name]!r}, but the config says "
            f"{now[name]!r}; "
            "name another data.dir or remove that folder."
        )


def claim(config: ScraperConfig) -> None:
    """Mark the data folder as this source's own and unfinished."""
    check_owner(config)
    (config.data.dir / "manifest.json").unlink(missing_ok=True)
    write_text(config.data.dir / "config.json", resolved_json(config) + "\n")


@dataclass(frozen=True)
class Tally:
    """What was written into records.jsonl."""

    counts: Mapping[str, int]
    """kept, kept_with_caption, groups"""
    kinds: Mapping[str, int]
    notes: Mapping[str, int]
    """kept, but worth knowing: animated (the first frame stays), wide (padded, never cropped)"""
    hash: str
    """over all that another step can see of the records"""


def write_kept(folder: Path, records: Iterable[Record], wide_aspect: float) -> Tally:
    """Write records.jsonl, one record in memory at a time.

    Args:
        folder: the data folder.
        records: what passed screening.
        wide_aspect: `screen.wide_aspect`.
    """
    counts: Counter[str] = Counter(kept=0, kept_with_caption=0)
    kinds: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    groups = array("Q")
    digest = hashlib.sha256()

    def rows() -> Iterator[dict[str, Any]]:
        for record in records:
            counts["kept"] += 1
            counts["kept_with_caption"] += record.caption is not None
            kinds[record.kind or "unknown"] += 1
            notes["animated"] += record.frames > 1
            sides = sorted((record.width_px, record.height_px))
            notes["wide"] += sides[1] > wide_aspect * sides[0]
            groups.append(hash(record.group) & 0xFFFFFFFFFFFFFFFF)
            digest.update(json.dumps(_content(record), ensure_ascii=False).encode())
            yield vars(record)

    write_jsonl(folder / "records.jsonl", rows())
    counts["groups"] = len(set(groups))
    return Tally(
        dict(counts),
        dict(kinds),
        {name: count for name, count in notes.items() if count},
        digest.hexdigest()[:16],
    )


def write_dropped(folder: Path, dropped: Iterable[Drop]) -> dict[str, int]:
    """Write dropped.jsonl, one loss in memory at a time.

    Returns:
        named reason -> how many, most frequent first.
    """
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for drop in dropped:
            counts[drop.reason] += 1
            yield dataclasses.asdict(drop)

    write_jsonl(folder / "dropped.jsonl", rows())
    return dict(counts.most_common())


def write_report(
    config: ScraperConfig,
    tally: Tally,
    dropped: Mapping[str, int],
    *,
    counts: Mapping[str, int],
    fingerprint: str,
    seconds: float,
    page_failures: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write crawl.json, dropped.html and, last, manifest.json, and say it in one line.

    Args:
        config: what was asked for.
        tally: what `write_kept` gave.
        dropped: what `write_dropped` gave.
        counts: what came in, by kind of thing; `cards` among them.
        fingerprint: changes when the input does.
        seconds: how long it took.
        page_failures: named reason -> pages that could not be read.
    """
    from scraper.contact_sheet import write_sheet

    folder = config.data.dir
    all_counts = {**counts, **tally.counts}
    report = {
        "source": identity(config.source),
        "counts": all_counts,
        "notes": dict(tally.notes),
        "kinds": dict(tally.kinds),
        "dropped": dict(dropped),
        "page_failures": dict(page_failures),
        "seconds": round(seconds, 2),
    }
    write_json(folder / "crawl.json", report)
    write_sheet(folder)
    names = ("records.jsonl", "dropped.jsonl", "crawl.json", "config.json")
    manifest = Manifest(
        kind="records",
        hash=tally.hash,
        counts=all_counts,
        dropped=dict(dropped),
        files={name: (folder / name).stat().st_size for name in names},
        details={"made_from": made_from(config, fingerprint)},
    )
    write_manifest(folder, manifest)
    failures = f" {told(page_failures)} pages failed;" if page_failures else ""
    notes = f", among them {told(tally.notes)}" if tally.notes else ""
    print(
        f"{folder}: {counts['cards']:,} cards came in; kept {all_counts['kept']:,} logos in "
        f"{all_counts['groups']:,} groups ({all_counts['kept_with_caption']:,} with words{notes}); "
        f"dropped {sum(dropped.values()):,}: {told(dropped)};{failures} {seconds:.1f} s."
    )


def _content(record: Record) -> list[object]:
    """What of a record another step can see; addresses on this machine change with the port."""
    return [
        record.id,
        record.caption,
        record.group,
        record.title,
        record.kind,
        record.years,
        record.licence,
        record.further_captions,
        record.written_by,
        record.source_file,
    ]
