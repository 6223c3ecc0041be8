"""A judge that needs no model: the drawable league specification nearest to a picture in squared pixels.

Every geometry of the league (shape x field x charge x with or without lettering x dress) splits the picture
into regions of one colour each. Where each pixel belongs to one region, the distance of a picture to all
colourings of a geometry follows from three sums per region: the number of pixels N, the sum of x and the sum
of x^2, since sum |x - c|^2 = sum x^2 - 2 c . sum x + N |c|^2; the sums of all geometries are one matrix
product. Three rounds of growing care: all geometries at half size; the best `CANDIDATES` at full size and one
pixel to each side; the best `FINALISTS` with pixels on edges shared between regions, where the distance is a
quadratic form in the colours, sum_r u_r(c_r) + sum_rs G_rs c_r . c_s. The last two rounds find the best
colouring under the league's rules exactly, by enumeration: field colours differ, the charge differs from
both, the outline is black, navy, white, silver or the charge's colour, and no field colour.

Four things that a specification does not say are kept from mattering. Lettering is not read: its band costs
the fixed `BAND_COST` a pixel, about what letters on white cost, so that geometries with and without a band
compare fairly. Outline width and trim (a line of the charge's colour) are part of the geometry. Pictures may
lie one pixel off to any side. They may be as sharp as drawn or blurred, whichever is nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from crest.colours import COLOURS as NAMED_COLOURS
from demo.heraldry import (
    BACKGROUND,
    CHARGE,
    CHARGES,
    COLOURS,
    FIELD_A,
    FIELD_B,
    FIELDS,
    IGNORE,
    OUTLINE,
    SHAPES,
    Layout,
    Specification,
    band_rows,
    coverage_map,
)
from demo.league import OUTLINE_WIDTHS, Dress, league_layout
from demo.wording import Inscription

Floats: TypeAlias = NDArray[np.float32]

BAND_COST: Final = 0.12
ATTRIBUTES: Final = ("shape", "field", "field_colour", "charge", "charge_colour")
OUTLINE_COLOURS: Final = ("black", "navy", "white", "silver")
SHIFTS: Final = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
CANDIDATES: Final = 48
"""How many geometries are tried at every shift."""
FINALISTS: Final = 8
"""How many geometries reach the second round."""
BLUR_SIGMAS_PX: Final = (0.0, 1.0)
"""Sharpness tried in the second round, for pictures of 64 px."""

_DRESSES: Final = ((OUTLINE_WIDTHS[0], False), (OUTLINE_WIDTHS[1], False), (OUTLINE_WIDTHS[1], True))
_REGIONS: Final = (OUTLINE, FIELD_A, FIELD_B, CHARGE)
_PALETTE: Final[Floats] = np.array([NAMED_COLOURS[name] for name in COLOURS], dtype=np.float32) / np.float32(
    255
)
_PRODUCTS: Final[Floats] = (_PALETTE @ _PALETTE.T).astype(np.float32)


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, as far as the judge can see."""

    specification: Specification
    distance: float
    """Mean squared distance per pixel, summed over the channels: about 0.01 if clean, 0.05 with lettering."""


@dataclass(frozen=True)
class _Geometry:
    shape: str
    field: str
    charge: str
    has_lettering: bool
    outline_width: float
    has_trim: bool

    def layout(self) -> Layout:
        """The league's layout, with stand-in colours."""
        inscription = Inscription("A", "black", is_initials=True) if self.has_lettering else None
        spec = Specification(self.shape, "plain", "red", None, self.charge, "gold")
        return league_layout(spec, Dress("black", self.outline_width, self.has_trim, inscription))

    def coverage(self, side_px: int) -> Floats:
        """Coverage of the ground and the four coloured regions (5, H, W); a trim is part of the charge's."""
        full = coverage_map(self.shape, self.field, self.charge, self.layout(), side_px)
        full[CHARGE] += full[IGNORE]
        return full[[BACKGROUND, *_REGIONS]]


def marks(verdict: Verdict, truth: Specification) -> dict[str, bool]:
    """Which attributes a verdict got right; exact means all of them.

    `field_colour` asks for both colours in their order where the field has two.
    """
    seen = verdict.specification
    right = {
        "shape": seen.shape == truth.shape,
        "field": seen.field == truth.field,
        "field_colour": seen.field_colours == truth.field_colours,
        "charge": seen.charge == truth.charge,
        "charge_colour": seen.charge_colour == truth.charge_colour,
    }
    return {"exact": all(right.values()), **right}


def _colouring_penalty() -> Floats:
    """0 where a colouring is allowed and infinity elsewhere: (plain or not, charge, A, B, outline)."""
    n = len(COLOURS)
    penalty = np.full((2, n, n, n, n), np.inf, dtype=np.float32)
    outlines = {COLOURS.index(name) for name in OUTLINE_COLOURS}
    for charge, a, b in product(range(n), repeat=3):
        if charge not in (a, b):
            allowed = sorted((outlines | {charge}) - {a, b})
            # A plain field has no region B; it is written here as B = A.
            penalty[int(a == b), charge, a, b, allowed] = 0
    return penalty


