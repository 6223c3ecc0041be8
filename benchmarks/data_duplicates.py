"""How many planted near-duplicates screening finds among drawn logos, and how many others it merges.

Logos come in families of five: a crest (or a line of lettering) and four that differ from it in one
attribute, so that a method that is too generous is caught. Every logo is planted once more, changed as files
are changed on their way through the web. Turning a logo is not among the changes: a turned logo counts as
another one.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from crest.images import flatten
from crest.records import Record
from demo.heraldry import CHARGES, COLOURS, FIELDS, SHAPES, Specification, draw, random_specification
from demo.league import Dress, draw_cutout, draw_wordmark, league_layout
from demo.names import city_name
from demo.wording import Inscription, pick
from scraper.config import ScreenConfig
from scraper.likeness import Look, look_at, pack_looks
from scraper.screen import Verdicts, candidates_of, judge, key_of

FAMILY: Final = 5
SIDES_PX: Final = (200, 360)
"""Drawn sides, from and to."""
_STREAM: Final = 77
_WORDMARK_SHARE: Final = 0.06
_CITIES: Final = 300
"""Names that lettering is taken from: of one word or two, as in the demo's league."""
_GREYS: Final = ((248, 248, 248), (240, 240, 240), (230, 230, 230), (250, 248, 244))


@dataclass(frozen=True)
class Design:
    """One logo; two designs that differ in any of these are different logos."""

    specification: Specification | None
    """None: lettering alone"""
    dress: Dress

    def draw(self, side_px: int) -> Image.Image:
        """On white."""
        return flatten(self.draw_cutout(side_px)) if self.specification is None else self._crest(side_px)

    def _crest(self, side_px: int) -> Image.Image:
        assert self.specification is not None
        return draw(self.specification, league_layout(self.specification, self.dress), side_px)

    def draw_cutout(self, side_px: int) -> Image.Image:
        """On nothing."""
        if self.specification is None:
            assert self.dress.inscription is not None
            return draw_wordmark(self.dress.inscription, side_px, has_alpha=True)
        return draw_cutout(self.specification, league_layout(self.specification, self.dress), side_px)


def family(number: int) -> list[Design]:
    """A logo and four that differ from it in one attribute each."""
    rng = np.random.default_rng([_STREAM, number])
    if rng.random() < _WORDMARK_SHARE:
        colours = [colour for colour in COLOURS if colour != "white"]
        base = Design(None, Dress("black", inscription=_inscription(rng, False, "navy")))
        words = [_inscription(rng, False, pick(rng, colours)) for _ in range(1, FAMILY)]
        return [base, *(replace(base, dress=replace(base.dress, inscription=words_)) for words_ in words)]
    spec = random_specification(rng, held_out=None)
    outline = pick(rng, [colour for colour in COLOURS if colour not in spec.field_colours])
    inscription = None
    if rng.random() < 0.6:
        inscription = _inscription(rng, rng.random() < 0.4, pick(rng, _inks()))
    base = Design(spec, Dress(outline, has_trim=spec.charge in CHARGES[::3], inscription=inscription))
    designs = [base]
    while len(designs) < FAMILY:
        other = _changed(base, pick(rng, _ATTRIBUTES), rng)
        if other is not None and other not in designs:
            designs.append(other)
    return designs


def _inks() -> list[str]:
    return [colour for colour in COLOURS if colour != "white"]


def _inscription(rng: np.random.Generator, is_initials: bool, colour: str) -> Inscription:
    if not is_initials:
        return Inscription(city_name(int(rng.integers(_CITIES))).upper(), colour, is_initials=False)
    letters = "".join(chr(65 + int(letter)) for letter in rng.integers(0, 26, 2))
    return Inscription(letters, colour, is_initials=True)


_ATTRIBUTES: Final = (
    "charge",
    "charge_colour",
    "field_colour",
    "second_colour",
    "field",
    "shape",
    "outline_colour",
    "lettering",
    "lettering_colour",
)


