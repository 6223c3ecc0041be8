"""What is cut from convex polygons: a smaller one inside, and the part on one side of a line."""

from __future__ import annotations

import math

from demo.charges import Polygon


def inset(polygon: Polygon, distance: float) -> Polygon:
    """Move every edge of a convex polygon (clockwise on screen) inwards."""
    moved: Polygon = []
    count = len(polygon)
    for i, (x, y) in enumerate(polygon):
        (px, py), (qx, qy) = polygon[i - 1], polygon[(i + 1) % count]
        before, after = math.hypot(x - px, y - py), math.hypot(qx - x, qy - y)
        ax, ay = -(y - py) / before, (x - px) / before
        bx, by = -(qy - y) / after, (qx - x) / after
        mitre = distance / (1 + ax * bx + ay * by)
        moved.append((x + (ax + bx) * mitre, y + (ay + by) * mitre))
    return moved


def clip(polygon: Polygon, nx: float, ny: float, limit: float) -> Polygon:
    """The part of a convex polygon where nx * x + ny * y <= limit."""
    kept: Polygon = []
    for i, (x, y) in enumerate(polygon):
        px, py = polygon[i - 1]
        here, before = nx * x + ny * y - limit, nx * px + ny * py - limit
        if (here <= 0) != (before <= 0):
            share = before / (before - here)
            kept.append((px + (x - px) * share, py + (y - py) * share))
        if here <= 0:
            kept.append((x, y))
    return kept
