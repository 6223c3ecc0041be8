"""The vocabulary of crests and their geometry: what can be specified, and how it is drawn.

Everything is vector geometry in the unit square (x right, y down). A specification says what a crest shows; a
layout says where it sits and how it is dressed. Nothing here knows clubs or captions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crest.colours import COLOUR_WORDS, RGB
from crest.colours import COLOURS as NAMED_COLOURS
from demo.charges import DRAWN_BY, Polygon, arc, charge_mask
from demo.polygons import clip, inset

SHAPES: Final = ("shield", "circle", "diamond", "hexagon", "square", "pennant")
FIELDS: Final = ("plain", "halves", "stripes", "chevrons", "quarters")
CHARGES: Final = tuple(DRAWN_BY)
COLOURS: Final = tuple(NAMED_COLOURS)

BACKGROUND, OUTLINE, FIELD_A, FIELD_B, CHARGE, IGNORE = range(6)
"""The labels of `label_map`; IGNORE covers lettering and trim."""

HELD_OUT_PER_MILLE: Final = 100


@dataclass(frozen=True)
class Specification:
    """What a crest shows; the part of a logo that a judge can check."""

    shape: str
    field: str
    field_colour: str
    second_colour: str | None
    charge: str
    charge_colour: str

    def __post_init__(self) -> None:
        if (self.second_colour is None) != (self.field == "plain"):
            raise ValueError(f"a {self.field} field with second colour {self.second_colour}")
        if self.charge_colour in self.field_colours or self.field_colour == self.second_colour:
            raise ValueError(f"colours that do not differ: {self}")

    @property
    def field_colours(self) -> tuple[str, ...]:
        """The field's one or two colours, in the order drawn."""
        return (self.field_colour,) if self.second_colour is None else (self.field_colour, self.second_colour)

    def to_dict(self) -> dict[str, str | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, str | None]) -> Specification:
        """The inverse of `to_dict`; other keys are an error."""
        return Specification(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lettering:
    """A line of text in a band of the picture, centred."""

    text: str
    colour: str
    top: float = 0.79
    bottom: float = 0.97


@dataclass(frozen=True)
class Bar:
    """A thick line across the picture, centred."""

    colour: str
    top: float
    bottom: float
    width: float


@dataclass(frozen=True)
class Layout:
    """Where a crest sits in the unit square, and how it is dressed."""

    centre: tuple[float, float] = (0.5, 0.5)
    width: float = 0.8
    height: float = 0.8
    charge_scale: float = 0.46
    """Side of the charge's box over the smaller side of the crest."""
    charge_offset: tuple[float, float] = (0.0, 0.0)
    """Added to the charge's place, in units of the picture."""
    outline_width: float = 0.0
    outline_colour: str | None = None
    rim_colour: str | None = None
    """A thin line around the outline, for outlines of the ground's colour."""
    rim_width: float = 0.012
    trim_colour: str | None = None
    """A thin line inside the outline."""
    trim_width: float = 0.016
    lettering: Lettering | None = None
    bar: Bar | None = None
    """Drawn by `draw` alone; a specification's regions do not know it."""


def is_held_out(spec: Specification) -> bool:
    """Whether this combination is kept out of all training data: about one in ten, by a stable hash."""
    parts = (
        spec.shape,
        spec.field,
        spec.field_colour,
        spec.second_colour or "-",
        spec.charge,
        spec.charge_colour,
    )
    digest = hashlib.blake2b("|".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 1000 < HELD_OUT_PER_MILLE


def random_specification(
    rng: np.random.Generator, *, plain_share: float = 0.55, held_out: bool | None = False
) -> Specification:
    """Draw a specification at random.

    Args:
        rng: the source of chance.
        plain_share: how often the field is plain; the other fields share the rest.
        held_out: draw only combinations that are (True) or are not (False) held out; None draws any.
    """
    while True:
        field = "plain" if rng.random() < plain_share else FIELDS[1 + int(rng.integers(len(FIELDS) - 1))]
        first, second, third = (COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:3])
        spec = Specification(
            shape=SHAPES[int(rng.integers(len(SHAPES)))],
            field=field,
            field_colour=first,
            second_colour=None if field == "plain" else second,
            charge=CHARGES[int(rng.integers(len(CHARGES)))],
            charge_colour=third,
        )
        if held_out is None or is_held_out(spec) == held_out:
            return spec


@lru_cache(maxsize=16)
def shape_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """The shape as a convex polygon in [-1, 1] x [-1, 1], clockwise on screen."""
    points: Polygon
    if shape == "shield":
        right = [(1.0, -1.0), (1.0, -0.2)]
        curve = [(1.0 - float(t) ** 2.3, -0.2 + 1.2 * float(t)) for t in np.linspace(0.12, 0.93, 10)]
        points = [*right, *curve, (0.0, 1.0), *((-x, y) for x, y in reversed(right + curve))]
    elif shape == "circle":
        points = arc(0, 0, 1, 0, 360 - 360 / 72, 72)
    elif shape == "diamond":
        points = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    elif shape == "hexagon":
        points = [(-0.5, -1), (0.5, -1), (1, 0), (0.5, 1), (-0.5, 1), (-1, 0)]
    elif shape == "square":
        points = [(-0.94, -0.94), (0.94, -0.94), (0.94, 0.94), (-0.94, 0.94)]
    elif shape == "pennant":
        points = [(-1, -1), (1, -0.14), (1, 0.14), (-1, 1)]
    else:
        raise ValueError(f"{shape} is not a shape; expected one of {', '.join(SHAPES)}")
    return tuple((float(x), float(y)) for x, y in points)


_HEART_OF: Final = {"shield": (0.0, -0.14), "pennant": (-0.4, 0.0)}
"""Where charge and pattern are centred, for shapes whose middle is not the box's."""

_CHARGE_ROOM: Final = {"diamond": 0.88, "pennant": 0.88, "square": 1.06}
"""How much of the layout's charge scale a shape has room for."""


def second_colour_parts(
    polygon: Polygon, field: str, x: float, y: float, width: float, height: float
) -> list[Polygon]:
    """The parts of a shape that carry the field's second colour; the pattern is centred at (x, y)."""
    if field == "plain":
        return []
    if field == "halves":
        return [clip(polygon, -1, 0, -x)]
    if field == "quarters":
        right, left = clip(polygon, -1, 0, -x), clip(polygon, 1, 0, x)
        return [clip(right, 0, 1, y), clip(left, 0, -1, -y)]
    if field == "stripes":
        pitch = width / 5
        starts = [x + pitch * (i + 0.5) for i in (-4, -2, 0, 2)]
        return [clip(clip(polygon, -1, 0, -s), 1, 0, s + pitch) for s in starts]
    if field == "chevrons":
        pitch, slope = height / 4.5, 0.6 * height / width
        parts = []
        for side in (-1, 1):
            half = clip(polygon, -side, 0, -side * x)
            for i in (-5, -3, -1, 1, 3):
                # On this half a chevron's edge is the line y - slope * |x| = constant.
                top = y + pitch * (i + 0.65) - slope * side * x
                parts.append(clip(clip(half, side * slope, -1, -top), -side * slope, 1, top + pitch))
        return parts
    raise ValueError(f"{field} is not a field; expected one of {', '.join(FIELDS)}")


@lru_cache(maxsize=64)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def draw_lettering(pen: ImageDraw.ImageDraw, lettering: Lettering, scale_px: int, fill: int | RGB) -> None:
    """Write a line of text as large as its band and the picture allow; `scale_px` is the unit's length."""
    height = (lettering.bottom - lettering.top) * scale_px
    font = _font(max(4, round(height * 1.3)))
    left, top, right, bottom = pen.textbbox((0, 0), lettering.text, font=font, anchor="ls")
    widest = 0.96 * scale_px
    if right - left > widest:
        font = _font(max(4, int(height * 1.3 * widest / (right - left))))
        left, top, right, bottom = pen.textbbox((0, 0), lettering.text, font=font, anchor="ls")
    x = scale_px / 2 - (left + right) / 2
    y = (lettering.top + lettering.bottom) / 2 * scale_px - (top + bottom) / 2
    pen.text(
        (x, y),
        lettering.text,
        font=font,
        fill=fill,
        anchor="ls",
        stroke_width=height * 0.03,
        stroke_fill=fill,
    )


def _crest_polygon(shape: str, layout: Layout) -> Polygon:
    (x, y), half_w, half_h = layout.centre, layout.width / 2, layout.height / 2
    return [(x + px * half_w, y + py * half_h) for px, py in shape_outline(shape)]


def _paint(
    image: Image.Image,
    shape: str | None,
    field: str,
    charge: str | None,
    layout: Layout,
    inks: Mapping[int, int | RGB],
    trim: int | RGB | None,
    rim: int | RGB | None,
) -> None:
    """Paint the regions of a crest on a square picture, each in its ink."""
    scale = image.width
    pen = ImageDraw.Draw(image)

    def fill(polygon: Polygon, ink: int | RGB) -> None:
        if len(polygon) > 2:
            pen.polygon([(x * scale - 0.5, y * scale - 0.5) for x, y in polygon], fill=ink)

    heart = _HEART_OF.get(shape or "", (0.0, 0.0))
    x = layout.centre[0] + heart[0] * layout.width / 2
    y = layout.centre[1] + heart[1] * layout.height / 2
    if shape is not None:
        body = _crest_polygon(shape, layout)
        if layout.outline_colour is not None:
            fill(body, inks[OUTLINE] if rim is None else rim)
            if rim is not None:
                fill(inset(body, layout.rim_width), inks[OUTLINE])
            body = inset(body, layout.outline_width)
        if trim is not None:
            # The trim is a line of its own width, a line's width inside the outline.
            fill(body, inks[FIELD_A])
            fill(inset(body, layout.trim_width), trim)
            body = inset(body, 2 * layout.trim_width)
        fill(body, inks[FIELD_A])
        for part in second_colour_parts(body, field, x, y, layout.width, layout.height):
            fill(part, inks[FIELD_B])
    if charge is not None:
        room = layout.charge_scale * _CHARGE_ROOM.get(shape or "", 1.0)
        side = max(4, round(room * min(layout.width, layout.height) * scale))
        corner = (
            round((x + layout.charge_offset[0]) * scale - side / 2),
            round((y + layout.charge_offset[1]) * scale - side / 2),
        )
        image.paste(inks[CHARGE], corner, charge_mask(charge, side))
    if layout.lettering is not None and IGNORE in inks:
        draw_lettering(pen, layout.lettering, scale, inks[IGNORE])


def _supersampling(side_px: int) -> int:
    return 4 if side_px <= 160 else 3


def draw(
    spec: Specification,
    layout: Layout,
    side_px: int,
    background: str | RGB = "white",
    *,
    show_shape: bool = True,
    show_charge: bool = True,
) -> Image.Image:
    """Draw a crest.

    Args:
        spec: what the crest shows.
        layout: where it sits and how it is dressed.
        side_px: side of the picture.
        background: a colour word or RGB.
        show_shape: False draws the charge alone.
        show_charge: False draws the shape alone.
    Returns:
        An antialiased RGB picture, side_px square.
    """
    ground = COLOUR_WORDS[background] if isinstance(background, str) else background
    factor = _supersampling(side_px)
    large = Image.new("RGB", (side_px * factor, side_px * factor), ground)
    inks: dict[int, int | RGB] = {
        FIELD_A: COLOUR_WORDS[spec.field_colour],
        FIELD_B: COLOUR_WORDS[spec.second_colour or spec.field_colour],
        CHARGE: COLOUR_WORDS[spec.charge_colour],
    }
    if layout.outline_colour is not None:
        inks[OUTLINE] = COLOUR_WORDS[layout.outline_colour]
    if layout.lettering is not None:
        inks[IGNORE] = COLOUR_WORDS[layout.lettering.colour]
    trim = None if layout.trim_colour is None else COLOUR_WORDS[layout.trim_colour]
    rim = None if layout.rim_colour is None else COLOUR_WORDS[layout.rim_colour]
    _paint(
        large,
        spec.shape if show_shape else None,
        spec.field,
        spec.charge if show_charge else None,
        layout,
        inks,
        trim,
        rim,
    )
    if layout.bar is not None:
        bar, scale = layout.bar, large.width
        corners = (0.5 - bar.width / 2, bar.top, 0.5 + bar.width / 2, bar.bottom)
        ImageDraw.Draw(large).rectangle([x * scale - 0.5 for x in corners], fill=COLOUR_WORDS[bar.colour])
    return large.reduce(factor)


def coverage_map(shape: str, field: str, charge: str, layout: Layout, side_px: int) -> NDArray[np.float32]:
    """How much of each pixel each region covers.

    Returns:
        coverage (6, H, W), summing to 1 over the labels within rounding to 8 bits; trim and rim count as
        IGNORE, lettering is left out.
    """
    factor = _supersampling(side_px)
    large = Image.new("L", (side_px * factor, side_px * factor), BACKGROUND)
    inks: dict[int, int | RGB] = {label: label for label in (OUTLINE, FIELD_A, FIELD_B, CHARGE)}
    trim, rim = (None if colour is None else IGNORE for colour in (layout.trim_colour, layout.rim_colour))
    _paint(large, shape, field, charge, layout, inks, trim, rim)
    shares = []
    for label in range(6):
        mask = large.point([255 if value == label else 0 for value in range(256)])
        shares.append(np.asarray(mask.reduce(factor), dtype=np.float32))
    return np.stack(shares) / np.float32(255)


def label_map(shape: str, field: str, charge: str, layout: Layout, side_px: int) -> NDArray[np.uint8]:
    """Which region covers most of each pixel, for the judge.

    Returns:
        labels (H, W): BACKGROUND, OUTLINE, FIELD_A, FIELD_B, CHARGE, or IGNORE for trim and rim and for the
        whole band of the lettering.
    """
    coverage = coverage_map(shape, field, charge, layout, side_px)
    labels: NDArray[np.uint8] = coverage.argmax(axis=0).astype(np.uint8)
    if layout.lettering is not None:
        labels[band_rows(layout.lettering, side_px)] = IGNORE
    return labels


def band_rows(lettering: Lettering, side_px: int) -> slice:
    """The rows that lettering may touch."""
    return slice(int(lettering.top * side_px), math.ceil(lettering.bottom * side_px))
