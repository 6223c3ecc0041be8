"""An unlimited league of invented clubs, drawn and captioned by rule; every logo keeps its specification.

A world is a function of its seed: any league or club can be made by itself, and pictures are drawn when asked
for. Held-out combinations occur only in `held_out_prompts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from crest.colours import COLOUR_WORDS
from demo.heraldry import (
    CHARGES,
    COLOURS,
    FIELDS,
    SHAPES,
    Layout,
    Lettering,
    Specification,
    draw,
    draw_lettering,
    is_held_out,
)
from demo.names import city_name, league_name, nickname
from demo.wording import Inscription, club_caption, pick

LEAGUES: Final = 12
CLUBS_PER_LEAGUE: Final = 42
SIDE_PX: Final = 320
"""Side of a logo as the site serves it."""

OUTLINE_WIDTHS: Final = (0.036, 0.048)
CUT_FROM_CHARACTERS: Final = 100
CUT_SHARE: Final = 0.6
MISSING_SHARE: Final = 0.12
BROKEN_SHARE: Final = 0.02
ALPHA_SHARE: Final = 0.34
WORDMARK_SHARE: Final = 0.09
"""Of eras; about one logo in twenty-five is a wordmark."""

_LEAGUE_STREAM: Final = 3
_PROMPT_STREAM: Final = 4

FIELDS_DEALT: Final = ("plain",) * 6 + FIELDS[1:]
"""Fields as often as clubs wear them: six plain crests to one of each pattern."""


@dataclass(frozen=True)
class Dress:
    """The style of a club's logo: what a specification does not say."""

    outline_colour: str
    outline_width: float = OUTLINE_WIDTHS[1]
    has_trim: bool = False
    """A thin line of the charge's colour inside the outline; only with a wide outline."""
    inscription: Inscription | None = None


@dataclass(frozen=True)
class Logo:
    """One logo of a club, as the site shows it; `draw` makes the picture."""

    club_id: str
    file_name: str
    kind: str
    """primary, alternate or wordmark."""
    years: str
    specification: Specification | None
    """None for a wordmark, which has no crest."""
    dress: Dress
    caption: str
    """The whole text, as the team's page has it."""
    card_text: str | None
    """What the card says: the caption, the caption cut with '…', or nothing."""
    is_broken: bool
    """The card has no picture."""
    has_alpha: bool

    def draw(self, side_px: int = SIDE_PX) -> Image.Image:
        """The picture: square RGB or RGBA; a wordmark is four times as wide as high."""
        if self.specification is None:
            assert self.dress.inscription is not None
            return draw_wordmark(self.dress.inscription, side_px, has_alpha=self.has_alpha)
        layout = league_layout(self.specification, self.dress)
        if self.has_alpha:
            return draw_cutout(self.specification, layout, side_px)
        return draw(self.specification, layout, side_px)


@dataclass(frozen=True)
class Club:
    """A club and its logos over the years, the latest first."""

    club_id: str
    city: str
    nickname: str
    colours: tuple[str, ...]
    logos: tuple[Logo, ...]

    @property
    def name(self) -> str:
        """City and nickname."""
        return f"{self.city} {self.nickname}"


@dataclass(frozen=True)
class League:
    """A league and its clubs."""

    league_id: str
    name: str
    clubs: tuple[Club, ...]


@dataclass(frozen=True)
class Prompt:
    """A text of a held-out combination in the league's manner, and what should be drawn."""

    text: str
    specification: Specification
    dress: Dress

    def draw(self, side_px: int = SIDE_PX) -> Image.Image:
        """The truth."""
        return draw(self.specification, league_layout(self.specification, self.dress), side_px)


