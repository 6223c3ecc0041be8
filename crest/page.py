"""One self-contained HTML page: skeleton, style and the few parts that the reports of several rooms share.

A page fetches nothing (its content policy forbids it), follows the reader's light or dark setting, and is
read by screen readers and at phone width. Every text goes through `text`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STYLE = Path(__file__).with_name("page.css")


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
        f"<title>{text(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
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
        _dashes(middle, 30, height),
    ]
    for number, strip in enumerate(strips):
        y = top + row * number + 14
        reach = common_reach or max(abs(strip.low), abs(strip.high), 1e-12)
        scale = (x1 - x0) / 2 / reach
        a, b, m = (middle + scale * value for value in (strip.low, strip.high, strip.value))
        colour = f"var(--{strip.tone})"
        parts.append(
            f'<text x="0" y="{y + 4}">{text(strip.label)}</text>'
            f'<line x1="{a:.1f}" y1="{y}" x2="{b:.1f}" y2="{y}" stroke="{colour}" stroke-width="3" '
            'stroke-linecap="round"/>'
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
                f'<rect x="{number * step + 1:.1f}" y="{base - tall:.1f}" width="{step - 2:.1f}" '
                f'height="{tall:.1f}" rx="2" fill="var(--{tone})"/>'
            )
    parts.append(
        f'<line x1="0" y1="{base}" x2="{width}" y2="{base}" stroke="var(--line)"/>'
        f"{_dashes(width / 2, 8, base)}"
        f'<text class="soft" x="0" y="{base + 22}">−{reach:.3g}</text>'
        f'<text class="soft" x="{width / 2}" y="{base + 22}" text-anchor="middle">0 · {text(label)}</text>'
        f'<text class="soft" x="{width}" y="{base + 22}" text-anchor="end">+{reach:.3g}</text></svg>'
    )
    return _scroll("".join(parts), description)


def _dashes(x: float, top: float, bottom: float) -> str:
    """The line of no difference."""
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="var(--soft)" stroke-dasharray="3 4"/>'


def _scroll(content: str, label: str) -> str:
    """Wide content that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{content}</div>'
