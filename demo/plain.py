"""The broad, plain worlds of the stock weights: crests on white, with plain captions.

Four of them: `plain_logo` shows crests anywhere and in many proportions (what CLIP learns to read),
`described_logo` the same with captions that say what is seen (what the captioner learns to write),
`centred_logo` crests in one plain proportion, or smaller above a line (what the prior and the decoder learn
to draw), `reference_logo` is the other data of the independent reference CLIP, club-like drawings among them.
No club style and no lettering but in the last, though captions of the first and third may say more than is
seen; held-out combinations occur in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from PIL import Image

from demo.heraldry import (
    CHARGES,
    COLOURS,
    FIELDS,
    Bar,
    Layout,
    Lettering,
    Specification,
    draw,
    is_held_out,
    random_specification,
)
from demo.wording import (
    Extras,
    Inscription,
    broad_caption,
    club_caption,
    full_caption,
    pick,
    plain_caption,
)

_PLAIN_STREAM: Final = 1
_REFERENCE_STREAM: Final = 2
_CENTRED_STREAM: Final = 3

Tell: TypeAlias = Callable[..., str]
"""broad_caption or full_caption"""

CHARGE_ALONE_SHARE: Final = 0.05
SHAPE_ALONE_SHARE: Final = 0.05
CHARGE_READING_SHARE: Final = 0.2
"""Charges alone in CLIP's world, large and small."""
POPULAR_SHARE: Final = 0.4
"""Crests of CLIP's world in a popular shape and scheme, which differ in the charge alone; without them a
batch is told apart by its colours."""
POPULAR_SHAPES: Final = ("shield", "circle")
POPULAR_SCHEMES: Final = (("navy", "white"), ("red", "white"), ("black", "gold"), ("white", "blue"))
"""Field and charge."""
POPULAR_PAIRS: Final = (("navy", "gold"), ("red", "black"), ("green", "white"))
"""Of two-coloured fields, in either order; such crests differ in order and pattern."""
POPULAR_PAIR_SHARE: Final = 0.4
PAIR_CHARGES: Final = (("star", "silver"), ("crown", "silver"))
OUTLINE_SHARE: Final = 0.45
BAR_SHARE: Final = 0.3
"""Of crests with a line below."""


@dataclass(frozen=True)
class PlainLogo:
    """One picture of the plain world."""

    index: int
    draw: Callable[[], Image.Image]
    captions: tuple[str, ...]
    """At least two wordings of the same picture."""
    specification: Specification | None
    """None where the picture shows a charge or a shape alone."""

    @property
    def image(self) -> Image.Image:
        """The picture, drawn anew at every call."""
        return self.draw()


def _layout(
    rng: np.random.Generator, spec: Specification, widths: tuple[float, float], aspects: tuple[float, float]
) -> Layout:
    """A crest of random proportions somewhere on the picture, outlined where white would vanish on white."""
    width = rng.uniform(*widths)
    height = min(0.94, width * rng.uniform(*aspects))
    slack_x, slack_y = (0.97 - width) / 2, (0.97 - height) / 2
    outline_width, outline_colour = 0.0, None
    if "white" in spec.field_colours:
        outline_width, outline_colour = rng.uniform(0.012, 0.022), "gray"
    elif rng.random() < 0.2:
        outline_width, outline_colour = rng.uniform(0.012, 0.026), pick(rng, ("black", "dark gray", "navy"))
    return Layout(
        centre=(0.5 + slack_x * rng.uniform(-0.8, 0.8), 0.5 + slack_y * rng.uniform(-0.8, 0.8)),
        width=width,
        height=height,
        charge_scale=rng.uniform(0.38, 0.6),
        charge_offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        outline_width=outline_width,
        outline_colour=outline_colour,
    )


def _captions(rng: np.random.Generator, spec: Specification, count: int, **shown: bool) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[plain_caption(rng, spec, **shown)] = None
    return tuple(found)


def _popular(rng: np.random.Generator) -> Specification:
    while True:
        shape = pick(rng, POPULAR_SHAPES)
        if rng.random() < POPULAR_PAIR_SHARE:
            pair, (charge, charge_colour) = pick(rng, POPULAR_PAIRS), pick(rng, PAIR_CHARGES)
            first, second = pair if rng.random() < 0.5 else pair[::-1]
            spec = Specification(shape, pick(rng, FIELDS[1:]), first, second, charge, charge_colour)
        else:
            field_colour, charge_colour = pick(rng, POPULAR_SCHEMES)
            spec = Specification(shape, "plain", field_colour, None, pick(rng, CHARGES), charge_colour)
        if not is_held_out(spec):
            return spec


