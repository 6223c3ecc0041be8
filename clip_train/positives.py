"""Which samples are right answers of which: equal and near-duplicate captions and pictures are no negatives.

Alike are two samples whose captions are alike or whose pictures are alike:

- captions: equal but for case and spaces; or near-duplicates, of which one repeats the other with a few words
  more (`near_captions`). Of a picture's several captions the heaviest counts.
- pictures: equal in every pixel of the cached size; or near-duplicates, copies of one picture that went
  through another format or size (`near_pictures`).

The relation is symmetric and not transitive: a chain of small steps ends at another logo. It is a pure
function of the samples, and rests on rules that rather miss a twin than join two logos: a missed twin is one
wrong negative of many, but two logos taken for one would make retrieval figures look better than they are.
Nothing of the size of all pairs is ever held, and no model is asked.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from torch import Tensor

from crest.colours import colour_words
from crest.pixels import Pictures
from crest.wording import quoted_words, unquoted

THUMB_CELLS: Final = 32
"""Cells along each side of the thumbnails that are compared."""
WINDOW_CELLS: Final = 8
"""Cells along each side of a window, a quarter of the picture; windows overlap by half."""
DRAWN: Final = 1 / 16
"""A cell is drawn where a channel departs by more than this from the picture's own ground, in [0, 1]."""
MIN_DRAWN: Final = 16
"""Fewer drawn cells than this are too little to know a picture again, or to judge a window alone."""
CROWD: Final = 64
"""Of more pictures than this within reach of one, the nearest are compared."""
_CHUNK: Final = 256
_CELLS: Final = WINDOW_CELLS**2
_ROUNDING: Final = 1e-3
"""What half precision may add to a difference of outlines."""
_OUTLINE: Final = np.dtype([("colours", "f2", (3, 8, 8)), ("drawn", "f4", (4, 4)), ("ground", "f4", (3,))])
"""A thumbnail's colours in [0, 1], how many cells of each window that tiles it are drawn, and its ground."""
_GLUE: Final = frozenset(("a", "an", "and", "are", "has", "have", "is", "of", "the", "with"))
"""Words whose presence changes nothing."""
_DENIAL: Final = frozenset(("no", "nor", "not", "never", "without"))
_NUMBERS: Final = frozenset((
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "single", "double", "triple", "both", "pair",
))  # fmt: skip
_WORD: Final = re.compile(r"\w+(?:['’]\w+)*")
Pairs = NDArray[np.int64]
"""(M, 2), each pair once, the smaller number first, in rising order."""


