"""How alike two pictures look: a 64-bit perceptual hash and a small colour picture, both of the trimmed logo.

The hash alone would call a red shield and a blue one the same; the colours alone cannot be searched. Refuses to
decide anything: thresholds belong to screen.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crest.images import flatten, pad_square

THUMB_PX = 16
_HASH_PX = 32
_BLOCK = 512


@dataclass(frozen=True)
class Look:
    """What screening needs to know of a picture."""

    pixels: str
    """hash of the picture on white, whatever file it came in"""
    bits: int
    """perceptual hash"""
    thumb: NDArray[np.uint8]
    """(16, 16, 3): the trimmed logo"""
    is_blank: bool
    """one colour only, on white"""
    is_invisible: bool
    """blank on white although its alpha has a shape: a white logo on nothing"""


def look_at(picture: Image.Image) -> Look:
    """Composite on white, trim the border, and measure."""
    flat = flatten(picture)
    pixels = np.asarray(flat)
    ground = tuple(int(value) for value in pixels[0, 0])
    inked = (np.abs(pixels.astype(np.int16) - pixels[0, 0].astype(np.int16)) > 8).any(axis=-1)
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    is_blank = rows.size == 0
    if not is_blank:
        flat = flat.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    square = pad_square(flat, (ground[0], ground[1], ground[2]))
    has_shape = picture.mode == "RGBA" and np.ptp(np.asarray(picture.getchannel("A"))) > 8
    return Look(
        pixels=sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32],
        bits=perceptual_hash(square),
        thumb=np.asarray(square.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)),
        is_blank=bool(is_blank),
        is_invisible=bool(is_blank and has_shape),
    )


def perceptual_hash(square: Image.Image) -> int:
    """Which of the 64 lowest cosine frequencies of the grey picture are clearly positive.

    The usual threshold, the median, is noise for flat symmetric art, whose odd frequencies are all about zero; a
    tenth of the root mean square is not.
    """
    grey = square.convert("L").resize((_HASH_PX, _HASH_PX), Image.Resampling.BOX)
    waves = _waves()
    frequencies = (waves @ np.asarray(grey, dtype=np.float64) @ waves.T).ravel()
    frequencies[0] = 0.0  # brightness is no shape
    clear = 0.1 * float(np.sqrt(np.mean(frequencies**2)))
    return int.from_bytes(np.packbits(frequencies > clear).tobytes(), "big")


@cache
def _waves() -> NDArray[np.float64]:
    """The 8 lowest vectors of the cosine transform (DCT-II) of 32 samples."""
    samples = np.arange(_HASH_PX) + 0.5
    return np.cos(np.pi / _HASH_PX * np.arange(8)[:, None] * samples[None, :])


def close_pairs(looks: list[Look], bits: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each picture the later ones whose hash differs in at most so many bits."""
    hashes = np.array([look.bits for look in looks], dtype=np.uint64)
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None] ^ hashes[None, start:]
        near = np.bitwise_count(block) <= bits
        for row in range(len(near)):
            later = np.flatnonzero(near[row, row + 1 :]) + row + 1
            if later.size:
                yield start + row, later + start


def colour_distances(
    looks: list[Look], one: int, others: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Largest and mean difference, in levels of 255, between a picture's colours and those of others."""
    difference = np.stack([looks[int(other)].thumb for other in others]).astype(np.int16) - looks[one].thumb
    flat = np.abs(difference).reshape(len(others), -1)
    return flat.max(axis=1), flat.mean(axis=1)