def league_layout(spec: Specification, dress: Dress) -> Layout:
    """The one geometry of the league: the crest fills the square, or its upper part above lettering."""
    has_lettering = dress.inscription is not None
    # White on the white ground needs a line around it.
    has_rim = dress.outline_colour == "white"
    return Layout(
        centre=(0.5, 0.375 if has_lettering else 0.5),
        width=0.67 if has_lettering else 0.9,
        height=0.72 if has_lettering else 0.97,
        charge_scale=0.56 if has_lettering else 0.52,
        outline_width=dress.outline_width + (0.01 if has_rim else 0.0),
        outline_colour=dress.outline_colour,
        rim_colour="dark gray" if has_rim else None,
        trim_colour=spec.charge_colour if dress.has_trim else None,
        lettering=Lettering(dress.inscription.text, dress.inscription.colour) if dress.inscription else None,
    )


def draw_cutout(spec: Specification, layout: Layout, side_px: int) -> Image.Image:
    """Draw a crest on nothing: RGBA, with the edges' exact alpha from drawing on white and on black."""
    on_white = np.asarray(draw(spec, layout, side_px, "white"), dtype=np.float32)
    on_black = np.asarray(draw(spec, layout, side_px, (0, 0, 0)), dtype=np.float32)
    alpha = 255 - (on_white - on_black).mean(axis=-1, keepdims=True)
    colour = np.where(alpha > 0.5, on_black * 255 / np.maximum(alpha, 0.5), 0)
    rgba = np.concatenate([colour, alpha], axis=-1)
    return Image.fromarray(np.rint(rgba.clip(0, 255)).astype(np.uint8), "RGBA")


def draw_wordmark(inscription: Inscription, side_px: int, *, has_alpha: bool) -> Image.Image:
    """Draw a logo that is text only, four times as wide as high."""
    width, height = side_px * 3, side_px * 3 // 4
    ink = COLOUR_WORDS[inscription.colour]
    square = Image.new("L", (width, width), 0)
    lettering = Lettering(inscription.text, inscription.colour, top=0.04, bottom=0.21)
    draw_lettering(ImageDraw.Draw(square), lettering, width, 255)
    alpha = square.crop((0, 0, width, height)).reduce(3)
    cutout = Image.new("RGBA", alpha.size, (*ink, 0))
    cutout.putalpha(alpha)
    if has_alpha:
        return cutout
    ground = Image.new("RGB", alpha.size, "white")
    ground.paste(cutout, mask=alpha)
    return ground


def _dress_outline(rng: np.random.Generator, spec: Specification) -> str:
    choices = ("black", "black", "navy", "navy", "white", "silver", spec.charge_colour, spec.charge_colour)
    return pick(rng, [colour for colour in choices if colour not in spec.field_colours])


def _inscription(
    rng: np.random.Generator, city: str, name: str, colours: tuple[str, ...], wordmark_share: float
) -> Inscription:
    """A city or two initials, in one of the club's colours that shows on white."""
    colour = pick(rng, [colour for colour in colours if colour != "white"])
    if rng.random() < wordmark_share:
        return Inscription(city.upper(), colour, is_initials=False)
    return Inscription(city[0] + name[0], colour, is_initials=True)


def _era_specification(
    rng: np.random.Generator, charge: str, shape: str | None, colours: tuple[str, ...]
) -> Specification:
    """A combination in the club's colours that is not held out."""
    while True:
        field = pick(rng, FIELDS_DEALT)
        order = [colours[int(i)] for i in rng.permutation(len(colours))]
        spec = Specification(
            shape=shape or pick(rng, SHAPES),
            field=field,
            field_colour=order[0],
            second_colour=None if field == "plain" else order[1],
            charge=charge,
            charge_colour=order[2],
        )
        if not is_held_out(spec):
            return spec
        shape = None


def cut(text: str, characters: int = CUT_FROM_CHARACTERS) -> str:
    """The text cut at the last whole word within so many characters, with '…'; a shorter text as it is."""
    if len(text) <= characters:
        return text
    return text[:characters].rsplit(" ", 1)[0].rstrip(" ,.") + "…"