@lru_cache(maxsize=8)
def _blur_matrix(side_px: int, sigma_px: float) -> Floats:
    """Gaussian blur along one side as a matrix (H, H), the edge pixels repeated outwards."""
    if sigma_px == 0:
        return np.eye(side_px, dtype=np.float32)
    places = np.arange(-side_px, 2 * side_px)
    weights = np.exp(-((places[None] - np.arange(side_px)[:, None]) ** 2) / (2 * sigma_px**2))
    folded = np.zeros((side_px, side_px))
    np.add.at(folded.T, places.clip(0, side_px - 1), weights.T)
    return np.asarray(folded / folded.sum(axis=1, keepdims=True), dtype=np.float32)


def _halved(image: NDArray[np.generic]) -> Floats:
    """Means of 2 x 2 pixels: (H, W, C) to (H / 2, W / 2, C)."""
    x = np.asarray(image, dtype=np.float32)
    return np.asarray((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / np.float32(4))


def _one_hot(labels: NDArray[np.integer]) -> Floats:
    """(G, H, W) with the places of `coverage` to (G, 4, pixels): the coloured regions, without the ground."""
    regions = np.empty((len(labels), len(_REGIONS), labels[0].size), dtype=np.float32)
    for i in range(len(_REGIONS)):
        np.equal(labels.reshape(len(labels), -1), i + 1, out=regions[:, i], casting="unsafe")
    return regions


def _distances(
    images: Floats, regions: Floats, has_band: NDArray[np.bool_], band: Floats
) -> tuple[Floats, Floats]:
    """Hard-edged distances of pictures to geometries, apart by region and colour.

    Args:
        images: (N, H, W, 3).
        regions: (G, 4, pixels), one hot.
        has_band: (G,) whether the band of the lettering is left out.
        band: (H, W), 1 in the band and 0 elsewhere.
    Returns:
        (N, G, 4, 10) squared distance of each region to each colour; (N, G) what ground and band cost.
    """
    n, g = len(images), len(regions)
    x = images.reshape(n, -1, 3)
    squares = (x**2).sum(axis=2)
    columns = np.concatenate([x.transpose(1, 0, 2).reshape(-1, n * 3), squares.T], axis=1)
    sums = (regions.reshape(g * 4, -1) @ columns).reshape(g, 4, -1)
    sum_x = sums[..., : n * 3].reshape(g, 4, n, 3).transpose(2, 0, 1, 3)
    sum_squares = sums[..., n * 3 :].transpose(2, 0, 1)
    counts = regions.sum(axis=2)[None]
    tables = sum_squares[..., None] - 2 * sum_x @ _PALETTE.T + counts[..., None] * _PRODUCTS.diagonal()
    # The ground is what the regions and the band leave; it is white: |x - 1|^2 = x^2 - 2 x + 3.
    from_white = squares - 2 * x.sum(axis=2) + 3
    ground = from_white.sum(axis=1)[:, None] - (sum_squares - 2 * sum_x.sum(axis=3) + 3 * counts).sum(axis=2)
    in_band = BAND_COST * band.sum() - from_white @ band.reshape(-1)
    return tables, ground + has_band * in_band[:, None]


class Judge:
    """Finds the nearest drawable specification; building one takes two seconds and 100 MB."""

    def __init__(self, side_px: int = 64) -> None:
        """Draw all geometries at this side, which must be even."""
        self.side_px = side_px
        self._geometries = [
            _Geometry(shape, field, charge, has_lettering, width, has_trim)
            for shape, field, charge, has_lettering, (width, has_trim) in product(
                SHAPES, FIELDS, CHARGES, (False, True), _DRESSES
            )
        ]
        lettering = next(g for g in self._geometries if g.has_lettering).layout().lettering
        assert lettering is not None
        self._band = np.zeros((side_px, side_px), dtype=np.float32)
        self._band[band_rows(lettering, side_px)] = 1
        self._has_band = np.array([g.has_lettering for g in self._geometries])
        self._coverage = np.empty((len(self._geometries), 5, side_px, side_px), dtype=np.uint8)
        for geometry, coverage in zip(self._geometries, self._coverage, strict=True):
            coverage[:] = np.rint(geometry.coverage(side_px) * 255)
        self._labels = self._coverage.argmax(axis=1).astype(np.uint8)
        half = np.array([_halved(coverage.transpose(1, 2, 0)).argmax(axis=2) for coverage in self._coverage])
        self._half_regions = _one_hot(half)
        self._penalty = _colouring_penalty()

    def judge(self, image: NDArray[np.floating]) -> Verdict:
        """The nearest drawable specification of one picture.

        Args:
            image: (H, W, 3) in [0, 1], of the judge's side.
        """
        return self.judge_many(image[None])[0]

    def judge_many(self, images: NDArray[np.floating]) -> list[Verdict]:
        """The nearest drawable specification of each picture.

        Args:
            images: (N, H, W, 3) in [0, 1], of the judge's side.
        Raises:
            ValueError: the pictures have another shape.
        """
        side = self.side_px
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"pictures of shape {images.shape}; expected (N, {side}, {side}, 3), resize first"
            )
        half_band = _halved(self._band[..., None])[..., 0]
        verdicts: list[Verdict] = []
        for start in range(0, len(images), 16):
            batch = np.asarray(images[start : start + 16], dtype=np.float32)
            halved = np.stack([_halved(picture) for picture in batch])
            tables, fixed = _distances(halved, self._half_regions, self._has_band, half_band)
            bounds = tables.min(axis=3).sum(axis=2) + fixed
            for picture, bound in zip(batch, bounds, strict=True):
                finalists = self._finalists(picture, bound.argsort()[:CANDIDATES])
                verdicts.append(self._decide(picture, finalists))
        return verdicts

    def score(self, images: NDArray[np.floating], truths: Sequence[Specification]) -> dict[str, float]:
        """Shares of pictures that show their specification: exact, and each attribute by itself."""
        verdicts = self.judge_many(images)
        table = [marks(verdict, truth) for verdict, truth in zip(verdicts, truths, strict=True)]
        return {key: sum(row[key] for row in table) / len(table) for key in ("exact", *ATTRIBUTES)}

    def _finalists(self, picture: Floats, chosen: NDArray[np.int64]) -> list[tuple[int, Floats]]:
        """The geometries with the least hard-edged distance, each with the picture as shifted for it."""
        side = self.side_px
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        shifted = np.stack([padded[1 + dy : 1 + dy + side, 1 + dx : 1 + dx + side] for dy, dx in SHIFTS])
        regions = _one_hot(self._labels[chosen])
        tables, fixed = _distances(shifted, regions, self._has_band[chosen], self._band)
        bounds = tables.min(axis=3).sum(axis=2) + fixed
        shift_of = bounds.argmin(axis=0)
        costs: list[tuple[float, int]] = []
        for place in bounds.min(axis=0).argsort():
            shift = shift_of[place]
            if len(costs) >= FINALISTS and bounds[shift, place] >= sorted(costs)[FINALISTS - 1][0]:
                break
            outline, a, b, charge = tables[shift, place]
            unary = charge[:, None, None] + a[:, None] + b
            penalty = self._penalty[int(self._geometries[chosen[place]].field == "plain")]
            costs.append(
                (float(((penalty + outline).min(axis=3) + unary).min() + fixed[shift, place]), int(place))
            )
        return [(int(chosen[place]), shifted[shift_of[place]]) for _, place in sorted(costs)[:FINALISTS]]

    def _decide(self, picture: Floats, finalists: list[tuple[int, Floats]]) -> Verdict:
        """The finalist, sharpness and colouring with the least distance, edges shared between regions."""
        best, verdict = np.inf, None
        for (place, shifted), sigma_px in product(finalists, BLUR_SIGMAS_PX):
            geometry = self._geometries[place]
            blur = _blur_matrix(self.side_px, sigma_px * self.side_px / 64)
            coverage = self._coverage[place] / np.float32(255)
            cost = self._soft_distances(geometry, shifted, np.asarray(blur @ coverage @ blur.T))
            least = int(cost.argmin())
            if cost.ravel()[least] < best:
                best = float(cost.ravel()[least])
                charge, a, b, _ = (COLOURS[int(i)] for i in np.unravel_index(least, cost.shape))
                second = None if geometry.field == "plain" else b
                spec = Specification(geometry.shape, geometry.field, a, second, geometry.charge, charge)
                verdict = Verdict(spec, best / self.side_px**2)
        assert verdict is not None
        return verdict

    def _soft_distances(self, geometry: _Geometry, picture: Floats, coverage: Floats) -> Floats:
        """Squared distances to all colourings of a geometry with this coverage: (charge, A, B, outline)."""
        seen = 1 - self._band * geometry.has_lettering
        masked = (coverage * seen).reshape(5, -1)
        rest = (picture * seen[..., None]).reshape(-1, 3) - masked[0][:, None]
        regions = masked[1:]
        gram = regions @ regions.T
        outline, a, b, charge = (
            -2 * regions @ rest @ _PALETTE.T + gram.diagonal()[:, None] * _PRODUCTS.diagonal()
        )
        pair = 2 * gram[..., None, None] * _PRODUCTS
        o_, a_, b_, c_ = range(4)
        three = (
            charge[:, None, None]
            + a[:, None]
            + b
            + pair[c_, a_][:, :, None]
            + pair[c_, b_][:, None]
            + pair[a_, b_]
        )
        with_outline = (
            outline + pair[c_, o_][:, None, None] + pair[a_, o_][None, :, None] + pair[b_, o_][None, None]
        )
        fixed = float((rest**2).sum()) + BAND_COST * float((1 - seen).sum())
        penalty = self._penalty[int(geometry.field == "plain")]
        return np.asarray(three[..., None] + with_outline + penalty + fixed, dtype=np.float32)