def _changed(design: Design, attribute: str, rng: np.random.Generator) -> Design | None:
    """The design with one attribute drawn anew; None when that cannot be (it has none, or colours clash)."""
    spec, dress = design.specification, design.dress
    assert spec is not None
    words = dress.inscription
    if attribute in ("lettering", "lettering_colour"):
        if words is None:
            return None
        if attribute == "lettering_colour":
            words = replace(words, colour=pick(rng, _inks()))
        else:
            words = _inscription(rng, words.is_initials, words.colour)
        return replace(design, dress=replace(dress, inscription=words))
    if attribute == "outline_colour":
        free = [colour for colour in COLOURS if colour not in spec.field_colours]
        return replace(design, dress=replace(dress, outline_colour=pick(rng, free)))
    choices: dict[str, Sequence[str]] = {"charge": CHARGES, "shape": SHAPES, "field": FIELDS}
    value = pick(rng, choices.get(attribute, COLOURS))
    second = spec.second_colour
    if attribute == "field":
        second = None if value == "plain" else second or pick(rng, COLOURS)
    if attribute == "second_colour" and spec.field == "plain":
        return None
    fields = {**spec.to_dict(), "second_colour": second, attribute: value}
    try:
        return replace(design, specification=Specification.from_dict(fields))
    except ValueError:
        return None  # two neighbouring colours would be one


Change = Callable[[Design, int, np.random.Generator], Image.Image]


def _on(change: Callable[[Image.Image, np.random.Generator], Image.Image]) -> Change:
    return lambda design, side_px, rng: change(design.draw(side_px), rng)


def _through(picture: Image.Image, form: str, **options: Any) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return Image.open(stream).convert("RGB")


def _rescaled(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = float(rng.uniform(0.4, 1.6))
    kernel = pick(
        rng,
        (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX),
    )
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), kernel)


def _jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _through(picture, "JPEG", quality=int(rng.integers(60, 96)))


