"""The colours of a picture in words, measured: "Colours: navy, white and gold."

Counts what the logo is made of: not what is transparent, not the paper around it, and not the pixels of its
edges, whose colours are mixed. Names come from CIELAB, so that "red" means red.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crest.colours import COLOUR_WORDS, COLOURS, RGB, palette, srgb_to_lab

NAMES: Final = (*COLOURS, "yellow", "maroon", "pink", "brown", "tan", "teal", "light blue", "gray", "lime")
"""Words that anybody would use, far enough apart to be told on a screen."""
_SHADES: Final = (
    ("navy", (12, 35, 64)), ("navy", (4, 18, 46)), ("blue", COLOUR_WORDS["royal blue"]),
    ("green", COLOUR_WORDS["dark green"]), ("gray", COLOUR_WORDS["dark gray"]), ("gold", (201, 165, 80)),
    ("red", COLOUR_WORDS["crimson"]), ("purple", (66, 24, 104)), ("teal", (0, 92, 100)),
    ("brown", (70, 40, 20)), ("light blue", COLOUR_WORDS["light blue"]), ("maroon", COLOUR_WORDS["burgundy"]),
    ("black", (40, 40, 42)),
)  # fmt: skip
"""Further colours that go by the same words: a club's navy may be nearer to black than to navy."""
_WORDS: Final = (*NAMES, *(name for name, _ in _SHADES))
_LAB: Final = srgb_to_lab(
    np.array([*(COLOUR_WORDS[name] for name in NAMES), *(rgb for _, rgb in _SHADES)]) / 255
)
MIN_SHARE: Final = 0.02
"""Of the logo's pixels; what is rarer is a trace of compression more often than a colour."""
MAX_NAMES: Final = 5
SIDE_PX: Final = 256
"""Larger pictures are thinned to this by leaving pixels out, so that no new colour comes in."""
BLOCK_PX: Final = 8
OPAQUE: Final = 250
CLUSTERS: Final = 10
STEP: Final = 14.0
"""Levels (Euclidean, of 255 a channel) from which two neighbours differ in colour."""
PAPER_STEP: Final = 6.0
"""CIELAB distance up to which a pixel belongs to the paper."""
MIN_PIXELS: Final = 24

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def colour_sentence(picture: Image.Image) -> str | None:
    """The colours of a logo as a caption.

    Args:
        picture: RGB or RGBA.
    Returns:
        None where nothing is to be seen.
    """
    names = measured_colours(picture)
    if not names:
        return None
    told = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{'Colours' if len(names) > 1 else 'Colour'}: {told}."


def measured_colours(picture: Image.Image) -> list[str]:
    """The words for the colours that a logo is made of, the most frequent first, at most five."""
    pixels, opaque = _thinned(picture)
    drawn = opaque & ~_paper(pixels, opaque)
    if drawn.sum() < MIN_PIXELS:
        drawn = opaque  # one colour all over: that one
    if not drawn.any():
        return []
    flat = drawn & ~_mixed(pixels)
    if flat.sum() < max(MIN_PIXELS, 0.05 * drawn.sum()):
        flat = drawn  # a photograph, or strokes as thin as their edges
    shares: dict[str, float] = {}
    for colour, share in palette(pixels[flat][None], CLUSTERS):
        name = plain_name(colour)
        shares[name] = shares.get(name, 0.0) + share
    named = sorted(shares, key=lambda name: -shares[name])
    return [name for name in named if shares[name] >= MIN_SHARE or name == named[0]][:MAX_NAMES]


def plain_name(colour: RGB) -> str:
    """The plain word for a colour, by the nearest shade in CIELAB."""
    distance = np.linalg.norm(_LAB - srgb_to_lab(np.array(colour) / 255), axis=-1)
    return _WORDS[int(distance.argmin())]


def _thinned(picture: Image.Image) -> tuple[Pixels, Mask]:
    """Pixels (H, W, 3) and where they are opaque."""
    width, height = picture.size
    every = max(1, -(-max(width, height) // SIDE_PX))
    whole = np.asarray(picture.convert("RGBA"))
    # blocks of pixels stay together, for an edge is told by the neighbours
    rows, columns = (
        np.flatnonzero(np.arange(side) % (every * BLOCK_PX) < BLOCK_PX) for side in whole.shape[:2]
    )
    kept = whole[np.ix_(rows, columns)] if every > 1 else whole
    return np.ascontiguousarray(kept[..., :3]), kept[..., 3] >= OPAQUE


def _paper(pixels: Pixels, opaque: Mask) -> Mask:
    """The opaque ground that a logo stands on: connected to the border, and of the border's one colour."""
    from scipy import ndimage

    border = np.zeros(opaque.shape, dtype=bool)
    border[0], border[-1], border[:, 0], border[:, -1] = True, True, True, True
    if not opaque[border].all():
        return np.zeros(opaque.shape, dtype=bool)
    colour = np.median(pixels[border], axis=0)
    distance = np.linalg.norm(srgb_to_lab(pixels / 255) - srgb_to_lab(colour / 255), axis=-1)
    alike = distance <= PAPER_STEP
    if alike[border].mean() < 0.8:
        return np.zeros(opaque.shape, dtype=bool)
    regions, _ = ndimage.label(alike)
    outside = np.unique(regions[border])
    found: Mask = np.isin(regions, outside[outside > 0])
    return found


def _mixed(pixels: Pixels) -> Mask:
    """Pixels of an edge: their colour lies between those of two opposite neighbours."""
    levels = np.pad(pixels.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    here = levels[1:-1, 1:-1]
    mixed = np.zeros(pixels.shape[:2], dtype=bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        before, after = (_moved(levels, sign * down, sign * right) for sign in (-1, 1))
        to_before, to_after = (np.linalg.norm(here - other, axis=-1) for other in (before, after))
        across = np.linalg.norm(before - after, axis=-1)
        apart = (to_before > STEP) & (to_after > STEP)
        mixed |= apart & (to_before + to_after <= 1.1 * across)
    return mixed


def _moved(values: NDArray[Any], down: int, right: int) -> NDArray[Any]:
    """A padded array without its frame, seen from another pixel."""
    height, width = values.shape[0] - 2, values.shape[1] - 2
    return values[1 + down : 1 + down + height, 1 + right : 1 + right + width]
