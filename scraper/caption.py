"""Give every picture its words: the source's own where there are any, the captioner's where not.

Own captions are never overwritten; one that is still cut with '…' is ended at its last clause or given up.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from crest.config import run_command
from crest.records import (
    Caption,
    Manifest,
    Record,
    hash_of,
    read_captions,
    read_json,
    read_manifest,
    read_records,
    write_captions,
    write_json,
)
from scraper.config import ScraperConfig
from scraper.harvest import told

RECORDS_BY = "python -m scraper (make scrape)"


class Captioner(Protocol):
    """What this step needs of crest.models.captioner."""

    @property
    def hash(self) -> str:
        """Hash of the weights."""
        ...

    def caption(self, pictures: Any) -> list[str]:
        """One description for each RGB picture."""
        ...


def own_captions(records: Sequence[Record]) -> tuple[list[Caption], Counter[str]]:
    """The sources' own words, cut ones ended at a clause.

    Returns:
        captions, and how many were whole, cut_back, given_up or missing.
    """
    from scraper.cut_text import cut_back, is_cut, tidy

    captions: list[Caption] = []
    counts: Counter[str] = Counter(whole=0, cut_back=0, given_up=0, missing=0)
    for record in records:
        text = tidy(record.caption or "")
        how = "missing" if not text else "whole"
        if is_cut(text):
            text = cut_back(text) or ""
            how = "cut_back" if text else "given_up"
        counts[how] += 1
        if text:
            by_model = record.written_by not in ("human", "rule")
            origin, model = ("model", record.written_by) if by_model else (record.written_by, "")
            captions.append(Caption(record.id, text, origin, model))
    return captions, counts


def described(
    records: Sequence[Record], data_dir: Path, captioner: Captioner, batch_size: int
) -> list[Caption]:
    """The captioner's words for these pictures; an empty answer gives no caption."""
    from tqdm import tqdm

    from crest.images import flatten, read_image

    captions: list[Caption] = []
    bar = tqdm(total=len(records), desc="caption", unit="logo", disable=None)
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        pictures = [flatten(read_image(data_dir / record.image)) for record in batch]
        for record, text in zip(batch, captioner.caption(pictures), strict=True):
            if text.strip():
                captions.append(Caption(record.id, " ".join(text.split()), "model", captioner.hash))
        bar.update(len(batch))
    bar.close()
    return captions


def main(config: ScraperConfig) -> None:
    """Write captions.jsonl, its rows in the order of the records."""
    started = time.monotonic()
    folder = config.data.dir
    parent = read_manifest(folder, "records", RECORDS_BY)
    made_from = hash_of(parent.hash, config.caption.model_dump(mode="json"), _weights_mark(config))
    path = folder / "captions.json"
    if path.exists() and read_json(path)["details"].get("made_from") == made_from:
        print(f"{folder / 'captions.jsonl'}: up to date; nothing to do.")
        return
    records = read_records(folder / "records.jsonl")
    captions, counts = own_captions(records)
    known = {caption.id for caption in captions}
    silent = [record for record in records if record.id not in known]
    model_hash = ""
    if silent and config.caption.weights:
        captioner = _captioner(config)
        model_hash = captioner.hash
        captions += described(silent, folder, captioner, config.caption.batch_size)
    write_all(folder, records, captions, counts, parent.hash, made_from, model_hash)
    by_model = sum(caption.origin == "model" for caption in captions)
    left = len(records) - len(captions)
    print(
        f"{folder}: {len(records):,} logos came in; {len(captions) - by_model:,} keep the source's words "
        f"({counts['cut_back']:,} ended at a clause), {by_model:,} described by the captioner; "
        f"dropped {left:,}: {told({'no_caption': left})}; {time.monotonic() - started:.1f} s."
    )


def write_all(
    folder: Path,
    records: Sequence[Record],
    captions: Sequence[Caption],
    counts: Counter[str],
    parent_hash: str,
    made_from: str,
    model_hash: str,
) -> None:
    """Write captions.jsonl and, last, captions.json, which says that it is finished."""
    path = folder / "captions.json"
    path.unlink(missing_ok=True)
    by_id = {caption.id: caption for caption in captions}
    ordered = [by_id[record.id] for record in records if record.id in by_id]
    write_captions(folder / "captions.jsonl", ordered)
    by_model = sum(caption.origin == "model" for caption in ordered)
    manifest = Manifest(
        kind="captions",
        hash=captions_hash(ordered),
        counts={**counts, "human": len(ordered) - by_model, "model": by_model},
        dropped={"no_caption": len(records) - len(ordered)},
        parents={"records": parent_hash, **({"captioner": model_hash} if model_hash else {})},
        files={"captions.jsonl": (folder / "captions.jsonl").stat().st_size},
        details={"made_from": made_from},
    )
    write_json(path, dataclasses.asdict(manifest))


def captions_hash(captions: Sequence[Caption]) -> str:
    """What captions.json names them by; they must be in the order of the records."""
    return hash_of([dataclasses.astuple(caption) for caption in captions])


def finished_captions(folder: Path, records_hash: str) -> tuple[list[Caption], Manifest] | None:
    """The captions made from these very records, with their manifest; None when there are none."""
    path = folder / "captions.json"
    if not path.exists():
        return None
    manifest = Manifest(**read_json(path))
    if manifest.parents.get("records") != records_hash:
        return None
    return read_captions(folder / "captions.jsonl"), manifest


def _captioner(config: ScraperConfig) -> Captioner:
    from crest.models.captioner import load_captioner
    from crest.world import pick_device

    assert config.caption.weights is not None
    captioner: Captioner = load_captioner(config.caption.weights, pick_device(config.caption.device))
    return captioner


def _weights_mark(config: ScraperConfig) -> list[object]:
    """Changes when a run folder's weights are written again."""
    path = Path(config.caption.weights or "") / "weights.safetensors"
    if not config.caption.weights or not path.exists():
        return []
    return [path.stat().st_size, path.stat().st_mtime_ns]


def check(config: ScraperConfig) -> None:
    """Look whether there are records."""
    read_manifest(config.data.dir, "records", RECORDS_BY)


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.caption", ScraperConfig, main, check=check))
