"""Retrieval between pictures and captions: ranks that know duplicates and ties, intervals, and chance.

Ranks are computed once, a slice of the N x N similarities at a time; intervals resample ranks, never
pictures. All of it is in float32 whatever arithmetic the model runs in: cosines rounded to bf16 would tie by
the dozen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KS = (1, 5, 10)
"""Of R@k."""
WAYS = ("text_to_image", "image_to_text")
TIE = 1e-6
"""Cosines nearer than this are equal: float32 sums of the same numbers differ by less, by where they lie."""
COVERAGE = 0.95
"""Of the intervals."""
BLOCK = 1 << 22
"""Similarities, or resampled places, in memory at once."""
_Z = 1.959963984540054  # the normal quantile that belongs to it

Right = Tensor | Callable[[Tensor], Tensor]
"""Which pictures answer which captions, in one of three ways: (N,) numbers, equal where samples answer each
other; (N, N) bool, captions by pictures; or, symmetric, a function from numbers (A,) int64 to (A, N) bool."""


@dataclass(frozen=True)
class Ranks:
    """Where the right answers of N pairs stand, all that the figures and their intervals are made of."""

    text_to_image: NDArray[np.float64]
    """(N,) from 1: of each caption's best right picture"""
    image_to_text: NDArray[np.float64]
    """(N,) of each picture's best right caption"""
    pictures_right: NDArray[np.int64]
    """(N,) how many pictures are right answers of each caption"""
    captions_right: NDArray[np.int64]
    """(N,) how many captions are right answers of each picture"""
    among: NDArray[np.int64]
    """(N,) how many answers each was ranked among: N, but for ranks of several sets that were joined"""

    def __len__(self) -> int:
        return len(self.text_to_image)

    @classmethod
    def joined(cls, parts: Sequence[Ranks]) -> Ranks:
        """Ranks of several sets as one; each stays among the answers of its own set."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def ranks(similarity: Tensor, same: Tensor) -> Tensor:
    """Rank (from 1) of each row's best right answer; ties count half, as a coin would break them.

    A similarity that is not a number counts as a wrong answer that comes before the right one.

    Args:
        similarity: (A, N), row i against column j.
        same: (N,) numbers, where A = N: columns with the row's number are all right answers; or (A, N) bool.
    Returns:
        (A,) float32; N + 1 for a row without a right answer.
    """
    right = same if same.ndim == 2 else same[:, None] == same[None, :]
    return _ranks(similarity.clone(), right)


def _ranks(similarity: Tensor, right: Tensor) -> Tensor:
    # `similarity` is used up; right answers are few, so they are taken out rather than masked in every step
    count = similarity.shape[1]
    rows, columns = right.nonzero(as_tuple=True)
    best = torch.full_like(similarity[:, 0], -torch.inf)
    best.scatter_reduce_(0, rows, similarity[rows, columns].nan_to_num(nan=-torch.inf), "amax")
    similarity[rows, columns] = -torch.inf
    behind = _count(similarity < (best - TIE)[:, None])  # no comparison holds for NaN, which is so not behind
    not_ahead = _count(similarity <= (best + TIE)[:, None])
    rank = 1 + (2 * count - behind - not_ahead).float() / 2
    return torch.minimum(rank, 1 + count - _count(right).float())


def _count(mask: Tensor) -> Tensor:
    """How many of each row are true; numpy's is several times as fast on a CPU."""
    if mask.device.type != "cpu":
        return mask.sum(dim=1)
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))


def recall(rank: Tensor, k: int) -> float:
    """Share of rows whose right answer is among the first k."""
    return float((rank <= k).float().mean())