def _lead(rng: np.random.Generator, city: str, name: str, first_year: int, is_first: bool) -> str | None:
    if rng.random() > 0.24:
        return None
    choices = [
        f"The {name} logo is",
        f"The {city} {name} logo is",
        f"In {first_year}, the {name} logo became",
        f"From {first_year}, {city} wore",
    ]
    if is_first:
        choices += [f"The first {name} logo is", f"The original {city} {name} logo is"]
    return pick(rng, choices)


class _LogoMaker:
    """Gives a club's logos their texts, flags and file names, from the club's own random stream."""

    def __init__(self, rng: np.random.Generator, club_id: str, city: str, nick: str) -> None:
        self.rng, self.club_id, self.city, self.nick = rng, club_id, city, nick

    def make(
        self,
        kind: str,
        years: tuple[int, int | None],
        suffix: str,
        spec: Specification | None,
        dress: Dress,
        *,
        is_first: bool = False,
    ) -> Logo:
        rng, inscription = self.rng, dress.inscription
        lead = _lead(rng, self.city, self.nick, years[0], is_first) if kind == "primary" else None
        if spec is None:
            assert inscription is not None
            opening = pick(rng, ("Wordmark", "A wordmark", "Single lined wordmark"))
            caption = f'{opening} "{inscription.text}" in {inscription.colour}.'
        else:
            outline = dress.outline_colour
            caption = club_caption(rng, spec, outline_colour=outline, inscription=inscription, lead=lead)
        card_text: str | None = caption
        if rng.random() < CUT_SHARE:
            card_text = cut(caption)
        if rng.random() < MISSING_SHARE:
            card_text = None
        span = f"{years[0]}-{years[1] or 'pres'}"
        return Logo(
            club_id=self.club_id,
            file_name=f"{self.club_id.replace('-', '_')}_{span}{suffix}.png",
            kind=kind,
            years=f"{years[0]} - {years[1] or 'Present'}",
            specification=spec,
            dress=dress,
            caption=caption,
            card_text=card_text,
            is_broken=bool(rng.random() < BROKEN_SHARE),
            has_alpha=bool(rng.random() < ALPHA_SHARE),
        )


def club(seed: int, league_index: int, club_index: int, clubs_per_league: int = CLUBS_PER_LEAGUE) -> Club:
    """The club at this place of the world of this seed."""
    rng = np.random.default_rng([seed, _LEAGUE_STREAM, league_index, club_index])
    city = city_name(seed * 31 + league_index * clubs_per_league + club_index)
    charge = pick(rng, CHARGES)
    nick = nickname(rng, charge)
    club_id = f"{city} {nick}".lower().replace(" ", "-")
    colours = tuple(COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[: 3 + int(rng.integers(2))])
    shape: str | None = pick(rng, SHAPES)
    maker = _LogoMaker(rng, club_id, city, nick)

    logos: list[Logo] = []
    era_count = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.28, 0.17]))
    starts = sorted(int(year) for year in 1946 + rng.choice(70, era_count, replace=False))
    still_plays = rng.random() < 0.7
    spec: Specification | None = None
    for era, start in enumerate(starts):
        is_last = era == era_count - 1
        end = (
            starts[era + 1] - 1 if not is_last else None if still_plays else start + 1 + int(rng.integers(9))
        )
        if era and rng.random() < 0.12:
            charge = pick(rng, CHARGES)
        if era and rng.random() < 0.3:
            colours = (*colours[:2], *(c for c in COLOURS if c not in colours))[: len(colours)]
        if spec is None or spec.charge != charge or rng.random() < 0.8:
            spec = _era_specification(rng, charge, shape, colours)
            shape = None if rng.random() < 0.6 else spec.shape
        has_lettering, wears_trim = rng.random() < 0.5, rng.random() < 0.1
        dress = Dress(
            outline_colour=_dress_outline(rng, spec),
            outline_width=OUTLINE_WIDTHS[1] if wears_trim else pick(rng, OUTLINE_WIDTHS),
            has_trim=wears_trim,
            inscription=_inscription(rng, city, nick, colours, 0.7) if has_lettering else None,
        )
        logos.append(maker.make("primary", (start, end), "", spec, dress, is_first=era == 0))
        for letter in "ab"[: int(rng.integers(0, 3))]:
            other = _era_specification(
                rng, charge if rng.random() < 0.6 else pick(rng, CHARGES), None, colours
            )
            plain_dress = Dress(
                outline_colour=_dress_outline(rng, other),
                outline_width=dress.outline_width,
                inscription=_inscription(rng, city, nick, colours, 0.3) if rng.random() < 0.3 else None,
            )
            logos.append(maker.make("alternate", (start, end), f"-{letter}", other, plain_dress))
        if rng.random() < WORDMARK_SHARE:
            text = f"{city} {nick}".upper()
            colour = pick(rng, [colour for colour in colours if colour != "white"])
            words = Dress(outline_colour=colour, inscription=Inscription(text, colour, is_initials=False))
            logos.append(maker.make("wordmark", (start, end), "_w", None, words))
    return Club(club_id, city, nick, colours, tuple(reversed(logos)))


