"""How alike two pictures look: a 64-bit hash and a small colour picture, both of the trimmed logo.

The hash alone would call a red shield and a blue one the same; the colours alone cannot be searched.
Refuses to decide anything: thresholds belong to screen.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from crest.images import flatten

THUMB_PX = 16
_HASH_PX = 32
_BLOCK = 512
_FAINT = 8
_CLEAR = 40
"""Levels that a pixel of the logo differs from its ground; the noise of a JPEG stays below."""
_ASPECT_SLACK = 0.1
"""Aspects this much apart, as a difference of logarithms, belong to different logos."""


BLANK: Final = 1
INVISIBLE: Final = 2
LOOK_DTYPE: Final = np.dtype(
    [
        ("pixels", "<u8"),
        ("bits", "<u8"),
        ("mirrored", "<u8"),
        ("aspect", "<f4"),
        ("flags", "u1"),
        ("thumb", "u1", (THUMB_PX, THUMB_PX, 3)),
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
    """(16, 16, 3) levels: the trimmed logo, stretched to a square so that a thin wordmark fills it too"""
    is_blank: bool
    """one colour only, on white"""
    is_invisible: bool
    """blank on white although its alpha has a shape: a white logo on nothing"""


def look_at(picture: Image.Image) -> Look:
    """Composite on white, trim the border, and measure."""
    flat = flatten(picture)
    box = _ink(flat)
    has_shape = picture.mode == "RGBA" and _has_shape(picture)
    small = flat.resize((_HASH_PX, _HASH_PX), Image.Resampling.BOX, box=box)
    width, height = (box[2] - box[0], box[3] - box[1]) if box else flat.size
    return Look(
        pixels=sha256(repr(flat.size).encode() + flat.tobytes()).hexdigest()[:32],
        bits=perceptual_hash(small),
        mirrored_bits=perceptual_hash(ImageOps.mirror(small)),
        aspect=width / height,
        thumb=small.reduce(_HASH_PX // THUMB_PX).tobytes(),
        is_blank=box is None,
        is_invisible=box is None and has_shape,
    )


def _ink(flat: Image.Image) -> tuple[int, int, int, int] | None:
    """The box of all that differs from the colour of the corner; None when nothing does."""
    ground = Image.new("RGB", flat.size, flat.getpixel((0, 0)))
    difference = ImageChops.difference(flat, ground)
    return _box(difference, _CLEAR) or _box(difference, _FAINT)


def _box(difference: Image.Image, above: int) -> tuple[int, int, int, int] | None:
    return difference.point([255 * (level > above) for level in range(256)] * 3).getbbox()


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
        row["thumb"] = np.frombuffer(look.thumb, dtype=np.uint8).reshape(THUMB_PX, THUMB_PX, 3)
    return rows


def look_to_json(look: Look) -> dict[str, object]:
    """The look as the journal keeps it."""
    bits = {"bits": f"{look.bits:016x}", "mirrored_bits": f"{look.mirrored_bits:016x}"}
    return {**asdict(look), **bits, "thumb": look.thumb.hex()}


def look_from_json(value: Mapping[str, Any]) -> Look:
    """The look that `look_to_json` wrote."""
    bits = {name: int(value[name], 16) for name in ("bits", "mirrored_bits")}
    return Look(**{**value, **bits, "thumb": bytes.fromhex(value["thumb"])})


def thumbs_of(looks: Sequence[Look]) -> NDArray[np.uint8]:
    """All colour pictures, (N, 16, 16, 3)."""
    levels = np.frombuffer(b"".join(look.thumb for look in looks), dtype=np.uint8)
    return levels.reshape(len(looks), THUMB_PX, THUMB_PX, 3)


def close_pairs(looks: list[Look], bits: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each picture the later ones of its aspect whose hash differs in at most so many bits."""
    hashes = np.array([look.bits for look in looks], dtype=np.uint64)
    aspects = np.log([look.aspect for look in looks])
    for start in range(0, len(hashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = np.bitwise_count(hashes[block, None] ^ hashes[None, start:]) <= bits
        near &= np.abs(aspects[block, None] - aspects[None, start:]) <= _ASPECT_SLACK
        for row in range(len(near)):
            later = np.flatnonzero(near[row, row + 1 :]) + row + 1
            if later.size:
                yield start + row, later + start


def colour_distances(thumb: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How far a picture's colours are from those of others: root mean square, in levels of 255.

    Args:
        thumb: (16, 16, 3).
        others: (N, 16, 16, 3).
    Returns:
        distances (N,).
    """
    difference = (others.astype(np.float64) - thumb).reshape(len(others), -1)
    distances: NDArray[np.float64] = np.sqrt((difference**2).mean(axis=1))
    return distances