@dataclass(frozen=True)
class Likeness:
    """One way in which samples are alike: equal ones share a class, and some classes are near each other."""

    classes: NDArray[np.int64]
    """(N,) the class of each sample"""
    near: Any
    """(classes, classes) sparse bool: 1 for a class and itself, and for near ones both ways"""

    def mark(self, alike: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        """Set what is alike of rows (A,) against columns (B,) in `alike` (A, B)."""
        part = self.near[self.classes[rows]][:, self.classes[columns]]
        alike[np.repeat(np.arange(len(rows)), np.diff(part.indptr)), part.indices] = True

    def pairs(self) -> tuple[int, int]:
        """How many pairs of samples are equal, and how many near."""
        sizes = np.bincount(self.classes, minlength=self.near.shape[0])
        one, other = self.near.nonzero()
        near = int((sizes[one] * sizes[other])[one < other].sum())
        return int((sizes * (sizes - 1) // 2).sum()), near


class Positives:
    """Which of N samples are right answers of which; every sample is one of itself.

    Args:
        captions: how the captions are alike.
        pictures: how the pictures are alike.
    """

    def __init__(self, captions: Likeness, pictures: Likeness) -> None:
        self._captions, self._pictures = captions, pictures

    def __len__(self) -> int:
        return len(self._captions.classes)

    def matrix(self, rows: NDArray[np.int64] | Tensor, columns: NDArray[np.int64] | Tensor) -> Tensor:
        """Numbers (A,) and (B,) of samples -> (A, B) bool on the CPU, True where they are alike.

        A number may occur several times, as where a batch spans two epochs.
        """
        one, other = np.asarray(rows), np.asarray(columns)
        alike = np.zeros((len(one), len(other)), dtype=bool)
        self._captions.mark(alike, one, other)
        self._pictures.mark(alike, one, other)
        return torch.from_numpy(alike)

    def counts(self) -> dict[str, int]:
        """How many pairs of samples are alike, by kind; a pair may be of one kind of each half."""
        captions, pictures = self._captions.pairs(), self._pictures.pairs()
        return {
            "equal_captions": captions[0],
            "near_captions": captions[1],
            "equal_pictures": pictures[0],
            "near_pictures": pictures[1],
        }


def positives(pictures: Pictures, *, captions_alike: float, pictures_alike: float) -> Positives:
    """Find what is alike in one split.

    Args:
        pictures: N samples; their pixels are read twice at most, a few at a time.
        captions_alike: see `near_captions`; above 1 only equal captions are alike.
        pictures_alike: see `near_pictures`; below 0 only equal pictures are alike.
    """
    texts, classes = _classes(" ".join(text.lower().split()) for text in pictures.captions)
    captions = Likeness(classes, _near(len(texts), near_captions(texts, captions_alike)))
    seen, classes = _classes(
        hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() for pixels in pictures.pixels
    )
    firsts = np.unique(classes, return_index=True)[1]
    near = near_pictures(pictures.pixels, pictures_alike, firsts)
    return Positives(captions, Likeness(classes, _near(len(seen), near)))


def _classes(keys: Iterator[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The different keys in the order of their first sample, and the place of each sample's among them."""
    numbers: dict[Any, int] = {}
    classes = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), dtype=np.int64)
    return list(numbers), classes


def _near(count: int, pairs: Pairs) -> Any:
    itself = np.arange(count)
    one = np.concatenate([itself, pairs[:, 0], pairs[:, 1]])
    other = np.concatenate([itself, pairs[:, 1], pairs[:, 0]])
    return csr_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count, count))


def near_captions(texts: Sequence[str], captions_alike: float) -> Pairs:
    """Pairs of different texts of which one says what the other says, with a few words more.

    The token Jaccard index alone joins what differs in the one word that matters ("wordmark "BOSTON" …" and
    "wordmark "PORTLAND" …" have 0.89 in common). So near-duplicates also

    - have the same lettering in quotes, the same colours in the same order, the same numbers;
    - and all words of one but articles, "and", "of", "with", "is", "are", "has" stand in the other in the
      same order, where the further words deny nothing ("no", "without").

    Args:
        texts: N of them.
        captions_alike: words (case-blind) in common as a share of all words of both, at least; in [0, 1].
    Returns:
        pairs of numbers of texts.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    words = [_WORD.findall(text.lower()) for text in texts]
    if captions_alike <= 1:
        for number, text in enumerate(texts):
            groups[_facts(text, words[number])].append(number)
    found: list[tuple[int, int]] = []
    for members in groups.values():
        if len(members) > 1:
            found += _near_in_group(members, words, captions_alike)
    return _as_pairs(found)


def _facts(text: str, words: list[str]) -> tuple[Any, ...]:
    """What near-duplicates agree in altogether: lettering, colours in order, numbers in order."""
    numbers = tuple(word for word in words if word in _NUMBERS or word.isdecimal())
    lettering = tuple(sorted(word.lower() for word in quoted_words(text)))
    return lettering, tuple(colour_words(unquoted(text))), numbers


def _near_in_group(
    members: list[int], words: list[list[str]], captions_alike: float
) -> Iterator[tuple[int, int]]:
    """Pairs among texts of the same facts: those that hold every word of a text are its candidates."""
    tokens = {number: frozenset(words[number]) for number in members}
    said = {number: [word for word in words[number] if word not in _GLUE] for number in members}
    holders: dict[tuple[str, int], set[int]] = defaultdict(set)
    for number in members:
        for word in tokens[number]:
            holders[word, len(tokens[number])].add(number)
    sizes = {size for _, size in holders}
    for number in members:
        mine, asked = tokens[number], set(said[number])
        if not asked:
            continue
        for size in sizes:
            if min(size, len(mine)) < captions_alike * max(size, len(mine)):
                continue  # the index could not reach so far
            sets = sorted((holders.get((word, size), set()) for word in asked), key=len)
            for other in set.intersection(*sets):
                shared = len(mine & tokens[other])
                if (
                    other != number
                    and shared >= captions_alike * (len(mine) + len(tokens[other]) - shared)
                    and _repeats(said[number], said[other])
                ):
                    yield number, other


def _repeats(short: list[str], long: list[str]) -> bool:
    """Whether the words of one stand in the other in their order, and no word between denies anything."""
    at = 0
    for word in long:
        if at < len(short) and word == short[at]:
            at += 1
        elif word in _DENIAL:
            return False
    return at == len(short)


def near_pictures(
    pixels: NDArray[np.uint8], pictures_alike: float, numbers: NDArray[np.int64] | None = None
) -> Pairs:
    """Pairs of pictures that differ no more than copies in another format or size do.

    The measure is the mean absolute difference in [0, 1] of thumbnails of 32 x 32 cells, in the channel that
    differs most, over the cells that either of the two draws on, in that of 49 windows of 8 x 8 cells where
    it is largest: two wordmarks are mostly the same white, two icons of a family differ in one letter, and
    gold on orange differs in green alone. A shift, another border and another ground are differences.
    Pictures that draw on fewer than 16 cells are near to none.

    Of 300 brand logos at 64 px all copies as JPEG of quality 75 and 40 and in 64 colours are within 0.05, and
    of copies by way of 150 px 76 %; within 0.08 it is 93 %. No two different ones of 1,384 brand logos are
    within 0.1; of drawn crests that differ in their charge the nearest two are at 0.099.

    Args:
        pixels: (N, 3, side, side), read a few at a time.
        pictures_alike: the measure at most; below 0 finds nothing.
        numbers: which rows of `pixels` to compare; None: all.
    Returns:
        pairs of positions in `numbers`.
    """
    numbers = np.arange(len(pixels)) if numbers is None else numbers
    if pictures_alike < 0 or len(numbers) < 2:
        return _as_pairs([])
    outlines = np.zeros(len(numbers), dtype=_OUTLINE)
    for some in _slices(len(numbers)):
        outlines[some] = _outlined(_thumbs(pixels[numbers[some]]))
    members = np.flatnonzero(outlines["drawn"].sum(axis=(1, 2)) >= MIN_DRAWN)
    near = members[_within_reach(outlines[members], pictures_alike)]
    involved, rows = np.unique(near, return_inverse=True)
    rows = rows.reshape(near.shape)
    small = torch.zeros(len(involved), 3, THUMB_CELLS, THUMB_CELLS, dtype=torch.uint8)
    for some in _slices(len(involved)):
        small[some] = _thumbs(pixels[numbers[involved[some]]])
    close = np.zeros(len(near), dtype=bool)
    for some in _slices(len(near)):
        close[some] = (_differences(small[rows[some, 0]], small[rows[some, 1]]) <= pictures_alike).numpy()
    return near[close]


def _slices(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def _thumbs(pixels: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, 3, side, side) as thumbnails (n, 3, 32, 32), uint8: the mean of each cell."""
    means = F.adaptive_avg_pool2d(torch.from_numpy(pixels.astype(np.float32)), THUMB_CELLS)
    return means.round().to(torch.uint8)


def _cleaned(thumbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thumbnails in [0, 1] with all that is not drawn made ground, (n, 32, 32) what is drawn, grounds (n, 3).

    The ground is the median of the border, so that a dark card is no drawing.
    """
    levels = thumbs.float() / 255
    border = torch.cat([levels[:, :, 0], levels[:, :, -1], levels[..., 0], levels[..., -1]], dim=2)
    ground = border.median(dim=2).values
    drawn = (levels - ground[:, :, None, None]).abs().amax(dim=1) > DRAWN
    return torch.where(drawn[:, None], levels, ground[:, :, None, None]), drawn, ground


def _differences(one: Tensor, other: Tensor) -> Tensor:
    """The measure of `near_pictures` for pairs of thumbnails (n, 3, 32, 32) uint8: (n,)."""
    (mine, drawn, ground), (theirs, drawn_too, other_ground) = _cleaned(one), _cleaned(other)
    either = (drawn | drawn_too).float()[:, None]
    apart = (mine - theirs).abs().amax(dim=1, keepdim=True) * either
    sums, counts = (F.avg_pool2d(part, WINDOW_CELLS, WINDOW_CELLS // 2) * _CELLS for part in (apart, either))
    worst = (sums / counts.clamp(min=MIN_DRAWN)).amax(dim=(1, 2, 3))
    return torch.maximum(worst, (ground - other_ground).abs().amax(dim=1))


def _outlined(thumbs: Tensor) -> NDArray[np.void]:
    """Thumbnails (n, 3, 32, 32) as rows of `_OUTLINE`."""
    cleaned, drawn, ground = _cleaned(thumbs)
    outlines = np.zeros(len(thumbs), dtype=_OUTLINE)
    outlines["colours"] = F.avg_pool2d(cleaned, THUMB_CELLS // 8)
    outlines["drawn"] = F.avg_pool2d(drawn.float(), WINDOW_CELLS) * _CELLS
    outlines["ground"] = ground
    return outlines


def _within_reach(outlines: NDArray[np.void], pictures_alike: float) -> Pairs:
    """Pairs that may be near by their outlines (n,): a necessary condition, so that none is missed.

    In each of the 16 windows that tile a thumbnail, near pictures differ by at most `pictures_alike` times
    the drawn cells (or MIN_DRAWN of them), and by their grounds on the other cells; means of parts of a
    window differ by no more than its cells do. The tree asks this of the grey means, for any drawn cells.
    """
    if len(outlines) < 2:
        return _as_pairs([])
    places = outlines["colours"].astype(np.float32).mean(axis=1).reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    tree = cKDTree(places.reshape(len(outlines), -1))
    reach = pictures_alike * (1 + MIN_DRAWN / _CELLS) + _ROUNDING
    found = [_as_pairs([])]
    for some in _slices(len(outlines)):
        asked = np.arange(some.start, some.stop)
        count = min(CROWD + 1, len(outlines))
        _, near = tree.query(tree.data[some], k=count, p=np.inf, distance_upper_bound=reach)
        row, column = np.nonzero((near < len(outlines)) & (near != asked[:, None]))
        one, other = outlines[asked[row]], outlines[near[row, column]]
        colours = np.abs(one["colours"].astype(np.float32) - other["colours"]).mean(axis=1)
        ground = np.abs(one["ground"] - other["ground"]).mean(axis=1)[:, None, None]
        most = np.clip(one["drawn"] + other["drawn"], MIN_DRAWN, _CELLS)
        bare = _CELLS - np.maximum(one["drawn"], other["drawn"])
        bound = (pictures_alike * most + bare * ground) / _CELLS + _ROUNDING
        close = (colours.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)) <= bound).all(axis=(1, 2))
        found.append(np.stack([asked[row], near[row, column]], axis=1)[close])
    return _as_pairs(np.concatenate(found))


def _as_pairs(found: Sequence[tuple[int, int]] | Pairs) -> Pairs:
    """Each pair once, the smaller number first, in rising order."""
    pairs = np.asarray(found, dtype=np.int64).reshape(-1, 2)
    return np.unique(np.sort(pairs, axis=1), axis=0)
