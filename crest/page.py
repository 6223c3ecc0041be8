"""One self-contained HTML page: skeleton, style and the few parts that the reports of several rooms share.

A page fetches nothing (its content policy forbids it), follows the reader's light or dark setting, and is
read by screen readers and at phone width. Every text goes through `text`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

STYLE = Path(__file__).with_name("page.css")
MAX_DOTS = 40
"""Points of a curve up to which each has a dot."""


def text(value: object) -> str:
    """Any value as HTML text, safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def page(title: str, body: str) -> str:
    """A whole page in this module's style around `body` (HTML)."""
    return document(title, STYLE, f"<main>\n{body}\n</main>")


def document(title: str, style: Path, body: str) -> str:
    """A whole page that fetches nothing.

    Args:
        title: as text.
        style: its CSS file, which is put inside.
        body: what stands in <body>, as HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>\n{style.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def picture(pixels: NDArray[np.uint8], alt: str) -> str:
    """An <img> with the picture inside.

    Args:
        pixels: (3, H, W).
        alt: what it shows, as text.
    """
    from PIL import Image

    return png(Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0))), alt)


def png(image: Image.Image, alt: str) -> str:
    """An <img> with a PIL picture inside."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" alt="{text(alt)}" {size}>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML; the first cell of a row is its header."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return scroll(
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
    return scroll("".join(parts) + "</svg>", description)


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
    return scroll("".join(parts), description)


@dataclass(frozen=True)
class Line:
    """One curve of a plot, with a dot at every point where these are few."""

    label: str
    points: Sequence[tuple[float, float]]
    tone: str = "accent"
    """"accent", "better", "worse" or "even" """
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): an interval around the curve"""
    dash: str = ""
    """SVG's pattern of strokes and gaps, such as "6 3"; empty: drawn through"""


def curves(
    lines: Sequence[Line],
    *,
    across: str,
    description: str,
    levels: Sequence[tuple[str, float]] = (),
    shown: Callable[[float], str] | None = None,
) -> str:
    """A small plot as inline SVG; its curves are named below it, so that colour is not all that tells them.

    Args:
        lines: with at least one point among them.
        across: what the horizontal axis counts.
        description: for those who can't see it.
        levels: (name, value) of what does not move, as dashes across.
        shown: a value as the vertical axis writes it; by default with as many digits as tell its ends apart.
    """
    width, height, left, right, top, bottom = 420, 230, 64, 412, 12, 196
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [value for _, value in levels]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    first, last, low, high = min(xs), max(xs), min(ys), max(ys)
    pad = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    low, high = (max(0.0, low - pad) if low >= 0 else low - pad), high + pad

    shown = shown or _shortest(low, (low + high) / 2, high)

    def at(x: float, y: float) -> str:
        column = left + (right - left) * (x - first) / ((last - first) or 1)
        return f"{column:.1f},{bottom - (bottom - top) * (y - low) / (high - low):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(description)}">']
    for share in (0.0, 0.5, 1.0):
        y, tick = bottom - (bottom - top) * share, shown(low + (high - low) * share)
        parts.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text class="soft" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{text(tick)}</text>'
        )
    parts.append(
        f'<text class="soft" x="{left}" y="{bottom + 20}">{text(across)} {first:g}</text>'
        f'<text class="soft" x="{right}" y="{bottom + 20}" text-anchor="end">{last:g}</text>'
    )
    for _, value in levels:
        ends = f"{left},{at(first, value).partition(',')[2]} {right},{at(first, value).partition(',')[2]}"
        parts.append(f'<polyline points="{ends}" stroke="var(--soft)" stroke-dasharray="3 4"/>')
    for line in lines:
        colour = f"var(--{line.tone})"
        edge = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        if edge:
            corners = " ".join(at(*corner) for corner in edge)
            parts.append(f'<polygon points="{corners}" fill="{colour}" opacity=".16"/>')
        path = " ".join(at(*point) for point in line.points)
        dashes = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        for point in line.points if len(line.points) <= MAX_DOTS else ():
            column, _, row = at(*point).partition(",")
            parts.append(f'<circle cx="{column}" cy="{row}" r="3" fill="{colour}"/>')
    keys = [_key(line.tone, line.dash, line.label) for line in lines]
    keys += [_key("soft", "3 4", f"{name} {shown(value)}") for name, value in levels]
    return f'<div class="plot">{"".join(parts)}</svg><p class="soft">{" ".join(keys)}</p></div>'


def _shortest(*values: float) -> Callable[[float], str]:
    """How to write values that must not look the same."""
    kind = "g" if all(value == 0 or abs(value) >= 1e-3 for value in values) else "e"
    digits = 3 if kind == "g" else 1
    while digits < 9 and len({f"{value:.{digits}{kind}}" for value in values}) < len(set(values)):
        digits += 1
    return lambda value: "0" if value == 0 else f"{value:.{digits}{kind}}"


def _key(tone: str, dash: str, label: str) -> str:
    """A piece of a curve and its name."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<span class="{tone}"><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line x1="0" y1="4" '
        f'x2="24" y2="4" stroke="var(--{tone})" stroke-width="2"{dashes}/></svg> {text(label)}</span>'
    )


def _dashes(x: float, top: float, bottom: float) -> str:
    """The line of no difference."""
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="var(--soft)" stroke-dasharray="3 4"/>'


def scroll(content: str, label: str) -> str:
    """Wide content that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{content}</div>'