def _webp(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _through(picture, "WEBP", quality=int(rng.integers(60, 96)), method=2)


def _padded(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    borders = tuple(int(picture.width * share) for share in rng.uniform(0.0, 0.4, 4))
    return ImageOps.expand(picture, cast("tuple[int, int, int, int]", borders), "white")


def _other_ground(design: Design, side_px: int, rng: np.random.Generator) -> Image.Image:
    return flatten(design.draw_cutout(side_px), _GREYS[int(rng.integers(len(_GREYS)))])


def _recoloured(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Each channel scaled and shifted by a few levels, as colour profiles do; white stays white."""
    levels = np.asarray(picture, dtype=np.float32)
    moved = 255 - (255 - levels) * rng.uniform(0.97, 1.02, 3) + rng.uniform(-4, 4, 3) * (levels < 250)
    return Image.fromarray(moved.clip(0, 255).astype(np.uint8))


def _cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top, right, bottom = rng.uniform(0.01, 0.03, 4)
    width, height = picture.size
    return picture.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


def _blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.0))))


def _sharpened(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.UnsharpMask(1, int(rng.integers(50, 120)), 2))


def _quantised(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    dither = Image.Dither.FLOYDSTEINBERG if rng.random() < 0.5 else Image.Dither.NONE
    return picture.quantize(int(rng.integers(16, 65)), dither=dither).convert("RGB")


def _mixed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Smaller, padded and a JPEG: a rendition of a rendition."""
    return _jpeg(_padded(_rescaled(picture, rng), rng), rng)


CHANGES: Final[dict[str, Change]] = {
    "rescaled 0.4 to 1.6": _on(_rescaled),
    "JPEG 60 to 95": _on(_jpeg),
    "WebP 60 to 95": _on(_webp),
    "transparent": lambda design, side_px, rng: design.draw_cutout(side_px),
    "padded": _on(_padded),
    "light grey ground": _other_ground,
    "mirrored": _on(lambda picture, rng: ImageOps.mirror(picture)),
    "mirrored, rescaled, JPEG": _on(
        lambda picture, rng: _jpeg(ImageOps.mirror(_rescaled(picture, rng)), rng)
    ),
    "recoloured a little": _on(_recoloured),
    "cropped 1 to 3 %": _on(_cropped),
    "blurred": _on(_blurred),
    "sharpened": _on(_sharpened),
    "palette": _on(_quantised),
    "rescaled, padded, JPEG": _on(_mixed),
}
"""Named ways in which a file of the same logo comes to differ."""


@dataclass(frozen=True)
class Shown:
    """One picture of the benchmark, as screening meets it."""

    number: int
    """of the logo as it was drawn; its copy has the same"""
    design: int
    """key of what it shows: two families may come upon the same"""
    change: str
    """empty for the logo as drawn"""
    width_px: int
    height_px: int
    look: Look


def shown_of(number: int) -> list[Shown]:
    """The logos of a family and one changed copy of each."""
    shown = []
    names = list(CHANGES)
    for place, design in enumerate(family(number)):
        index = number * FAMILY + place
        rng = np.random.default_rng([_STREAM, number, place])
        side_px = int(rng.integers(*SIDES_PX))
        name = names[index % len(names)]
        for change, picture in (
            ("", design.draw(side_px)),
            (name, CHANGES[name](design, side_px, rng)),
        ):
            shown.append(
                Shown(index, key_of(repr(design)), change, picture.width, picture.height, look_at(picture))
            )
    return shown


def all_shown(designs: int, workers: int = 1) -> Iterator[Shown]:
    """So many logos and their copies, drawn by so many processes."""
    families = range(-(-designs // FAMILY))
    if workers == 1:
        for number in families:
            yield from shown_of(number)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for shown in pool.map(shown_of, families, chunksize=16):
            yield from shown


def judged(shown: Sequence[Shown], settings: ScreenConfig) -> Verdicts:
    """Screen the pictures, each its own group."""
    records = [
        Record(
            f"{index:016x}", "", "drawn", "words", f"g{index}", width_px=one.width_px, height_px=one.height_px
        )
        for index, one in enumerate(shown)
    ]
    return judge(candidates_of(records, pack_looks([one.look for one in shown])), settings)


def figures(shown: Sequence[Shown], settings: ScreenConfig) -> dict[str, float]:
    """What was found and what was merged wrongly.

    Returns:
        `recall` (share of copies that were dropped for their logo, or the logo for them, or that share its
        group), `recall.<change>`; `dropped_wrongly` and `merged_wrongly`: share of logos of which a picture
        was dropped for another logo, or shares a group with one.
    """
    verdicts = judged(shown, settings)
    _, design = np.unique([one.design for one in shown], return_inverse=True)
    count = int(design.max()) + 1
    dropped = np.zeros(count, dtype=bool)
    lost = verdicts.twin >= 0
    wrong = lost & (design[np.where(lost, verdicts.twin, 0)] != design)
    dropped[design[wrong]] = True
    merged = np.zeros(count, dtype=bool)
    merged[design[_shared(verdicts.group, design)]] = True
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    as_drawn = {one.number: index for index, one in enumerate(shown) if not one.change}
    for index, one in enumerate(shown):
        if one.change:
            total[one.change] += 1
            found[one.change] += bool(verdicts.group[index] == verdicts.group[as_drawn[one.number]])
    faults = sum(verdicts.reason_name(index) in _FAULTS for index in range(len(shown)))
    return {
        "logos": count,
        "copies": total.total(),
        "recall": found.total() / total.total(),
        "dropped_wrongly": float(dropped.mean()),
        "merged_wrongly": float(merged.mean()),
        "faults": faults,
        **{f"recall.{name}": found[name] / total[name] for name in total},
    }


_FAULTS: Final = ("too_small", "blank", "invisible_on_white")


def _shared(group: NDArray[np.int64], design: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a picture's group holds another design too."""
    _, inverse = np.unique(group, return_inverse=True)
    lowest = np.full(inverse.max() + 1, design.max())
    highest = np.zeros(inverse.max() + 1, dtype=design.dtype)
    np.minimum.at(lowest, inverse, design)
    np.maximum.at(highest, inverse, design)
    shared: NDArray[np.bool_] = (lowest != highest)[inverse]
    return shared


def near_duplicates(logos: int = 10_000, workers: int | None = None) -> dict[str, float]:
    """Recall and false merges with the thresholds that ship."""
    shown = list(all_shown(logos, workers or os.cpu_count() or 1))
    return figures(shown, ScreenConfig(min_side_px=32))


def table(found: dict[str, float]) -> str:
    """The figures for people, as a Markdown table."""
    rows = ["| change | copies found |", "|---|---|"]
    rows += [
        f"| {name.removeprefix('recall.')} | {value:.2%} |"
        for name, value in found.items()
        if name.startswith("recall.")
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    measured = near_duplicates()
    print(table(measured))
    print({name: value for name, value in measured.items() if not name.startswith("recall.")})
