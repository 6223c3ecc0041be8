"""Flatness: is it drawn in flat areas, as a logo is? Described beside the real pictures, never called better.

A blank page is the flattest picture of all, so a difference here is no merit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.evidence import Evidence, Floats, Gallery
from eval.metrics import Better, Outcome

SAME = 8
"""levels of 255 within which two neighbouring pixels count as the same colour"""


def flat_share(pixels: NDArray[np.uint8]) -> Floats:
    """Share of pixels that equal their right and their lower neighbour.

    Args:
        pixels: (N, 3, H, W).
    Returns:
        (N,), 1 for one flat colour.
    """
    values = np.asarray(pixels, dtype=np.int16)
    right = np.abs(values[:, :, :-1, 1:] - values[:, :, :-1, :-1]).max(axis=1)
    lower = np.abs(values[:, :, 1:, :-1] - values[:, :, :-1, :-1]).max(axis=1)
    return np.asarray(np.mean(np.maximum(right, lower) <= SAME, axis=(1, 2)), dtype=np.float64)


def colours_for(pixels: NDArray[np.uint8], share: float = 0.95) -> Floats:
    """How many colours (cells of 32 levels a channel) hold this share of each picture's pixels: (N,)."""
    counts = []
    for picture in pixels:
        cells = (np.asarray(picture, dtype=np.int64) >> 5).reshape(3, -1)
        sizes = np.sort(np.bincount(cells[0] * 64 + cells[1] * 8 + cells[2]))[::-1]
        counts.append(int(np.searchsorted(np.cumsum(sizes), share * sizes.sum() - 1e-9)) + 1)
    return np.array(counts, dtype=np.float64)


def flat_border(pixels: NDArray[np.uint8]) -> Floats:
    """Share of border pixels that have the border's median colour: (N,)."""
    shares = []
    for picture in pixels:
        values = np.asarray(picture, dtype=np.int16)
        edge = np.concatenate([values[:, 0], values[:, -1], values[:, 1:-1, 0], values[:, 1:-1, -1]], axis=1)
        middle = np.median(edge, axis=1, keepdims=True)
        shares.append(float(np.mean(np.abs(edge - middle).max(axis=0) <= 2 * SAME)))
    return np.array(shares)


class Flatness:
    """Share of pixels that lie in flat areas."""

    name = "flatness"
    title = "Flat areas"
    better: Better = "neither"
    is_share = True

    def unfit(self, evidence: Evidence) -> str | None:
        """Never: the drawings are enough."""
        return None

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a prompt, in [0, 1]."""
        galleries: dict[str, Gallery] = dict(evidence.systems)
        if evidence.real is not None:
            galleries["real"] = evidence.real
        figures = {}
        for name, gallery in galleries.items():
            figures[f"{name}.colours_95"] = float(colours_for(gallery.pixels).mean())
            figures[f"{name}.flat_border"] = float(flat_border(gallery.pixels).mean())
        if evidence.real is not None:
            figures["real.share"] = float(flat_share(evidence.real.pixels).mean())
        many = ", ".join(f"{name} {figures[f'{name}.colours_95']:.1f}" for name in galleries)
        note = f"colours that hold 95 % of the pixels: {many}"
        if evidence.real is not None:
            note = f"real pictures have {figures['real.share']:.3g}; " + note
        return Outcome(
            scores={name: evidence.per_prompt(flat_share(g.pixels)) for name, g in evidence.systems.items()},
            figures=figures,
            note=note,
        )
