"""Source -> records.jsonl, images/ and crawl.json: crawl or gather, screen, and say what was lost on the way.

A data folder belongs to one source; refuses another one. manifest.json comes last.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
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
    write_records,
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
    _check_owner(config)
    if config.source.path is not None and not config.source.path.is_dir():
        from scraper.sites.folder import read_folder

        read_folder(config.source.path)


def collect(config: ScraperConfig) -> None:
    """Do what `python -m scraper` does; a finished folder is left as it is.

    Raises:
        FetchError: the site does not answer.
        DataError: the source gave nothing.
    """
    started = time.monotonic()
    harvest = _crawled(config) if config.source.is_web else _gathered(config)
    if harvest is None:
        manifest = read_manifest(config.data.dir, "records", MADE_BY)
        print(f"{config.data.dir}: up to date, {manifest.counts['kept']:,} logos; nothing to do.")
        return
    from scraper.screen import screen

    screened = screen(harvest.records, harvest.looks, config.screen)
    dropped = (*harvest.dropped, *screened.dropped)
    if not screened.records:
        raise DataError(
            f"{config.data.dir}: none of {len(harvest.records)} pictures passed ({told(reasons(dropped))}); "
            "look at the section screen."
        )
    _write(config, harvest, screened.records, dropped, time.monotonic() - started)


def _gathered(config: ScraperConfig) -> Harvest | None:
    from scraper.gather import gather

    harvest = gather(config, lambda fingerprint: _is_done(config, fingerprint))
    if harvest is not None:
        _claim(config)
    return harvest


def _crawled(config: ScraperConfig) -> Harvest | None:
    from scraper.crawl import crawl, is_crawled, reach

    _check_owner(config)
    needs_fetching = config.fetch.refresh or not is_crawled(config)
    if not needs_fetching and _is_done(config, ""):
        return None
    fetcher = reach(config) if needs_fetching else None
    _claim(config)
    return crawl(config, fetcher)


def _is_done(config: ScraperConfig, fingerprint: str) -> bool:
    """Whether the folder was finished with these settings and this input."""
    if not (config.data.dir / "manifest.json").exists():
        return False
    manifest = read_manifest(config.data.dir, "records", MADE_BY)
    return manifest.details.get("made_from") == _made_from(config, fingerprint)


def _made_from(config: ScraperConfig, fingerprint: str) -> str:
    return hash_of(identity(config.source), config.screen.model_dump(mode="json"), fingerprint)


def identity(source: SourceConfig) -> dict[str, object]:
    """What makes two sources the same: not the port of a site on this machine."""
    value = source.model_dump(mode="json")
    parts = urlsplit(source.url or "")
    if parts.hostname in _LOOPBACK:
        value["url"] = f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}/"
    return value


def _check_owner(config: ScraperConfig) -> None:
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


def _claim(config: ScraperConfig) -> None:
    """Mark the data folder as this source's own and unfinished."""
    _check_owner(config)
    (config.data.dir / "manifest.json").unlink(missing_ok=True)
    write_text(config.data.dir / "config.json", resolved_json(config) + "\n")


def _write(
    config: ScraperConfig,
    harvest: Harvest,
    records: tuple[Record, ...],
    dropped: tuple[Drop, ...],
    seconds: float,
) -> None:
    folder = config.data.dir
    counts = {
        **harvest.counts,
        "kept": len(records),
        "kept_with_caption": sum(record.caption is not None for record in records),
        "groups": len({record.group for record in records}),
    }
    kinds = Counter(record.kind or "unknown" for record in records)
    write_records(folder / "records.jsonl", records)
    write_jsonl(folder / "dropped.jsonl", map(dataclasses.asdict, dropped))
    report = {
        "source": identity(config.source),
        "counts": counts,
        "kinds": dict(kinds),
        "dropped": reasons(dropped),
        "page_failures": dict(harvest.page_failures),
        "seconds": round(seconds, 2),
    }
    write_json(folder / "crawl.json", report)
    names = ("records.jsonl", "dropped.jsonl", "crawl.json", "config.json")
    manifest = Manifest(
        kind="records",
        hash=hash_of([_content(record) for record in records]),
        counts=counts,
        dropped=reasons(dropped),
        files={name: (folder / name).stat().st_size for name in names},
        details={"made_from": _made_from(config, harvest.fingerprint)},
    )
    write_manifest(folder, manifest)
    failures = f" {told(harvest.page_failures)} pages failed;" if harvest.page_failures else ""
    print(
        f"{folder}: {counts['cards']:,} cards came in; kept {len(records):,} logos in "
        f"{counts['groups']:,} groups ({counts['kept_with_caption']:,} with words); "
        f"dropped {len(dropped):,}: {told(reasons(dropped))};"
        f"{failures} {seconds:.1f} s."
    )


def _content(record: Record) -> list[object]:
    """What of a record another step can see; addresses on this machine change with the port."""
    return [record.id, record.caption, record.group, record.title, record.kind, record.years, record.licence]
