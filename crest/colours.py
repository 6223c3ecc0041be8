"""Colour words and CIELAB: what a colour is called, and which colours a picture consists of.

Numbers only: nothing here draws or opens a picture, so importing it is light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

RGB: TypeAlias = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (206, 24, 38),
    "orange": (245, 114, 16),
    "gold": (255, 204, 51),
    "green": (16, 138, 62),
    "blue": (36, 118, 228),
    "navy": (16, 38, 112),
    "purple": (128, 46, 164),
    "black": (14, 14, 16),
    "white": (255, 255, 255),
    "silver": (172, 180, 188),
}
"""The ten colours that clubs wear: one word each, far apart in CIELAB."""

FURTHER_COLOURS: Final[dict[str, RGB]] = {
    "maroon": (110, 16, 36),
    "burgundy": (128, 0, 50),
    "crimson": (180, 16, 60),
    "scarlet": (230, 40, 30),
    "pink": (246, 150, 190),
    "magenta": (212, 30, 140),
    "salmon": (248, 140, 120),
    "coral": (255, 120, 90),
    "brown": (112, 66, 30),
    "bronze": (164, 112, 52),
    "copper": (184, 108, 60),
    "tan": (208, 178, 138),
    "beige": (238, 226, 200),
    "cream": (252, 244, 214),
    "ivory": (252, 250, 234),
    "yellow": (252, 232, 20),
    "lime": (160, 220, 40),
    "olive": (112, 116, 30),
    "dark green": (8, 72, 38),
    "light green": (140, 212, 130),
    "teal": (0, 128, 128),
    "turquoise": (60, 208, 200),
    "aqua": (70, 210, 224),
    "cyan": (0, 200, 230),
    "sky blue": (120, 190, 240),
    "light blue": (144, 196, 236),
    "royal blue": (30, 72, 190),
    "dark blue": (16, 44, 120),
    "indigo": (66, 30, 130),
    "violet": (148, 84, 212),
    "lavender": (194, 170, 230),
    "gray": (128, 130, 132),
    "dark gray": (76, 78, 80),
    "light gray": (212, 214, 216),
    "charcoal": (52, 56, 60),
}
"""Common words beyond the ten, for reading captions and naming the colours of any picture."""

COLOUR_WORDS: Final[dict[str, RGB]] = {**COLOURS, **FURTHER_COLOURS}
"""Every known colour word."""

SPELLINGS: Final[dict[str, str]] = {
    "grey": "gray",
    "dark grey": "dark gray",
    "light grey": "light gray",
    "navy blue": "navy",
    "golden": "gold",
    "baby blue": "light blue",
    "athletic gold": "gold",
}
"""Other ways to write a colour, and the word kept for it."""

_D65: Final = np.array([0.95047, 1.0, 1.08883])
_RGB_TO_XYZ: Final = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WORD_PATTERN: Final = re.compile(
    r"\b(" + "|".join(sorted((*COLOUR_WORDS, *SPELLINGS), key=len, reverse=True)) + r")\b", re.IGNORECASE
)


def srgb_to_lab(rgb: ArrayLike) -> NDArray[np.float64]:
    """Convert sRGB to CIELAB under D65.

    Args:
        rgb: (..., 3), floats in [0, 1].
    Returns:
        lab (..., 3): L in [0, 100], a and b about [-110, 110].
    """
    values = np.asarray(rgb, dtype=np.float64)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _D65
    bent = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = bent[..., 0], bent[..., 1], bent[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest_name(rgb: ArrayLike, names: Iterable[str] = tuple(COLOUR_WORDS)) -> str:
    """The colour word whose colour is nearest in CIELAB.

    Args:
        rgb: (3,), integers in 0..255.
        names: the words to choose from.
    """
    candidates = list(names)
    table = srgb_to_lab(np.array([COLOUR_WORDS[name] for name in candidates]) / 255)
    distance = np.linalg.norm(table - srgb_to_lab(np.asarray(rgb, dtype=np.float64) / 255), axis=-1)
    return candidates[int(distance.argmin())]


def palette(image: ArrayLike, k: int) -> list[tuple[RGB, float]]:
    """The colours a picture consists of, most frequent first.

    Colours are counted in cells of 32 levels a channel; a few rounds of k-means in CIELAB, started from the
    fullest cells that lie apart, merge the cells. Deterministic.

    Args:
        image: (H, W, 3), integers in 0..255.
        k: how many colours at most.
    Returns:
        Pairs of a colour and its share of the pixels; the shares sum to 1.
    """
    pixels = np.asarray(image, dtype=np.int64).reshape(-1, 3)
    cells, inverse = np.unique((pixels >> 5) @ np.array([64, 8, 1]), return_inverse=True)
    counts = np.bincount(inverse, minlength=len(cells)).astype(np.float64)
    sums = np.stack([np.bincount(inverse, weights=pixels[:, c], minlength=len(cells)) for c in range(3)], 1)
    means = sums / counts[:, None]
    lab = srgb_to_lab(means / 255)

    chosen = [int(counts.argmax())]
    while len(chosen) < min(k, len(cells)):
        gap = np.linalg.norm(lab[:, None] - lab[chosen][None], axis=-1).min(axis=1)
        chosen.append(int((counts * gap**2).argmax()))
    centres = lab[chosen]
    member = np.zeros(len(cells), dtype=np.int64)
    for _ in range(8):
        member = np.linalg.norm(lab[:, None] - centres[None], axis=-1).argmin(axis=1)
        for i in range(len(centres)):
            mine = member == i
            if mine.any():
                centres[i] = (lab[mine] * counts[mine, None]).sum(0) / counts[mine].sum()

    found: list[tuple[RGB, float]] = []
    for i in range(len(centres)):
        mine = member == i
        if mine.any():
            total = counts[mine].sum()
            red, green, blue = (int(v) for v in np.rint(sums[mine].sum(0) / total))
            found.append(((red, green, blue), float(total / counts.sum())))
    return sorted(found, key=lambda entry: -entry[1])


def colour_words(text: str) -> list[str]:
    """The colour words of a text in order of appearance, in one spelling, the longest match first."""
    found = (match.group(1).lower() for match in _WORD_PATTERN.finditer(text))
    return [SPELLINGS.get(word, word) for word in found]
