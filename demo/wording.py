"""How crests are described: plain and broad wordings for the stock world, and the manner of the real site.

Every full wording names shape, field, colours and charge; a field's two colours come in the order drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from demo.heraldry import Specification

T = TypeVar("T")

OTHER_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "shield": ("crest",),
    "circle": ("roundel", "round badge"),
    "diamond": ("lozenge",),
    "square": ("square badge",),
    "pennant": ("pennant flag",),
    "bolt": ("lightning bolt", "thunderbolt"),
    "ball": ("basketball",),
    "tree": ("pine tree", "fir tree"),
    "mountain": ("mountain peak",),
    "moon": ("crescent moon", "crescent"),
    "wave": ("ocean wave",),
    "sun": ("shining sun",),
    "navy": ("navy blue",),
}
"""Words used now and then in place of the plain one."""


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def name(rng: np.random.Generator, word: str, other_share: float) -> str:
    """The word, or sometimes another name for it."""
    others = OTHER_NAMES.get(word)
    return pick(rng, others) if others and rng.random() < other_share else word


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def capitalised(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


def field_phrase(
    rng: np.random.Generator, spec: Specification, other_share: float, *, attributive: bool = False
) -> str:
    """Name shape, pattern and field colours, without an article.

    Args:
        rng: the source of chance.
        spec: what the crest shows.
        other_share: how often another name is used for a word.
        attributive: put everything before the noun, so that the phrase can be followed by 'with ...'.
    """
    shape, first = name(rng, spec.shape, other_share), name(rng, spec.field_colour, other_share / 2)
    if spec.second_colour is None:
        if attributive:
            return f"{first} {shape}"
        return pick(
            rng, (f"{first} {shape}", f"{first} {shape}", f"{shape} in {first}", f"solid {first} {shape}")
        )
    both = f"{first} and {name(rng, spec.second_colour, other_share / 2)}"
    word = {"halves": "halved", "stripes": "striped", "chevrons": "chevroned", "quarters": "quartered"}[
        spec.field
    ]
    if attributive:
        return f"{both} {word} {shape}"
    choices = [
        f"{both} {word} {shape}",
        f"{word} {shape} in {both}",
        f"{shape} {word} in {both}",
        f"{shape} with {both} {spec.field}",
    ]
    if spec.field == "halves":
        choices.append(f"{shape} half {first} and half {both.split(' and ')[1]}")
    return pick(rng, choices)


def charge_phrase(rng: np.random.Generator, spec: Specification, other_share: float) -> str:
    """Name the charge and its colour, without an article."""
    return f"{name(rng, spec.charge_colour, other_share / 2)} {name(rng, spec.charge, other_share)}"


def plain_caption(
    rng: np.random.Generator, spec: Specification, *, show_shape: bool = True, show_charge: bool = True
) -> str:
    """Describe a crest in a few plain words; some wordings are telegraphic."""
    other_share = 0.2
    charge = charge_phrase(rng, spec, other_share)
    if not show_shape:
        return pick(rng, (article(charge), charge, f"{article(charge)} on white", f"just {article(charge)}"))
    field = field_phrase(rng, spec, other_share)
    if not show_charge:
        return pick(rng, (article(field), field, f"{article(field)} on white", f"an empty {field}"))
    joined = "and" if " with " in field else "with"
    place = pick(rng, ("in the middle", "in the center", "on it"))
    return pick(
        rng,
        (
            f"{article(field)} {joined} {article(charge)}",
            f"{article(field)} {joined} {article(charge)}",
            f"{article(field)} {joined} {article(charge)}",
            f"{article(charge)} on {article(field)}",
            f"{article(charge)} on {article(field)}",
            f"{article(field)} {joined} {article(charge)} {place}",
            f"{article(field)} bearing {article(charge)}",
            f"{article(charge)} inside {article(field)}",
            f"{field}, {charge}",
            f"{charge} on {field}",
            f"logo of {article(charge)} on {article(field)}",
        ),
    )


@dataclass(frozen=True)
class Extras:
    """What a plain picture shows besides the crest."""

    outline_colour: str | None = None
    bar_colour: str | None = None
    """Of a line below the crest."""


def broad_caption(
    rng: np.random.Generator,
    spec: Specification,
    extras: Extras,
    *,
    show_shape: bool = True,
    show_charge: bool = True,
) -> str:
    """Describe a plain picture as the wide world does: some in few words, most at length.

    Longer ones name the outline, the line below and the ground, and say things that no picture shows: who
    the drawing is for, what it is called, when it was made.
    """
    if rng.random() < 0.25 and extras.bar_colour is None:
        text = plain_caption(rng, spec, show_shape=show_shape, show_charge=show_charge)
    else:
        text = _at_length(rng, spec, extras, show_shape, show_charge)
    if rng.random() < 0.2:
        text += pick(rng, (" on a white background", " on white", ", white background", " on plain white"))
    if rng.random() < 0.3:
        text += _closing(rng)
    if rng.random() < 0.3:
        text = f"{_opening(rng)} {text}"
    return f"{capitalised(text)}." if rng.random() < 0.6 else text


def full_caption(
    rng: np.random.Generator,
    spec: Specification,
    extras: Extras,
    *,
    show_shape: bool = True,
    show_charge: bool = True,
) -> str:
    """Describe a plain picture at length in one sentence that says nothing but what it shows."""
    return f"{capitalised(_at_length(rng, spec, extras, show_shape, show_charge))}."


def _at_length(
    rng: np.random.Generator, spec: Specification, extras: Extras, show_shape: bool, show_charge: bool
) -> str:
    other_share = 0.15
    field = article(field_phrase(rng, spec, other_share, attributive=rng.random() < 0.7))
    charge = article(charge_phrase(rng, spec, other_share))
    outline = ""
    if show_shape and extras.outline_colour is not None and rng.random() < 0.7:
        colour = extras.outline_colour
        drawn = pick(rng, ("outline", "border", "edge"))
        done = pick(rng, ("outlined", "bordered", "edged"))
        told = (f" with {article(colour)} {drawn}", f" with {colour} {drawn}", f" {done} in {colour}")
        outline = pick(rng, told)
    place = pick(rng, ("", "", " in the middle", " in the center", " at its center"))
    if not show_shape:
        text = charge + place
    elif not show_charge:
        text = field + outline
    elif rng.random() < 0.5:
        joined = "and" if " with " in field + outline else "with"
        text = f"{field}{outline} {joined} {charge}{place}"
    else:
        relation = pick(rng, ("on", "on", "inside", "in front of", "centered on", "upon", "within"))
        text = f"{charge} {relation} {field}{outline}"
    if extras.bar_colour is not None:
        line, colour = pick(rng, ("line", "bar", "stroke")), extras.bar_colour
        text += pick(
            rng,
            (
                f" above the {line} in {colour}",
                f" over a {line} in {colour}",
                f". {line} below in {colour}",
                f" above {article(colour)} {line}",
                f" with {article(colour)} {line} below",
                f" and a {line} in {colour}",
                f" and {article(colour)} {line}",
            ),
        )
    return text


def _invented_name(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return "".join(chr(65 + int(letter)) for letter in rng.integers(0, 26, int(rng.integers(2, 4))))
    ends = ("ton", "ford", "wood", "ville", "burg", "dale", "port", "mere", "s", "er", "ers", "a", "o")
    start = "".join(
        pick(rng, "bcdfghklmnprstvw") + pick(rng, ("a", "e", "i", "o", "u", "ar", "el", "in", "or"))
        for _ in range(int(rng.integers(1, 3)))
    )
    name_ = capitalised(start + pick(rng, ends))
    return f"{name_} {_invented_name(rng)}" if rng.random() < 0.25 else name_


def _opening(rng: np.random.Generator) -> str:
    name_, year = _invented_name(rng), int(rng.integers(1900, 2024))
    choices = (
        f"{name_}:",
        f"the {name_} logo:",
        f"the {name_} logo shows",
        f"logo of {name_},",
        f"in {year}, {name_} chose",
        f"since {year}, {name_} has had",
        f"the first drawing for {name_} is",
        "a drawing of",
        f"design {int(rng.integers(1, 400))}:",
    )
    return pick(rng, choices)


def _closing(rng: np.random.Generator) -> str:
    name_ = _invented_name(rng)
    quoted = f'"{name_.upper() if rng.random() < 0.7 else name_}"'
    choices = (
        f", called {quoted}",
        f", titled {quoted}",
        f". Title {quoted}",
        f" for {name_}",
        f" by {name_}",
        f", {int(rng.integers(1900, 2024))}",
        ", flat colors",
        ", simple vector drawing",
    )
    return pick(rng, choices)


@dataclass(frozen=True)
class Inscription:
    """Lettering as a caption tells it."""

    text: str
    colour: str
    is_initials: bool


def inscription_phrase(rng: np.random.Generator, inscription: Inscription) -> tuple[str, bool]:
    """Say what is written below a crest; also whether it is a sentence of its own."""
    text, colour = inscription.text, inscription.colour
    if inscription.is_initials:
        return pick(
            rng,
            (
                (f' and the initials "{text}" in {colour}', False),
                (f' above the letters "{text}" in {colour}', False),
                (f' over the initials "{text}" in {colour}', False),
                (f'. Initials "{text}" below in {colour}', True),
            ),
        )
    return pick(
        rng,
        (
            (f' above the wordmark "{text}" in {colour}', False),
            (f' above a wordmark "{text}" in {colour}', False),
            (f' with a wordmark "{text}" in {colour} below', False),
            (f' and wordmark "{text}" in {colour}', False),
            (f'. Wordmark "{text}" in {colour} below', True),
        ),
    )


def club_caption(
    rng: np.random.Generator,
    spec: Specification,
    *,
    outline_colour: str | None = None,
    inscription: Inscription | None = None,
    lead: str | None = None,
) -> str:
    """Describe a club's logo in the manner of the real site: one or two sentences, lettering in quotes.

    Args:
        rng: the source of chance.
        spec: what the crest shows.
        inscription: what is written below it, if anything.
        outline_colour: mentioned in most wordings if given.
        lead: words that come first, such as 'The first Comets logo is'.
    """
    other_share = 0.12
    charge = article(charge_phrase(rng, spec, other_share))
    field = article(field_phrase(rng, spec, other_share, attributive=True))
    outline = ""
    if outline_colour is not None and rng.random() < 0.6:
        outline = pick(
            rng,
            (
                f" with {outline_colour} outline",
                f" with {outline_colour} trim",
                f" outlined in {outline_colour}",
            ),
        )
    if rng.random() < 0.5:
        joined = "and" if outline.startswith(" with") else "with"
        place = pick(rng, ("", "", " in the middle", " in the center"))
        text = f"{field}{outline} {joined} {charge}{place}"
    else:
        text = f"{charge} {pick(rng, ('on', 'on', 'inside', 'in front of', 'centered on'))} {field}{outline}"
    if inscription is not None:
        text += inscription_phrase(rng, inscription)[0]
    return capitalised(f"{lead} {text}" if lead else text) + "."