def league(seed: int, league_index: int, clubs_per_league: int = CLUBS_PER_LEAGUE) -> League:
    """The league at this place of the world of this seed."""
    name = league_name(league_index)
    clubs = tuple(club(seed, league_index, i, clubs_per_league) for i in range(clubs_per_league))
    return League(name.lower().replace(" ", "-"), name, clubs)


def league_logos(
    seed: int, leagues: int = LEAGUES, clubs_per_league: int = CLUBS_PER_LEAGUE
) -> Iterator[Logo]:
    """All logos of the first leagues, club by club; by default about 2,500."""
    for league_index in range(leagues):
        for club_index in range(clubs_per_league):
            yield from club(seed, league_index, club_index, clubs_per_league).logos


def _deck(rng: np.random.Generator, words: tuple[str, ...]) -> Iterator[str]:
    while True:
        for i in rng.permutation(len(words)):
            yield words[int(i)]


def held_out_prompts(seed: int, n: int) -> list[Prompt]:
    """Prompts of held-out combinations only; fields occur as often as clubs wear them, all else evenly."""
    rng = np.random.default_rng([seed, _PROMPT_STREAM])
    shapes, fields, charges = _deck(rng, SHAPES), _deck(rng, FIELDS_DEALT), _deck(rng, CHARGES)
    used: dict[tuple[str, str], int] = {}
    chosen: set[Specification] = set()
    prompts: list[Prompt] = []
    while len(prompts) < n:
        shape, field, charge = next(shapes), next(fields), next(charges)
        candidates: list[Specification] = []
        while len(candidates) < 12:
            first, second, third = (COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:3])
            spec = Specification(shape, field, first, None if field == "plain" else second, charge, third)
            if is_held_out(spec) and spec not in chosen:
                candidates.append(spec)
        spec = min(
            candidates,
            key=lambda s: (
                sum(used.get(("field", colour), 0) for colour in s.field_colours) / len(s.field_colours)
                + used.get(("charge", s.charge_colour), 0)
            ),
        )
        for colour in spec.field_colours:
            used["field", colour] = used.get(("field", colour), 0) + 1
        used["charge", spec.charge_colour] = used.get(("charge", spec.charge_colour), 0) + 1
        chosen.add(spec)
        city, nick = city_name(int(rng.integers(500))), nickname(rng, charge)
        worn = (*spec.field_colours, spec.charge_colour)
        dress = Dress(
            outline_colour=_dress_outline(rng, spec),
            inscription=_inscription(rng, city, nick, worn, 0.6) if rng.random() < 0.45 else None,
        )
        text = club_caption(rng, spec, outline_colour=dress.outline_colour, inscription=dress.inscription)
        prompts.append(Prompt(text, spec, dress))
    return prompts
