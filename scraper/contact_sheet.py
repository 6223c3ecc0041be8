"""What was dropped, as one page for people: dropped.html, grouped by reason, duplicates beside the kept twin.

Self-contained: thumbnails are embedded and nothing is asked of the network. Titles and addresses come from
strangers, so each is escaped, and only web addresses become links.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Final

from PIL import Image

from crest.errors import DataError
from crest.images import decode
from crest.records import Record, picture_bytes, read_jsonl, stream_records, write_text
from scraper.harvest import Drop

PER_REASON: Final = 60
"""Losses that are shown of each reason; the others are counted."""
_THUMB_PX: Final = 112
_LONGEST: Final = 160
"""Characters of an address or title that are shown."""
_WHY: Final = {
    "too_small": "The longer side has fewer pixels than screen.min_side_px.",
    "blank": "One colour only.",
    "invisible_on_white": "Blank on white, although its transparency has a shape.",
    "duplicate": "The same bytes or the same pixels as the kept picture.",
    "near_duplicate": "Looks like the kept picture: rescaled, compressed, padded or a little recoloured.",
    "mirrored_duplicate": "Looks like the kept picture seen in a mirror.",
    "not_an_image": "The bytes are of no kind of picture that Crest reads.",
    "broken": "The picture ends early or cannot be decoded.",
    "no_image": "The card names no picture.",
}


def write_sheet(folder: Path) -> None:
    """Write dropped.html from dropped.jsonl, records.jsonl and the pictures of a data folder."""
    counts: Counter[str] = Counter()
    shown: dict[str, list[Drop]] = {}
    for row in read_jsonl(folder / "dropped.jsonl"):
        drop = Drop(**row)
        counts[drop.reason] += 1
        if counts[drop.reason] <= PER_REASON:
            shown.setdefault(drop.reason, []).append(drop)
    wanted = {drop.like for drops in shown.values() for drop in drops if drop.like}
    twins = {record.id: record for record in _records(folder, wanted)}
    sections = [
        _section(folder, reason, count, shown[reason], twins) for reason, count in counts.most_common()
    ]
    parts = ", ".join(f"{escape(reason)} {count:,}" for reason, count in counts.most_common())
    lead = f"{counts.total():,} dropped: {parts}." if counts else "Nothing was dropped."
    name = escape(folder.name)
    write_text(
        folder / "dropped.html",
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Dropped from {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Dropped from {name}</h1>\n<p>{lead}</p>\n{''.join(sections)}</body>\n</html>\n",
    )


def _records(folder: Path, wanted: set[str]) -> Iterable[Record]:
    if not wanted:
        return []
    return (record for record in stream_records(folder / "records.jsonl") if record.id in wanted)


def _section(folder: Path, reason: str, count: int, drops: list[Drop], twins: Mapping[str, Record]) -> str:
    why = f"<p>{escape(_WHY[reason])}</p>\n" if reason in _WHY else ""
    more = f"<p>and {count - len(drops):,} more</p>\n" if count > len(drops) else ""
    seen = [_figure(folder, drop, twins.get(drop.like)) for drop in drops if drop.image]
    has_twins = any(drop.like for drop in drops)
    named = [f"<li>{_address(drop.what)}</li>" for drop in drops if not drop.image]
    pictures = f'<div class="sheet{"" if has_twins else " single"}">\n{"".join(seen)}</div>\n' if seen else ""
    names = f"<ul>\n{''.join(named)}</ul>\n" if named else ""
    title = f"<h2>{escape(reason)} <span>{count:,}</span></h2>\n"
    return f"<section>\n{title}{why}{pictures}{names}{more}</section>\n"


def _figure(folder: Path, drop: Drop, twin: Record | None) -> str:
    pictures = [_picture(folder, drop.image, "dropped")]
    kept = ""
    if twin is not None:
        pictures.append(_picture(folder, twin.image, "kept"))
        name = twin.title or twin.caption or twin.image_url or twin.id
        kept = f'<div class="kept">kept: {escape(_short(name))}</div>'
    return (
        f"<figure><div>{''.join(pictures)}</div>"
        f"<figcaption>{_address(drop.what)}{kept}</figcaption></figure>\n"
    )


def _picture(folder: Path, image: str, label: str) -> str:
    try:
        picture = decode(picture_bytes(folder, image), image)
    except DataError:
        return f'<span class="none">{label}: no picture</span>'
    picture.thumbnail((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img class="{label}" {size} alt="{label}" src="data:image/webp;base64,{data}">'


def _address(what: str) -> str:
    shown = escape(_short(what))
    if what.startswith(("http://", "https://")):
        return f'<a href="{escape(what, quote=True)}" rel="noreferrer noopener">{shown}</a>'
    return f"<span>{shown}</span>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_STYLE: Final = """
:root { color-scheme: light dark;
  --ink: #1c1d1f; --soft: #5f646b; --ground: #fbfbfa; --line: #dcdedf; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e7; --soft: #a3a8af; --ground: #17181a; --line: #36393d; --card: #202225; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--ink); background: var(--ground);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0; }
h2 span { color: var(--soft); font-weight: normal; } p { color: var(--soft); margin: .2rem 0 .8rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .7rem; }
.single { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; padding: .7rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); }
figure > div { display: flex; gap: .7rem; align-items: center; min-height: 72px; }
img { height: auto; max-width: 100%; border-radius: 3px;
  background: repeating-conic-gradient(#fff 0 25%, #d9dcdf 0 50%) 0 0 / 16px 16px; }
img.dropped { outline: 2px dashed #c2413a; outline-offset: 2px; }
img.kept { outline: 2px solid #2c8a57; outline-offset: 2px; }
figcaption, li { font-size: .8rem; overflow-wrap: anywhere; } figcaption { margin-top: .6rem; }
.kept, .none { color: var(--soft); } a { color: inherit; } ul { padding-left: 1.2rem; }
"""
