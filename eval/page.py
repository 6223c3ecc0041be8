"""One self-contained HTML page: skeleton, style and the few parts that the report and the tally share.

A page fetches nothing (its content policy forbids it), follows the reader's light or dark setting, and is read by
screen readers and at phone width. Every text goes through `text`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #1d2127; --soft: #5a626d; --line: #d9d6cd;
  --accent: #1f5fae; --better: #1b7a43; --worse: #b3382c; --even: #5a626d; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e9e7e2; --soft: #a4abb5;
  --line: #363c45; --accent: #82b4ef; --better: #6fcf97; --worse: #f0897d; --even: #a4abb5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0; }
.verdict { font-size: 1.45rem; line-height: 1.35; font-weight: 600; max-width: 52rem; text-wrap: pretty; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .25rem 0 .5rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); }
thead th { font-size: .8rem; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--ink); }
tbody th { font-weight: 600; min-width: 9rem; }
td.number { white-space: nowrap; }
td small, th small { display: block; color: var(--soft); font-weight: 400; }
.better { color: var(--better); } .worse { color: var(--worse); }
svg { display: block; width: 100%; min-width: 44rem; height: auto; max-width: 60rem; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; padding: 0; list-style: none; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .85rem; }
.card p { margin: 0 0 .6rem; font-size: .92rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .75rem; }
figure { margin: 0; } figcaption { margin-top: .3rem; }
img { display: block; width: 100%; height: auto; max-width: 11rem; background: #fff; border: 1px solid var(--line);
  border-radius: .25rem; image-rendering: auto; }
code, pre { font: .82rem/1.5 ui-monospace, monospace; } pre { overflow-x: auto; background: var(--card); padding: 1rem;
  border: 1px solid var(--line); border-radius: .5rem; } summary { cursor: pointer; padding: .4rem 0; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
@media print { main { max-width: none; } .card { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """Any value as HTML text, safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def page(title: str, body: str) -> str:
    """A whole page around `body` (HTML)."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def picture(pixels: NDArray[np.uint8], alt: str) -> str:
    """An <img> with the picture inside.

    Args:
        pixels: (3, H, W).
        alt: what it shows, as text.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0))).save(
        stream, "PNG", optimize=True
    )
    data = base64.b64encode(stream.getvalue()).decode()
    side_px = pixels.shape[-1]
    return f'<img src="data:image/png;base64,{data}" alt="{text(alt)}" width="{side_px}" height="{side_px}">'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML; the first cell of a row is its header."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return _scroll(
        f"<table><caption>{text(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>",
        caption,
    )


@dataclass(frozen=True)
class Strip:
    """One line of a forest plot: an interval against a line of no difference."""

    label: str
    value: float
    low: float
    high: float
    shown: str
    """the figures in words, at the right"""
    tone: str
    """"better", "worse" or "even" """


def forest(
    strips: Sequence[Strip], *, left: str, right: str, description: str, common_reach: float | None = None
) -> str:
    """A forest plot as inline SVG; the line of no difference is common to all strips.

    Args:
        strips: top to bottom.
        left: what lies left of the line.
        right: what lies right of it.
        description: for those who can't see it.
        common_reach: the scale of all strips, from the line to the edge; by default each has its own.
    """
    width, row, top = 960, 40, 46
    x0, x1 = 230, 640
    middle = (x0 + x1) / 2
    height = top + row * len(strips) + 8
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(description)}">',
        f'<text class="soft" x="{middle - 14}" y="20" text-anchor="end">← {text(left)}</text>',
        f'<text class="soft" x="{middle + 14}" y="20">{text(right)} →</text>',
        f'<line x1="{middle}" y1="30" x2="{middle}" y2="{height}" stroke="var(--soft)" stroke-dasharray="3 4"/>',
    ]
    for number, strip in enumerate(strips):
        y = top + row * number + 14
        reach = common_reach or max(abs(strip.low), abs(strip.high), 1e-12)
        scale = (x1 - x0) / 2 / reach
        a, b, m = (middle + scale * value for value in (strip.low, strip.high, strip.value))
        colour = f"var(--{strip.tone})"
        parts.append(
            f'<text x="0" y="{y + 4}">{text(strip.label)}</text>'
            f'<line x1="{a:.1f}" y1="{y}" x2="{b:.1f}" y2="{y}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>'
            f'<circle cx="{m:.1f}" cy="{y}" r="6.5" fill="{colour}" stroke="var(--paper)" stroke-width="2"/>'
            f'<text class="soft" x="{x1 + 24}" y="{y + 4}">{text(strip.shown)}</text>'
        )
    return _scroll("".join(parts) + "</svg>", description)


def histogram(values: NDArray[np.float64], *, label: str, description: str) -> str:
    """Bars of how often each difference occurs, with the line of no difference."""
    reach = max(float(np.abs(values).max()), 1e-9)
    counts, _ = np.histogram(values, bins=21, range=(-reach, reach))
    width, height, base = 960, 190, 150
    step = width / len(counts)
    tallest = max(int(counts.max()), 1)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(description)}">']
    for number, count in enumerate(counts):
        tall = 130 * count / tallest
        centre = number - len(counts) // 2
        tone = "even" if centre == 0 else "better" if centre > 0 else "worse"
        if count:
            parts.append(
                f'<rect x="{number * step + 1:.1f}" y="{base - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}" rx="2" '
                f'fill="var(--{tone})"/>'
            )
    parts.append(
        f'<line x1="0" y1="{base}" x2="{width}" y2="{base}" stroke="var(--line)"/>'
        f'<line x1="{width / 2}" y1="8" x2="{width / 2}" y2="{base}" stroke="var(--soft)" stroke-dasharray="3 4"/>'
        f'<text class="soft" x="0" y="{base + 22}">−{reach:.3g}</text>'
        f'<text class="soft" x="{width / 2}" y="{base + 22}" text-anchor="middle">0 · {text(label)}</text>'
        f'<text class="soft" x="{width}" y="{base + 22}" text-anchor="end">+{reach:.3g}</text></svg>'
    )
    return _scroll("".join(parts), description)


def _scroll(content: str, label: str) -> str:
    """Wide content that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{content}</div>'
