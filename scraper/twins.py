"""Which of very many pictures show the same logo: likely pairs by a tree, then each pair compared.

Two renditions of one logo differ by a shift, a stretch, a blur and a little colour; two crests with another
charge or lettering differ in structure somewhere. So a pair is aligned first, and then judged by the window
where it agrees least. Refuses to decide what a pair means: that belongs to screen.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scraper.config import ScreenConfig
from scraper.likeness import GREY, folds_of, grid_of

CROWD: Final = 32
"""Pictures with more neighbours than this (one placeholder in a thousand renditions) are compared with the
nearest of them, in places."""
_ASPECT_SLACK: Final = 0.1
"""Aspects this much apart, as a difference of logarithms, belong to different logos."""
_CHUNK: Final = 1024
_AXES: Final = 10
"""Of a picture's 16 waves, those that the tree sorts by: the ones that differ most among the pictures."""
_LEAF: Final = 32
_PAIRS_AT_ONCE: Final = 128
_ROUNDS: Final = 3
_FURTHEST: Final = 0.15
"""How far an alignment may shift or stretch, as a share of the logo's half side."""
_STILL: Final = 25.0
"""Squared levels of noise a cell that keep an alignment without structure where it is."""
_WINDOW: Final = 8
"""Cells along each side of a window: an eighth of a crest for its greys, a quarter for its colours."""
_FAINT: Final = 20.0
"""Levels of contrast below which a window has no structure to compare."""
_COLOUR_SCALES: Final = ((8, 70.0), (4, 150.0))
"""Cells along each side of a window of the colours, and the levels between the mean colours of two of them
that count as much as having no structure in common."""
Floats = NDArray[np.float32]
Thumbs = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""indexes (n,) -> thumbs (n, THUMB_BYTES)"""


@dataclass(frozen=True)
class Looks:
    """What a search needs of each picture, as columns (N,)."""

    bits: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]
    aspect: NDArray[np.float32]
    thumbs: Thumbs

    def some(self, indexes: NDArray[np.int64]) -> Looks:
        """The same of some of the pictures."""
        return Looks(
            self.bits[indexes],
            self.mirrored[indexes],
            self.aspect[indexes],
            lambda rows: self.thumbs(indexes[rows]),
        )


@dataclass(frozen=True)
class Pairs:
    """Pictures that look alike, each pair once, in rising order of `one`, then `other`."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    """the later of the two"""
    difference: Floats
    """what the worst window does not have in common: 0 nothing, 1 all of it"""
    is_mirrored: NDArray[np.bool_]
    """they are alike when one of them is seen in a mirror"""
    crowded: NDArray[np.int64]
    """pictures that had more than `CROWD` neighbours, so that some of their pairs may be missing"""


def find_pairs(
    looks: Looks,
    settings: ScreenConfig,
    places: Floats | None = None,
    asked: NDArray[np.int64] | None = None,
) -> Pairs:
    """Every pair whose difference is within `related_difference`, among those that are near at first sight.

    Near are pictures of like aspect whose greys and colours in 16 cosine waves are within `near_levels` and
    whose hashes are within `near_bits`. The waves are an orthonormal projection of the thumb, so that the
    tree over them misses no pair.

    Args:
        looks: in an order that does not depend on how the pictures came, for crowds.
        settings: the thresholds.
        places: what `places_of` gave for these looks, where it is known already.
        asked: pictures whose neighbours are looked for; None: all.
    """
    found: list[tuple[NDArray[np.int64], Floats, bool]] = []
    crowded: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    places = places_of(looks) if places is None else places
    folds = _folds(looks.aspect)
    is_asked = np.ones(len(folds), dtype=bool)
    if asked is not None:
        is_asked[:] = False
        is_asked[asked] = True
    for fold in np.unique(folds[is_asked]):
        members = np.flatnonzero(folds == fold)
        near: dict[bool, list[NDArray[np.int64]]] = {False: [], True: []}
        rows = np.flatnonzero(is_asked[members])
        for some, is_mirrored, in_crowd in _near(looks.some(members), places[members], rows, settings):
            near[is_mirrored].append(some)
            crowded.append(members[in_crowd])
        for is_mirrored, parts in near.items():
            # each pair was met from both of its ends
            pairs = members[np.unique(np.concatenate(parts, axis=1), axis=1)]
            difference = _differences(looks, pairs, is_mirrored, settings.duplicate_difference)
            close = difference <= settings.related_difference
            found.append((pairs[:, close], difference[close], is_mirrored))
    return _once_each(found, np.unique(np.concatenate(crowded)))


def _folds(aspects: NDArray[np.float32]) -> NDArray[np.int8]:
    different, which = np.unique(aspects, return_inverse=True)
    return np.array([folds_of(float(aspect)) for aspect in different], dtype=np.int8)[which]


def _near(
    looks: Looks, places: Floats, rows: NDArray[np.int64], settings: ScreenConfig
) -> Iterator[tuple[NDArray[np.int64], bool, NDArray[np.int64]]]:
    """(pairs (2, M), is_mirrored, rows in a crowd) that are near at first sight, chunk by chunk."""
    from scipy.spatial import cKDTree

    count = len(looks.bits)
    aspects = np.log(looks.aspect)
    # a tree over few axes is faster, and a distance along some of them is never longer than along all
    widest = np.argsort(-places.std(axis=0), kind="stable")[:_AXES]
    # neighbours in space made neighbours in memory: ten times as fast among 300,000
    order = cKDTree(places[:, widest], leafsize=_LEAF, balanced_tree=False).indices
    tree = cKDTree(places[order][:, widest], leafsize=_LEAF, balanced_tree=False)
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    rows = rows[np.argsort(rank[rows])]
    order = np.append(order, count)  # what the tree gives where there is no further neighbour
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        for is_mirrored in (False, True):
            asked = places[some] * _mirror_signs() if is_mirrored else places[some]
            _, near = tree.query(
                asked[:, widest], k=min(CROWD + 1, count), distance_upper_bound=settings.near_levels + 1e-3
            )
            near = order[near.reshape(len(some), -1)]
            row, column = np.nonzero((near < count) & (near != some[:, None]))
            one, other = some[row], near[row, column]
            close = np.linalg.norm(asked[row] - places[other], axis=1) <= settings.near_levels
            one, other = one[close], other[close]
            hashes = looks.mirrored if is_mirrored else looks.bits
            alike = np.bitwise_count(hashes[one] ^ looks.bits[other]) <= settings.near_bits
            alike &= np.abs(aspects[one] - aspects[other]) <= _ASPECT_SLACK
            pairs = np.stack([np.minimum(one, other), np.maximum(one, other)])[:, alike]
            yield pairs, is_mirrored, some[(near[:, CROWD:] < count).any(axis=1)]


def _once_each(found: list[tuple[NDArray[np.int64], Floats, bool]], crowded: NDArray[np.int64]) -> Pairs:
    """A symmetric pair was met in the mirror too: the nearer of the two stays."""
    pairs = np.concatenate([np.zeros((2, 0), np.int64), *(pairs for pairs, _, _ in found)], axis=1)
    difference = np.concatenate([np.zeros(0, np.float32), *(levels for _, levels, _ in found)])
    mirrored = np.concatenate(
        [np.zeros(0, bool), *(np.full(len(levels), is_mirrored) for _, levels, is_mirrored in found)]
    )
    order = np.lexsort((mirrored, difference, pairs[1], pairs[0]))
    pairs, difference, mirrored = pairs[:, order], difference[order], mirrored[order]
    first = np.ones(len(difference), dtype=bool)
    first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return Pairs(pairs[0, first], pairs[1, first], difference[first], mirrored[first], crowded)


def _differences(looks: Looks, pairs: NDArray[np.int64], is_mirrored: bool, enough: float) -> Floats:
    difference = np.empty(pairs.shape[1], dtype=np.float32)
    for start in range(0, pairs.shape[1], _PAIRS_AT_ONCE):
        some = pairs[:, start : start + _PAIRS_AT_ONCE]
        if some.shape[1]:
            grid = grid_of(float(looks.aspect[some[0, 0]]))
            one = Picture.of(looks.thumbs(some[0]), grid)
            other = Picture.of(looks.thumbs(some[1]), grid)
            difference[start : start + _PAIRS_AT_ONCE] = differences(
                one.mirrored() if is_mirrored else one, other, enough
            )
    return difference


@dataclass(frozen=True)
class Picture:
    """Thumbs of one grid, unpacked; everything is measured from white, so that nothing lies outside."""

    grey: Floats
    """(n, rows, columns) levels, 0 for white"""
    colour: Floats
    """(n, 3, rows / 2, columns / 2): the greys again, and red and blue against green"""

    @staticmethod
    def of(thumbs: NDArray[np.uint8], grid: tuple[int, int]) -> Picture:
        """Unpack thumbs (n, THUMB_BYTES) of one grid."""
        rows, columns = grid
        count = len(thumbs)
        grey = thumbs[:, : rows * columns].reshape(count, rows, columns).astype(np.float32) - 255
        chroma = thumbs[:, rows * columns :].reshape(count, 2, rows // 2, columns // 2)
        halves = grey.reshape(count, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4))
        return Picture(grey, np.concatenate([halves[:, None], 2 * (chroma.astype(np.float32) - 128)], axis=1))

    def some(self, which: NDArray[np.bool_]) -> Picture:
        """Some of them."""
        return Picture(self.grey[which], self.colour[which])

    def mirrored(self) -> Picture:
        """Left and right exchanged."""
        return Picture(self.grey[:, :, ::-1], self.colour[..., ::-1])


def differences(one: Picture, other: Picture, enough: float = 0.0) -> Floats:
    """What the worst window of each pair does not have in common, after one is laid over the other; (n,).

    The larger of two answers: one minus the correlation of the greys, which a blur hardly changes and other
    lettering does; and the distance of the mean colours. Aligned or as they are: a logo that fills its box to
    the edges can be moved off it, and pairs that differ by no more than `enough` as they are stay so.
    """
    apart = _apart(one, other)
    rest = apart > enough
    if rest.any():
        mine, theirs = one.some(rest), other.some(rest)
        place = _aligned(mine.colour, theirs.colour)
        moved = Picture(_moved(mine.grey[:, None], place)[:, 0], _moved(mine.colour, place))
        apart[rest] = np.minimum(apart[rest], _apart(moved, theirs))
    return apart


def _apart(one: Picture, other: Picture) -> Floats:
    mine, theirs = _smooth(one.grey[:, None])[:, 0], _smooth(other.grey[:, None])[:, 0]
    mean_one, mean_other = _windows(mine), _windows(theirs)
    spread_one = np.maximum(_windows(mine * mine) - mean_one**2, 0) + _FAINT**2
    spread_other = np.maximum(_windows(theirs * theirs) - mean_other**2, 0) + _FAINT**2
    common = _windows(mine * theirs) - mean_one * mean_other + _FAINT**2
    structure = (1 - common / np.sqrt(spread_one * spread_other)).max(axis=(1, 2))
    apart = one.colour - other.colour
    green = apart[:, 0] - GREY[0] * apart[:, 1] - GREY[2] * apart[:, 2]
    apart = np.stack([apart[:, 1] + green, green, apart[:, 2] + green], axis=1)
    colour = [
        np.abs(np.stack([_windows(apart[:, channel], cells) for channel in range(3)])).max(axis=(0, 2, 3))
        / scale
        for cells, scale in _COLOUR_SCALES
    ]
    larger: Floats = np.maximum.reduce([structure, *colour]).astype(np.float32)
    return larger


def _aligned(one: Floats, other: Floats) -> Floats:
    """How `one` (n, C, H, W) must be stretched and shifted to lie on `other`: (n, 4), across, then down.

    A few rounds of Gauss-Newton on smoothed pictures.
    """
    count, _, rows, columns = one.shape
    place = np.zeros((count, 4), dtype=np.float32)
    across = ((np.arange(columns, dtype=np.float32) + 0.5) / columns * 2 - 1)[None, None, None]
    down = ((np.arange(rows, dtype=np.float32) + 0.5) / rows * 2 - 1)[None, None, :, None]
    mine, theirs = _smooth(one), _smooth(other)
    for _ in range(_ROUNDS):
        moved = _moved(mine, place)
        between = np.pad((moved + theirs) / 2, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        to_right = (between[:, :, 1:-1, 2:] - between[:, :, 1:-1, :-2]) * (columns / 4)
        to_bottom = (between[:, :, 2:, 1:-1] - between[:, :, :-2, 1:-1]) * (rows / 4)
        slopes = np.stack([to_right * across, to_right, to_bottom * down, to_bottom], axis=1)
        slopes = slopes.reshape(count, 4, -1)
        misfit = (theirs - moved).reshape(count, -1, 1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        normal += np.eye(4, dtype=np.float32) * (_STILL * slopes.shape[2])
        moved_on = place + np.linalg.solve(normal, slopes @ misfit)[..., 0]
        place = np.clip(moved_on, -_FURTHEST, _FURTHEST).astype(np.float32)
    return place


def _moved(pictures: Floats, place: Floats) -> Floats:
    """Pictures (n, C, H, W) stretched and shifted; what comes from outside is 0."""
    rows, columns = pictures.shape[2:]
    down, across = _weights(place[:, 2:], rows), _weights(place[:, :2], columns)
    moved = down[:, None] @ pictures @ across[:, None].transpose(0, 1, 3, 2)
    return moved.astype(np.float32, copy=False)


def _weights(place: Floats, cells: int) -> Floats:
    """Matrices (n, cells, cells) that interpolate along one side."""
    centres = ((np.arange(cells, dtype=np.float32) + 0.5) / cells * 2 - 1)[None]
    source = (centres * (1 + place[:, :1]) + place[:, 1:] + 1) / 2 * cells - 0.5
    weights: Floats = np.maximum(0, 1 - np.abs(source[..., None] - np.arange(cells))).astype(np.float32)
    return weights


def _smooth(pictures: Floats) -> Floats:
    """A blur of one cell along both sides, so that slopes can be trusted."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    down = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    smooth = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    return smooth.astype(np.float32, copy=False)


