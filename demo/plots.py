"""Small plots as inline SVG, drawn by hand: learning curves, intervals on a scale, bars by value.

Colours are the page's CSS variables, so that a plot follows light and dark; every plot says what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crest.page import text

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A figure with its interval on a common scale."""

    tone: str
    """"stock" or "tuned" """
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """Shares of both systems for one value of an attribute."""

    label: str
    count: int
    stock: float
    tuned: float


def short(value: float) -> str:
    """A number for an axis, three digits."""
    return f"{value:.3g}"


def strip(marks: Sequence[Mark], *, largest: float, goal: float | None, description: str) -> str:
    """Figures with their intervals on a scale from 0, the goal as a tick."""
    width, left, right = 240.0, 8.0, 232.0

    def place(value: float) -> float:
        return left + (right - left) * min(max(value / largest, 0.0), 1.0)

    height = 12 + 16 * len(marks)
    parts = [
        f'<svg class="strip" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{text(description)}">'
    ]
    for number, mark in enumerate(marks):
        y = 12 + 16 * number
        parts.append(
            f'<line class="track" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
            f'<line class="span {mark.tone}" x1="{place(mark.low):.1f}" y1="{y}" '
            f'x2="{place(mark.high):.1f}" y2="{y}"/>'
            f'<circle class="{mark.tone}" cx="{place(mark.value):.1f}" cy="{y}" r="5"/>'
        )
    if goal is not None:
        x = place(goal)
        parts.append(f'<line class="goal" x1="{x:.1f}" y1="3" x2="{x:.1f}" y2="{height - 3}"/>')
    return "".join(parts) + "</svg>"


def curves(train: Points, val: Points, *, steps: int, description: str) -> str:
    """Training loss as a line, held-out loss as a line with dots, on common axes."""
    width, height, left, right, top, bottom = 280, 190, 44, 272, 12, 162
    values = [value for _, value in (*train, *val)]
    if not values:
        return f'<p class="soft">{text(description)}: nothing was logged.</p>'
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    low, high = max(0.0, low - pad) if low >= 0 else low - pad, high + pad

    def at(point: tuple[float, float]) -> str:
        x = left + (right - left) * point[0] / max(steps, 1)
        y = bottom - (bottom - top) * (point[1] - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{text(description)}">']
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        tick = short(low + (high - low) * share)
        parts.append(
            f'<line class="track" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{bottom + 19}">step 0</text>'
        f'<text x="{right}" y="{bottom + 19}" text-anchor="end">{steps}</text>'
    )
    if train:
        parts.append(f'<polyline class="line train" points="{" ".join(map(at, train))}"/>')
    if val:
        parts.append(f'<polyline class="line val" points="{" ".join(map(at, val))}"/>')
        for point in val:
            across, _, down = at(point).partition(",")
            parts.append(f'<circle class="val" cx="{across}" cy="{down}" r="3.5"/>')
    return "".join(parts) + "</svg>"


def bars(rows: Sequence[Bar], *, description: str) -> str:
    """Shares in [0, 1] of both systems, a pair of bars for each value."""
    width, left, right, row, top = 340, 92, 296, 25, 4
    height = top + row * len(rows)
    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{text(description)}">']
    for number, bar in enumerate(rows):
        y = top + row * number
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{text(bar.label)}</text>')
        for offset, tone, value in ((2, "tuned", bar.tuned), (12, "stock", bar.stock)):
            tall = 9 if tone == "tuned" else 5
            parts.append(
                f'<rect class="ground" x="{left}" y="{y + offset}" width="{right - left}" height="{tall}" '
                f'rx="2"/><rect class="{tone}" x="{left}" y="{y + offset}" '
                f'width="{(right - left) * value:.1f}" height="{tall}" rx="2"/>'
            )
        parts.append(f'<text x="{right + 8}" y="{y + 14}">{100 * bar.tuned:.0f} %</text>')
    return "".join(parts) + "</svg>"
