"""The twelve charges as bold silhouettes: polygons that add and polygons that cut, in a box of side 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from PIL import Image, ImageDraw

Point: TypeAlias = tuple[float, float]
Polygon: TypeAlias = list[Point]
Silhouette: TypeAlias = list[tuple[bool, Polygon]]
"""Painted in order: True adds the polygon, False cuts it out. x right, y down, in [-1, 1]."""


def disc(x: float, y: float, radius: float, points: int = 40) -> Polygon:
    """A circle as a polygon."""
    return arc(x, y, radius, 0, 360 - 360 / points, points)


def arc(x: float, y: float, radius: float, start: float, end: float, points: int = 16) -> Polygon:
    """Points along a circle between two angles in degrees, clockwise on screen from the right."""
    angles = [math.radians(start + (end - start) * i / (points - 1)) for i in range(points)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def bar(x1: float, y1: float, x2: float, y2: float, width: float) -> Polygon:
    """A straight bar of the given width between two points."""
    length = math.hypot(x2 - x1, y2 - y1)
    nx, ny = -(y2 - y1) / length * width / 2, (x2 - x1) / length * width / 2
    return [(x1 + nx, y1 + ny), (x2 + nx, y2 + ny), (x2 - nx, y2 - ny), (x1 - nx, y1 - ny)]


def ring_part(x: float, y: float, outer: float, inner: float, start: float, end: float) -> Polygon:
    """A piece of a ring between two angles in degrees."""
    return arc(x, y, outer, start, end) + arc(x, y, inner, end, start)


def turned(silhouette: Silhouette, degrees: float) -> Silhouette:
    """The silhouette turned clockwise about the centre of its box."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(adds, [(x * c - y * s, x * s + y * c) for x, y in polygon]) for adds, polygon in silhouette]


def star() -> Silhouette:
    """A star of five points."""
    points: Polygon = []
    for i in range(10):
        radius = 1.08 if i % 2 == 0 else 0.47
        angle = math.radians(-90 + 36 * i)
        points.append((radius * math.cos(angle), 0.08 + radius * math.sin(angle)))
    return [(True, points)]


def crown() -> Silhouette:
    """A crown of three tall points over a band set apart."""
    points = [
        (-0.82, 0.42),
        (-1.0, -0.6),
        (-0.48, -0.1),
        (0.0, -0.9),
        (0.48, -0.1),
        (1.0, -0.6),
        (0.82, 0.42),
    ]
    band = [(-0.82, 0.58), (0.82, 0.58), (0.82, 0.88), (-0.82, 0.88)]
    return [(True, points), (True, band)]


def bolt() -> Silhouette:
    """A flash of lightning."""
    points = [
        (0.25, -1.0),
        (-0.7, 0.18),
        (-0.12, 0.18),
        (-0.42, 1.0),
        (0.72, -0.3),
        (0.08, -0.3),
        (0.6, -1.0),
    ]
    return [(True, points)]


def ball() -> Silhouette:
    """A ball with a cross of seams and two curved ones."""
    seams = [bar(0, -1.1, 0, 1.1, 0.17), bar(-1.1, 0, 1.1, 0, 0.17)]
    curved = [ring_part(x, 0, 0.88, 0.71, 0, 359.9) for x in (-1.22, 1.22)]
    return [(True, disc(0, 0, 0.96)), *((False, cut) for cut in seams + curved)]


def anchor() -> Silhouette:
    """A ship's anchor: ring, stock, shank and two flukes."""
    return [
        (True, disc(0, -0.72, 0.3)),
        (False, disc(0, -0.72, 0.12)),
        (True, bar(0, -0.5, 0, 0.85, 0.27)),
        (True, bar(-0.5, -0.24, 0.5, -0.24, 0.24)),
        (True, ring_part(0, 0.1, 0.9, 0.62, 12, 168)),
        (True, [(-1.0, 0.42), (-0.92, -0.08), (-0.5, 0.26)]),
        (True, [(1.0, 0.42), (0.92, -0.08), (0.5, 0.26)]),
    ]


