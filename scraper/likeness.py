"""How alike two pictures look: a 64-bit hash and a small picture, both of the trimmed logo on white.

The hash finds likely pairs among many, the small picture tells whether they are the same logo. Refuses to
decide anything: distances are twins.py's, thresholds screen.py's.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from crest.images import flatten

THUMB_PX: Final = 64
"""Side of the thumb of a logo that is about as wide as high."""
THUMB_BYTES: Final = THUMB_PX**2 * 3 // 2
"""One grey level a cell and two colour levels for each four cells."""
_MOST_FOLDS: Final = 2
_HASH_PX: Final = 32
_CANVAS: Final = 2
"""Pixels a cell along each side, while ground is told from logo."""
_FAINT: Final = 16
"""Levels that a pixel differs from its ground; less is noise."""
_GROUND: Final = 24
"""Levels within which a pixel counts as ground, and a ground as grey."""
_CLEAR: Final = 40
_NOISE: Final = 0.16
"""Share of the greatest difference that a JPEG's noise beside an edge stays below."""
_JPEG_PX: Final = 10
"""Pixels over which that noise reaches, most of a block of halved colours."""
_NEAR_EDGE: Final = 0.06
"""Share of the logo's longer side within which an edge is looked for."""

GREY: Final = (0.25, 0.35, 0.4, 0.0)
"""Shares of red, green and blue in a thumb's greys: by luminance, gold on white would hardly show."""

BLANK: Final = 1
INVISIBLE: Final = 2
LOOK_DTYPE: Final = np.dtype(
    [
        ("pixels", "<u8"),
        ("bits", "<u8"),
        ("mirrored", "<u8"),
        ("aspect", "<f4"),
        ("flags", "u1"),
        ("thumb", "u1", (THUMB_BYTES,)),
    ]
)
"""A look as one row of fixed size; `flags` is a sum of `BLANK` and `INVISIBLE`."""


@dataclass(frozen=True)
class Look:
    """What screening needs to know of a picture."""

    pixels: str
    """hash of the picture on white, whatever file it came in"""
    bits: int
    """perceptual hash"""
    mirrored_bits: int
    """perceptual hash of the picture seen in a mirror"""
    aspect: float
    """width over height of the trimmed logo"""
    thumb: bytes
    """`THUMB_BYTES` levels of the trimmed logo: greys (rows, columns) of `grid_of(aspect)`, then red minus
    green and blue minus green, halved and about 128, each (rows / 2, columns / 2)"""
    is_blank: bool
    """one colour only, on white"""
    is_invisible: bool
    """blank on white although its alpha has a shape: a white logo on nothing"""


def look_at(picture: Image.Image) -> Look:
    """Composite on white, trim the border, and measure."""
    flat = flatten(picture)
    box = _ink(flat)
    has_shape = picture.mode == "RGBA" and _has_shape(picture)
    left, top, right, bottom = box or (0.0, 0.0, *flat.size)
    aspect = (right - left) / (bottom - top)
    rows, columns = grid_of(aspect)
    canvas = flat.resize(
        (columns * _CANVAS, rows * _CANVAS), Image.Resampling.HAMMING, box=(left, top, right, bottom)
    )
    canvas = _on_white(canvas, flat.getpixel((0, 0)))
    small = canvas.resize((_HASH_PX, _HASH_PX), Image.Resampling.BOX)
    return Look(
        pixels=sha256(repr(flat.size).encode() + flat.tobytes()).hexdigest()[:32],
        bits=perceptual_hash(small),
        mirrored_bits=perceptual_hash(ImageOps.mirror(small)),
        aspect=aspect,
        thumb=_thumb(canvas.reduce(_CANVAS)),
        is_blank=box is None,
        is_invisible=box is None and has_shape,
    )


def folds_of(aspect: float) -> int:
    """How often a thumb is folded: each time twice as wide and half as high (below 0: the other way)."""
    return max(-_MOST_FOLDS, min(_MOST_FOLDS, round(math.log2(aspect) / 2)))


def grid_of(aspect: float) -> tuple[int, int]:
    """Rows and columns of the thumb: a wide wordmark has as many cells as a crest, but side by side."""
    folds = folds_of(aspect)
    return round(THUMB_PX * 2.0**-folds), round(THUMB_PX * 2.0**folds)