def _extras(rng: np.random.Generator, spec: Specification) -> Extras:
    """An outline and a line below for some, in colours that show; white on white is always outlined."""
    visible = [colour for colour in ("gray", "dark gray", *COLOURS) if colour != "white"]
    outlines = [colour for colour in visible if colour not in spec.field_colours]
    is_outlined = "white" in spec.field_colours or rng.random() < OUTLINE_SHARE
    return Extras(
        outline_colour=pick(rng, outlines) if is_outlined else None,
        bar_colour=pick(rng, visible) if rng.random() < BAR_SHARE else None,
    )


def _told(
    rng: np.random.Generator, spec: Specification, extras: Extras, count: int, tell: Tell, **shown: bool
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[tell(rng, spec, extras, **shown)] = None
    return tuple(found)


def _plain_layout(rng: np.random.Generator, extras: Extras) -> Layout:
    """A crest of random proportions somewhere on the picture, or on the part of it above the line."""
    bar = None
    room_x, room_y = 0.97, 0.97
    if extras.bar_colour is not None:
        room_y = rng.uniform(0.7, 0.84)
        thickness = rng.uniform(0.03, 0.09)
        top = rng.uniform(room_y + 0.02, 0.97 - thickness)
        bar = Bar(extras.bar_colour, top, top + thickness, rng.uniform(0.3, 0.95))
    width = rng.uniform(0.55, 0.9) * min(1.0, room_y / 0.9)
    height = min(room_y - 0.03, width * rng.uniform(0.8, 1.25))
    slack_x, slack_y = (room_x - width) / 2, (room_y - height) / 2
    return Layout(
        centre=(
            0.5 + slack_x * rng.uniform(-0.8, 0.8),
            room_y / 2 + 0.015 + slack_y * rng.uniform(-0.8, 0.8),
        ),
        width=width,
        height=height,
        charge_scale=rng.uniform(0.38, 0.6),
        charge_offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        outline_width=rng.uniform(0.012, 0.03) if extras.outline_colour else 0.0,
        outline_colour=extras.outline_colour,
        bar=bar,
    )


def _centred_layout(rng: np.random.Generator, extras: Extras) -> Layout:
    size, shift = rng.uniform(0.71, 0.75), rng.uniform(-0.008, 0.008, size=2)
    centre_y, bar = 0.5, None
    if extras.bar_colour is not None:
        size, centre_y = size - 0.11, 0.42
        bar = Bar(extras.bar_colour, 0.83, 0.88, 0.62)
    return Layout(
        centre=(0.5 + shift[0], centre_y + shift[1]),
        width=size,
        height=size * rng.uniform(0.98, 1.02),
        charge_scale=rng.uniform(0.45, 0.48),
        outline_width=0.02 if extras.outline_colour else 0.0,
        outline_colour=extras.outline_colour,
        bar=bar,
    )


def _in_part(
    rng: np.random.Generator,
    index: int,
    spec: Specification,
    extras: Extras,
    layout: Layout,
    side_px: int,
    tell: Tell = broad_caption,
) -> PlainLogo:
    """The shape alone now and then, else the whole crest."""
    if rng.random() < SHAPE_ALONE_SHARE:
        shape = partial(draw, spec, layout, side_px, show_charge=False)
        return PlainLogo(index, shape, _told(rng, spec, extras, 2, tell, show_charge=False), None)
    return PlainLogo(index, partial(draw, spec, layout, side_px), _told(rng, spec, extras, 3, tell), spec)


def _charge_alone(
    rng: np.random.Generator, index: int, layout: Layout, side_px: int, tell: Tell = broad_caption
) -> PlainLogo:
    """A charge without a crest, in a colour that shows."""
    spec = random_specification(rng)
    while spec.charge_colour == "white":
        spec = random_specification(rng)
    charge = partial(draw, spec, layout, side_px, show_shape=False)
    return PlainLogo(index, charge, _told(rng, spec, Extras(), 2, tell, show_shape=False), None)


def _anywhere(rng: np.random.Generator, index: int, side_px: int, tell: Tell) -> PlainLogo:
    part = rng.random()
    if part < CHARGE_READING_SHARE:
        size = rng.uniform(0.35, 0.85)
        slack = (0.96 - size) / 2
        centre = (0.5 + slack * rng.uniform(-1, 1), 0.5 + slack * rng.uniform(-1, 1))
        layout = Layout(centre=centre, width=size, height=size, charge_scale=1.0)
        return _charge_alone(rng, index, layout, side_px, tell)
    spec = _popular(rng) if part > 1 - POPULAR_SHARE else random_specification(rng)
    extras = _extras(rng, spec)
    return _in_part(rng, index, spec, extras, _plain_layout(rng, extras), side_px, tell)


def plain_logo(seed: int, index: int, side_px: int = 64) -> PlainLogo:
    """The logo at this place of the endless plain world of this seed."""
    rng = np.random.default_rng([seed, _PLAIN_STREAM, index])
    return _anywhere(rng, index, side_px, broad_caption)


def described_logo(seed: int, index: int, side_px: int = 64) -> PlainLogo:
    """The picture of `plain_logo` at this place, with captions that say what is seen and no more."""
    rng = np.random.default_rng([seed, _PLAIN_STREAM, index])
    return _anywhere(rng, index, side_px, full_caption)


def centred_logo(seed: int, index: int, side_px: int = 64) -> PlainLogo:
    """The logo at this place of the plain world whose crests stand in the middle, about equally large."""
    rng = np.random.default_rng([seed, _CENTRED_STREAM, index])
    if rng.random() < CHARGE_ALONE_SHARE:
        return _charge_alone(rng, index, Layout(width=0.6, height=0.6, charge_scale=1.0), side_px)
    spec = random_specification(rng)
    extras = _extras(rng, spec)
    return _in_part(rng, index, spec, extras, _centred_layout(rng, extras), side_px)


def plain_logos(seed: int, n: int, side_px: int = 64) -> Iterator[PlainLogo]:
    """The first n logos of the plain world of this seed."""
    return (plain_logo(seed, index, side_px) for index in range(n))


def _random_lettering(rng: np.random.Generator) -> Inscription:
    is_initials = bool(rng.random() < 0.35)
    length = 2 if is_initials else int(rng.integers(4, 10))
    text = "".join(chr(65 + int(letter)) for letter in rng.integers(0, 26, length))
    return Inscription(text, pick(rng, [colour for colour in COLOURS if colour != "white"]), is_initials)


def reference_logo(seed: int, index: int, side_px: int = 64) -> PlainLogo:
    """The logo at this place of the reference CLIP's world: plain ones, and club-like ones of any style."""
    rng = np.random.default_rng([seed, _REFERENCE_STREAM, index])
    spec = random_specification(rng, plain_share=0.4)
    if rng.random() < 0.4:
        layout = _layout(rng, spec, (0.5, 0.96), (0.75, 1.3))
        captions = (*_captions(rng, spec, 2), club_caption(rng, spec, outline_colour=layout.outline_colour))
        return PlainLogo(index, partial(draw, spec, layout, side_px), captions, spec)
    # Neither white on the white ground nor a field's own colour would be seen as an outline.
    unseen = ("white", *spec.field_colours)
    outlines = ("black", "black", "navy", "silver", spec.charge_colour, *COLOURS)
    outline = pick(rng, [colour for colour in outlines if colour not in unseen])
    inscription = _random_lettering(rng) if rng.random() < 0.55 else None
    top, bottom = 0.03, 0.75 if inscription else 0.97
    height = (bottom - top) * rng.uniform(0.9, 1.0)
    layout = Layout(
        centre=(0.5 + rng.uniform(-0.02, 0.02), (top + bottom) / 2),
        width=min(0.95, height * rng.uniform(0.85, 1.15)),
        height=height,
        charge_scale=rng.uniform(0.44, 0.6),
        outline_width=rng.uniform(0.018, 0.06),
        outline_colour=outline,
        trim_colour=spec.charge_colour if rng.random() < 0.15 else None,
        lettering=Lettering(inscription.text, inscription.colour) if inscription else None,
    )
    wordings: dict[str, None] = {}
    while len(wordings) < 2:
        wordings[club_caption(rng, spec, outline_colour=outline, inscription=inscription)] = None
    return PlainLogo(index, partial(draw, spec, layout, side_px), (*wordings, *_captions(rng, spec, 1)), spec)