def tree() -> Silhouette:
    """A fir of three tiers on a trunk."""
    tiers = [
        [(0.0, -1.0), (0.46, -0.32), (-0.46, -0.32)],
        [(0.0, -0.62), (0.66, 0.18), (-0.66, 0.18)],
        [(0.0, -0.2), (0.86, 0.68), (-0.86, 0.68)],
    ]
    return [*((True, tier) for tier in tiers), (True, bar(0, 0.6, 0, 1.0, 0.34))]


def mountain() -> Silhouette:
    """A high and a low peak, with the snow line cut out of the high one."""
    range_ = [(-1.0, 0.72), (-0.22, -0.78), (0.24, 0.08), (0.5, -0.3), (1.0, 0.72)]
    snow = [(-0.66, -0.06), (-0.4, -0.22), (-0.22, 0.0), (-0.02, -0.22), (0.2, -0.04)]
    lower = [(x, y + 0.17) for x, y in reversed(snow)]
    return [(True, range_), (False, snow + lower)]


def sun() -> Silhouette:
    """A disc with eight rays set apart."""
    rays: Silhouette = []
    for i in range(8):
        angle = math.radians(45 * i)
        c, s = math.cos(angle), math.sin(angle)
        foot, tip, half = 0.62, 1.04, 0.22
        rays.append((True, [(foot * c - half * s, foot * s + half * c), (tip * c, tip * s),
                            (foot * c + half * s, foot * s - half * c)]))  # fmt: skip
    return [(True, disc(0, 0, 0.5)), *rays]


def wave() -> Silhouette:
    """A breaking wave that curls to the right."""
    return [
        (True, [*arc(-0.05, 0.1, 0.95, 180, 345, 30), (0.55, 0.1), (0.4, 0.9), (-1.0, 0.9)]),
        (False, disc(0.32, 0.02, 0.58)),
        (True, [*arc(0.62, -0.12, 0.36, 180, 400, 24), (0.6, -0.1)]),
        (False, disc(0.5, 0.06, 0.22)),
        (True, [(-1.0, 0.1), (-0.42, 0.3), (0.0, 0.56), (0.5, 0.62), (1.0, 0.46), (1.0, 0.9), (-1.0, 0.9)]),
    ]


def axe() -> Silhouette:
    """An axe with one broad blade, leaning."""
    blade = [(0.0, -0.66), (0.3, -0.62), *arc(0.1, -0.36, 0.8, -52, 52, 12), (0.3, -0.1), (0.0, -0.06)]
    haft = bar(-0.14, -1.0, -0.14, 1.0, 0.28)
    poll = bar(-0.48, -0.36, 0.0, -0.36, 0.42)
    return turned([(True, blade), (True, haft), (True, poll)], 14)


def moon() -> Silhouette:
    """A crescent, open to the right."""
    return [(True, disc(-0.05, 0, 0.98)), (False, disc(0.42, 0, 0.78))]


def heart() -> Silhouette:
    """A heart."""
    points: Polygon = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 15.5))
    return [(True, points)]


DRAWN_BY: Final[dict[str, Callable[[], Silhouette]]] = {
    "star": star,
    "crown": crown,
    "bolt": bolt,
    "ball": ball,
    "anchor": anchor,
    "tree": tree,
    "mountain": mountain,
    "sun": sun,
    "wave": wave,
    "axe": axe,
    "moon": moon,
    "heart": heart,
}


@lru_cache(maxsize=512)
def charge_mask(charge: str, side_px: int) -> Image.Image:
    """The silhouette as a hard mask ("L", 0 or 255) of the given side; shared, so do not draw on it."""
    mask = Image.new("L", (side_px, side_px), 0)
    pen = ImageDraw.Draw(mask)
    for adds, polygon in DRAWN_BY[charge]():
        points = [((x + 1) * side_px / 2 - 0.5, (y + 1) * side_px / 2 - 0.5) for x, y in polygon]
        pen.polygon(points, fill=255 if adds else 0)
    return mask