def _thumb(small: Image.Image) -> bytes:
    levels = np.asarray(small, dtype=np.int16)
    grey = np.asarray(small.convert("L", GREY))
    rows, columns = grey.shape
    colours = (levels[..., ::2] - levels[..., 1:2]).reshape(rows // 2, 2, columns // 2, 2, 2)
    halved = np.rint(colours.mean(axis=(1, 3)) / 2 + 127.5).astype(np.uint8)
    return bytes(grey.tobytes() + halved.transpose(2, 0, 1).tobytes())


def _ink(flat: Image.Image) -> tuple[float, float, float, float] | None:
    """The box of all that differs from the colour of the corner, to parts of a pixel; None when nothing does.

    A JPEG's noise around an edge would move a box that begins at the first pixel that differs: the edge is
    where the difference has risen to half of what it reaches near by.
    """
    difference = _difference(flat, flat.getpixel((0, 0)))
    across, down = difference.max(axis=0), difference.max(axis=1)
    faint = max(float(_FAINT), _NOISE * float(across.max()))
    ends = [np.flatnonzero(profile > faint) for profile in (across, down)]
    if not all(len(found) for found in ends):
        return None
    side_px = max(int(found[-1] - found[0]) + 1 for found in ends)
    reach = max(2, round(_NEAR_EDGE * side_px), min(_JPEG_PX, side_px // 8))
    left, right = _edge(across, reach, faint), flat.width - _edge(across[::-1], reach, faint)
    top, bottom = _edge(down, reach, faint), flat.height - _edge(down[::-1], reach, faint)
    if right - left < 1 or bottom - top < 1:
        return float(ends[0][0]), float(ends[1][0]), float(ends[0][-1] + 1), float(ends[1][-1] + 1)
    return left, top, right, bottom


def _difference(picture: Image.Image, colour: Any) -> NDArray[np.uint8]:
    """How far each pixel is from a colour, in the channel that is furthest, (H, W)."""
    red, green, blue = ImageChops.difference(picture, Image.new("RGB", picture.size, colour)).split()
    return np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))


def _edge(profile: NDArray[np.uint8], reach: int, faint: float) -> float:
    """Where a profile of differences first rises to half of the most that it reaches within `reach`."""
    levels = profile.tobytes()  # the edge is near: a few steps in Python cost less than arrays
    for at in range(int(np.argmax(profile > faint)), len(levels)):
        inside, most = levels[at], max(levels[at : at + reach])
        if inside >= most / 2 and inside > faint:
            break
    before = levels[at - 1] if at else inside
    return float(at) if before >= inside else at + 0.5 - min(1.0, (inside - most / 2) / (inside - before))


def _on_white(canvas: Image.Image, corner: Any) -> Image.Image:
    """The canvas with a grey ground made white, as far as it reaches in from the border.

    So the same logo on light grey and on white looks the same. A coloured ground belongs to the logo, and so
    does a grey one that the rest would not be seen without.
    """
    if max(corner) - min(corner) > _GROUND:
        return canvas
    from scipy import ndimage

    label, count = ndimage.label(_difference(canvas, corner) <= _GROUND)
    is_outer = np.zeros(count + 1, dtype=bool)
    for border in (label[0], label[-1], label[:, 0], label[:, -1]):
        is_outer[border] = True
    is_outer[0] = False  # what is no ground
    levels = np.array(canvas)
    levels[is_outer[label]] = 255
    return Image.fromarray(levels) if int(levels.min()) < 255 - _CLEAR else canvas


def _has_shape(picture: Image.Image) -> bool:
    alpha = np.asarray(picture.getchannel("A"))
    return int(alpha.max()) - int(alpha.min()) > _FAINT


def perceptual_hash(small: Image.Image) -> int:
    """Which of the 64 lowest cosine frequencies of a 32 px picture's greys are clearly positive.

    The usual threshold, the median, is noise for flat symmetric art, whose odd frequencies are all about
    zero; a tenth of the root mean square is not.
    """
    waves = _waves()
    frequencies = (waves @ np.asarray(small.convert("L"), dtype=np.float64) @ waves.T).ravel()
    frequencies[0] = 0.0  # brightness is no shape
    clear = 0.1 * float(np.sqrt(np.mean(frequencies**2)))
    return int.from_bytes(np.packbits(frequencies > clear).tobytes(), "big")


@cache
def _waves() -> NDArray[np.float64]:
    """The 8 lowest vectors of the cosine transform (DCT-II) of 32 samples."""
    samples = np.arange(_HASH_PX) + 0.5
    return np.cos(np.pi / _HASH_PX * np.arange(8)[:, None] * samples[None, :])


def pack_looks(looks: Sequence[Look]) -> NDArray[np.void]:
    """Looks as rows of `LOOK_DTYPE`, for screening without objects and for files.

    Returns:
        looks (N,), structured.
    """
    rows = np.zeros(len(looks), dtype=LOOK_DTYPE)
    for row, look in zip(rows, looks, strict=True):
        row["pixels"] = int(look.pixels[:16], 16)
        row["bits"], row["mirrored"] = look.bits, look.mirrored_bits
        row["aspect"] = look.aspect
        row["flags"] = BLANK * look.is_blank + INVISIBLE * look.is_invisible
        row["thumb"] = np.frombuffer(look.thumb, dtype=np.uint8)
    return rows


def look_to_json(look: Look) -> dict[str, object]:
    """The look as the journal keeps it."""
    bits = {"bits": f"{look.bits:016x}", "mirrored_bits": f"{look.mirrored_bits:016x}"}
    thumb = base64.b85encode(zlib.compress(look.thumb)).decode()
    return {**asdict(look), **bits, "thumb": thumb}


def look_from_json(value: Mapping[str, Any]) -> Look:
    """The look that `look_to_json` wrote."""
    bits = {name: int(value[name], 16) for name in ("bits", "mirrored_bits")}
    return Look(**{**value, **bits, "thumb": zlib.decompress(base64.b85decode(value["thumb"]))})