def _windows(cells: Floats, side: int = _WINDOW) -> Floats:
    """The mean of every window of (n, H, W)."""
    rows, columns = cells.shape[1:]
    size = min(side, rows, columns)
    means = _bands(rows, size) @ cells @ _bands(columns, size).T
    return means.astype(np.float32, copy=False)


@cache
def _bands(cells: int, size: int) -> Floats:
    """A matrix (cells - size + 1, cells) that takes the mean of every `size` cells in a row."""
    first = np.arange(cells - size + 1)[:, None]
    place = np.arange(cells)[None]
    return (((place >= first) & (place < first + size)) / size).astype(np.float32)


def places_of(looks: Looks) -> Floats:
    """The place of each picture, (N, 16): cosine waves of its thumb, in levels (root mean square)."""
    places = np.empty((len(looks.bits), len(_across())), dtype=np.float32)
    folds = _folds(looks.aspect)
    for start in range(0, len(places), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(places)))
        thumbs = looks.thumbs(rows).astype(np.float32)
        for fold in np.unique(folds[rows]):
            inside = folds[rows] == fold
            places[rows[inside]] = _waved(thumbs[inside], grid_of(4.0**fold))
    return places


def _waved(thumbs: Floats, grid: tuple[int, int]) -> Floats:
    """Places of thumbs (n, THUMB_BYTES) of one grid."""
    cells = grid[0] * grid[1]
    colour_waves = _waves((grid[0] // 2, grid[1] // 2), _COLOUR)
    halves = [half @ colour_waves.T / np.sqrt(cells / 4) for half in np.split(thumbs[:, cells:], 2, axis=1)]
    greys = thumbs[:, :cells] @ _waves(grid, _GREY).T / np.sqrt(cells)
    return np.concatenate([greys, *halves], axis=1)


_GREY: Final = tuple((total - down, down) for total in range(4) for down in range(total + 1))
_COLOUR: Final = ((0, 0), (1, 0), (0, 1))


@cache
def _waves(grid: tuple[int, int], frequencies: tuple[tuple[int, int], ...]) -> Floats:
    """Orthonormal cosine waves over a grid, flattened; frequencies are (across, down)."""

    def wave(frequency: int, cells: int) -> NDArray[np.float64]:
        samples = np.cos(np.pi / cells * frequency * (np.arange(cells) + 0.5))
        unit: NDArray[np.float64] = samples / np.linalg.norm(samples)
        return unit

    rows = [np.outer(wave(down, grid[0]), wave(across, grid[1])).ravel() for across, down in frequencies]
    return np.array(rows, dtype=np.float32)


def _across() -> list[int]:
    return [across for across, _ in (*_GREY, *_COLOUR, *_COLOUR)]


@cache
def _mirror_signs() -> Floats:
    """What a mirror does to a place: waves that are odd across change their sign."""
    return np.array([(-1) ** across for across in _across()], dtype=np.float32)
