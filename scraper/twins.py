"""Find the pairs of pictures that look alike among very many, without comparing all with all.

A picture's place is 16 of its thumb's cosine frequencies: an orthonormal projection, which never lengthens a
distance, so that a tree over the places misses no pair within the limit. Refuses to decide what a pair means:
that belongs to screen.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scraper.likeness import THUMB_PX

CROWD: Final = 64
"""Pictures with more neighbours than this (one placeholder in a thousand renditions) are compared with the
nearest of them, in places."""
_ASPECT_SLACK: Final = 0.1
"""Aspects this much apart, as a difference of logarithms, belong to different logos."""
_CHUNK: Final = 4096
_ROUNDING: Final = 1.0
Thumbs = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""indexes (n,) -> thumbs (n, 16, 16, 3)"""


@dataclass(frozen=True)
class Pairs:
    """Pictures that look alike, each pair once."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    """the later of the two"""
    levels: NDArray[np.float32]
    """how far their colours are apart: root mean square, in levels of 255"""
    is_mirrored: NDArray[np.bool_]
    """they are alike when one of them is seen in a mirror"""
    is_crowded: bool
    """some picture had more than `CROWD` neighbours, so that pairs may be missing"""


@dataclass(frozen=True)
class Looks:
    """What a search needs of each picture, as columns (N,)."""

    bits: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]
    aspect: NDArray[np.float32]
    thumbs: Thumbs


def find_pairs(looks: Looks, within_levels: float, within_bits: int) -> Pairs:
    """Every pair of like aspect whose colours and whose hashes are near, straight or in a mirror.

    Args:
        looks: in an order that does not depend on how the pictures came, for crowds.
        within_levels: limit of the distance between thumbs.
        within_bits: limit of the distance between hashes, of 64.
    """
    from scipy.spatial import cKDTree

    count = len(looks.bits)
    places = _places(looks)
    aspects = np.log(looks.aspect)
    tree = cKDTree(places)
    radius = within_levels * np.sqrt(3.0 * THUMB_PX**2) + _ROUNDING
    found: list[tuple[NDArray[np.int64], NDArray[np.float32], bool]] = []
    is_crowded = False
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        for is_mirrored in (False, True):
            asked = places[rows] * _mirror_signs() if is_mirrored else places[rows]
            _, near = tree.query(asked, k=min(CROWD + 1, count), distance_upper_bound=radius)
            near = near.reshape(len(rows), -1)
            is_crowded |= bool((near[:, CROWD:] < count).any())
            row, column = np.nonzero((near < count) & (near != rows[:, None]))
            one, other = rows[row], near[row, column]
            hashes = looks.mirrored if is_mirrored else looks.bits
            alike = np.bitwise_count(hashes[one] ^ looks.bits[other]) <= within_bits
            alike &= np.abs(aspects[one] - aspects[other]) <= _ASPECT_SLACK
            pairs = np.stack([np.minimum(one, other), np.maximum(one, other)])[:, alike]
            pairs = np.unique(pairs, axis=1)
            levels = _levels(looks.thumbs, pairs, is_mirrored)
            found.append((pairs[:, levels <= within_levels], levels[levels <= within_levels], is_mirrored))
    return _once_each(found, is_crowded)


def _once_each(found: list[tuple[NDArray[np.int64], NDArray[np.float32], bool]], is_crowded: bool) -> Pairs:
    """Each pair was met from both of its ends, and a symmetric one in the mirror too: the nearest stays."""
    pairs = np.concatenate([pairs for pairs, _, _ in found], axis=1)
    levels = np.concatenate([levels for _, levels, _ in found])
    mirrored = np.concatenate([np.full(len(levels), is_mirrored) for _, levels, is_mirrored in found])
    order = np.lexsort((mirrored, levels, pairs[1], pairs[0]))
    pairs, levels, mirrored = pairs[:, order], levels[order], mirrored[order]
    first = np.ones(len(levels), dtype=bool)
    first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return Pairs(pairs[0, first], pairs[1, first], levels[first], mirrored[first], is_crowded)


def _levels(thumbs: Thumbs, pairs: NDArray[np.int64], is_mirrored: bool) -> NDArray[np.float32]:
    levels = np.empty(pairs.shape[1], dtype=np.float32)
    for start in range(0, pairs.shape[1], _CHUNK):
        some = pairs[:, start : start + _CHUNK]
        one, other = thumbs(some[0]), thumbs(some[1])
        difference = (one[:, :, ::-1] if is_mirrored else one).astype(np.float32) - other
        levels[start : start + _CHUNK] = np.sqrt((difference.reshape(len(one), -1) ** 2).mean(axis=1))
    return levels


def _places(looks: Looks) -> NDArray[np.float32]:
    """The place of each picture, (N, 16)."""
    basis, count = _basis(), len(looks.bits)
    places = np.empty((count, basis.shape[0]), dtype=np.float32)
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        places[rows] = looks.thumbs(rows).reshape(len(rows), -1).astype(np.float32) @ basis.T
    return places


_GREY: Final = (0, 1, 2, 3)
_COLOUR: Final = (0, 1)


def _frequencies() -> list[tuple[int, int, int]]:
    """(across, down, colour axis): ten of the greys, three of each of the two colour axes."""
    axes = ((0, _GREY), (1, _COLOUR), (2, _COLOUR))
    return [
        (total - down, down, axis) for axis, totals in axes for total in totals for down in range(total + 1)
    ]


@cache
def _basis() -> NDArray[np.float32]:
    """Orthonormal rows (16, 768): cosine waves over the thumb, along grey, red-blue and green-purple."""
    samples = np.arange(THUMB_PX) + 0.5
    waves = np.cos(np.pi / THUMB_PX * np.arange(max(_GREY) + 1)[:, None] * samples)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    colours = np.array([(1, 1, 1), (1, 0, -1), (1, -2, 1)]) / np.sqrt([[3], [2], [6]])
    rows = [
        np.einsum("h,w,c->hwc", waves[v], waves[u], colours[axis]).ravel() for u, v, axis in _frequencies()
    ]
    return np.array(rows, dtype=np.float32)


@cache
def _mirror_signs() -> NDArray[np.float32]:
    """What a mirror does to a place: waves that are odd across change their sign."""
    return np.array([(-1) ** across for across, _, _ in _frequencies()], dtype=np.float32)