@torch.no_grad()
def retrieval_ranks(image_embed: Tensor, text_embed: Tensor, right: Right, *, block: int = BLOCK) -> Ranks:
    """Ranks both ways, each over all N; memory for a slice of the N x N similarities.

    Args:
        image_embed, text_embed: (N, D) unit length, row by row one pair.
        right: which answers count, see `Right`.
        block: similarities in memory at once.
    """
    count, device = len(image_embed), image_embed.device
    image_embed, text_embed = image_embed.float(), text_embed.float()
    height = max(1, block // max(count, 1))
    found: list[NDArray[Any]] = []
    for asking, asked, captions_ask in ((text_embed, image_embed, True), (image_embed, text_embed, False)):
        answers_of = _answers(right, captions_ask)
        places, answers_right = [], []
        for first in range(0, count, height):
            rows = torch.arange(first, min(first + height, count), device=device)
            answers = answers_of(rows).to(device)
            with exact_products(device):
                similarity = asking[rows] @ asked.T
            places.append(_ranks(similarity, answers))
            answers_right.append(_count(answers))
        found += [torch.cat(places).double().cpu().numpy(), torch.cat(answers_right).cpu().numpy()]
    by_text, pictures_right, by_image, captions_right = found
    return Ranks(by_text, by_image, pictures_right, captions_right, np.full(count, count))


def _answers(right: Right, captions_ask: bool) -> Callable[[Tensor], Tensor]:
    if not isinstance(right, Tensor):
        return right
    if right.ndim == 2:
        matrix = right if captions_ask else right.T
        return lambda rows: matrix[rows.to(matrix.device)]
    return lambda rows: right[rows.to(right.device), None] == right[None, :]


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Float32 as it is: neither autocast nor the coarser products that a training run may ask for."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def number_captions(captions: Sequence[str]) -> Tensor:
    """One number per distinct caption (case and spaces aside), (N,) int64: the plainest `Right`."""
    numbers: dict[str, int] = {}
    return torch.tensor(
        [numbers.setdefault(" ".join(text.lower().split()), len(numbers)) for text in captions],
        dtype=torch.int64,
    )


def retrieval_metrics(
    image_embed: Tensor,
    text_embed: Tensor,
    right: Right,
    *,
    bootstrap: int = 0,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """All figures of N pairs, with intervals if asked: `rank_metrics` of `retrieval_ranks`."""
    found = retrieval_ranks(image_embed, text_embed, right)
    return rank_metrics(found, bootstrap=bootstrap, seed=seed, groups=groups)


def rank_metrics(
    found: Ranks, *, bootstrap: int = 0, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, float]:
    """R@1, R@5, R@10, median and mean rank and mean reciprocal rank (mrr), both ways and their mean.

    `text_to_image_<figure>`, `image_to_text_<figure>` and `<figure>`, which is the mean of the two;
    `chance_<figure>` is what an order drawn at random gives on average (exact, right answers of any number
    counted), for R@k and the mean rank.

    Args:
        found: of all N pairs.
        bootstrap: how often to draw N pairs with repetition; with 0 there are no intervals, otherwise
            `<figure>_low` and `<figure>_high` are the 2.5 and 97.5 percentiles over the draws. Where every
            pair has the same answer the draws cannot differ, and a share has Wilson's interval instead.
        seed: of the draws.
        groups: (N,) what belongs together; whole groups are drawn then, which is wider and right where a
            group's pictures look alike.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; Wilson 1927, JASA 22.
    """
    metrics = _chance(found)
    values = _figures(found)
    metrics |= {name: value.of() for name, value in values.items()}
    if not bootstrap:
        return metrics
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in values}
    units = len(found) if groups is None else len(set(groups))
    for counts in _draws(len(found), bootstrap, seed, groups):
        for name, value in values.items():
            resampled[name].append(value.over(counts))
    for name, value in values.items():
        low, high = value.wilson(units) or _percentiles(np.concatenate(resampled[name]))
        metrics[f"{name}_low"], metrics[f"{name}_high"] = low, high
    return metrics


def gain(
    before: Ranks, after: Ranks, *, bootstrap: int = 1000, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, float]:
    """How much the figures changed on the same pairs: `<figure>`, `_low`, `_high` of after minus before.

    Both are resampled together, so that what is hard for either does not widen the interval. One that leaves
    out 0 is a change that the choice of these pairs does not explain.
    """
    old, new = _figures(before), _figures(after)
    changes: dict[str, list[NDArray[np.float64]]] = {name: [] for name in new}
    for counts in _draws(len(after), bootstrap, seed, groups):
        for name, value in new.items():
            changes[name].append(value.over(counts) - old[name].over(counts))
    metrics: dict[str, float] = {}
    for name, value in new.items():
        metrics[name] = value.of() - old[name].of()
        metrics[f"{name}_low"], metrics[f"{name}_high"] = _percentiles(np.concatenate(changes[name]))
    return metrics


@dataclass(frozen=True)
class _Figure:
    """One figure of N pairs, and the same over draws of them."""

    columns: tuple[NDArray[np.float64], ...]
    """(N,) each: what is averaged over the pairs, then over the ways"""
    kind: str
    """"mean", "share" (a mean of 0s and 1s) or "median" """

    def of(self) -> float:
        middle = np.median if self.kind == "median" else np.mean
        return float(np.mean([middle(column) for column in self.columns]))

    def over(self, counts: NDArray[np.int32]) -> NDArray[np.float64]:
        """counts (draws, N) how often each pair was drawn -> (draws,) the figure."""
        if self.kind == "median":
            return np.asarray(np.mean([_medians(column, counts) for column in self.columns], axis=0))
        return np.asarray(counts @ np.mean(self.columns, axis=0) / counts.sum(axis=1))

    def wilson(self, units: int) -> tuple[float, float] | None:
        if self.kind != "share" or any(np.ptp(column) for column in self.columns):
            return None
        share = self.of()
        middle = (share + _Z**2 / (2 * units)) / (1 + _Z**2 / units)
        half = _Z / (1 + _Z**2 / units) * math.sqrt(share * (1 - share) / units + (_Z / (2 * units)) ** 2)
        return max(0.0, middle - half), min(1.0, middle + half)


def _figures(found: Ranks) -> dict[str, _Figure]:
    both = dict(zip(WAYS, (found.text_to_image, found.image_to_text), strict=True))
    figures: dict[str, _Figure] = {}
    for prefix, chosen in (*((f"{way}_", (rank,)) for way, rank in both.items()), ("", tuple(both.values()))):
        for k in KS:
            hits = tuple((rank <= k).astype(np.float64) for rank in chosen)
            figures[f"{prefix}r_at_{k}"] = _Figure(hits, "share")
        figures[f"{prefix}mrr"] = _Figure(tuple(1 / rank for rank in chosen), "mean")
        figures[f"{prefix}median_rank"] = _Figure(chosen, "median")
        figures[f"{prefix}mean_rank"] = _Figure(chosen, "mean")
    return figures


def _chance(found: Ranks) -> dict[str, float]:
    among = np.tile(found.among, 2).astype(np.float64)
    right = np.concatenate([found.pictures_right, found.captions_right]).astype(np.float64)
    figures = {}
    for k in KS:
        missed = np.ones_like(right)  # C(among - right, k) / C(among, k), one factor for each place
        for place in range(k):
            missed *= np.maximum(among - right - place, 0) / np.maximum(among - place, 1)
        figures[f"chance_r_at_{k}"] = float(np.mean(1 - missed))
    figures["chance_mean_rank"] = float(np.mean((among + 1) / (right + 1)))
    return figures


def _draws(
    count: int, bootstrap: int, seed: int, groups: Sequence[str] | None, block: int = BLOCK
) -> Iterator[NDArray[np.int32]]:
    """How often each pair is drawn, (draws, N) a block; a pure function of the arguments."""
    random = np.random.default_rng(seed)
    member = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = count if member is None else int(member.max()) + 1
    height = max(1, block // max(count, 1))
    for first in range(0, bootstrap, height):
        draws = min(height, bootstrap - first)
        places = random.integers(0, units, (draws, units)) + units * np.arange(draws)[:, None]
        counts = np.bincount(places.ravel(), minlength=draws * units).reshape(draws, units).astype(np.int32)
        yield counts if member is None else counts[:, member]


def _medians(rank: NDArray[np.float64], counts: NDArray[np.int32]) -> NDArray[np.float64]:
    order = np.argsort(rank, kind="stable")
    upto = np.cumsum(counts[:, order], axis=1)
    total = upto[:, -1:]
    low, high = (np.argmax(upto >= middle, axis=1) for middle in ((total + 1) // 2, total // 2 + 1))
    return np.asarray((rank[order[low]] + rank[order[high]]) / 2)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
