"""The plain world: reproducible, varied, and without anything held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ImageDraw

from crest.colours import colour_words
from demo.heraldry import CHARGES, COLOURS, FIELDS, SHAPES, is_held_out
from demo.plain import (
    POPULAR_PAIRS,
    POPULAR_SCHEMES,
    POPULAR_SHAPES,
    PlainLogo,
    centred_logo,
    described_logo,
    plain_logo,
    plain_logos,
    reference_logo,
)
from demo.wording import OTHER_NAMES, Extras, broad_caption


def test_same_seed_and_index_give_the_same_logo() -> None:
    for draw_logo in (plain_logo, reference_logo):
        one, again, other = draw_logo(5, 17), draw_logo(5, 17), draw_logo(6, 17)
        assert one.captions == again.captions
        assert one.image.tobytes() == again.image.tobytes()
        assert one.image.tobytes() != other.image.tobytes()


def test_described_logos_are_the_plain_ones_told_by_what_is_seen() -> None:
    for index in range(40):
        plain, described = plain_logo(1, index, 32), described_logo(1, index, 32)
        assert described.image.tobytes() == plain.image.tobytes()
        assert described.specification == plain.specification
        for caption in described.captions:
            assert not any(character.isdigit() or character == '"' for character in caption)
            if described.specification is not None:
                colours = {*described.specification.field_colours, described.specification.charge_colour}
                assert colours <= set(colour_words(caption))


def test_the_iterator_gives_what_random_access_gives() -> None:
    for logo in plain_logos(2, 5, side_px=32):
        assert logo.image.tobytes() == plain_logo(2, logo.index, side_px=32).image.tobytes()


def test_the_size_changes_the_pixels_but_not_the_content() -> None:
    small, large = plain_logo(1, 3, 32), plain_logo(1, 3, 128)
    assert (small.image.size, large.image.size) == ((32, 32), (128, 128))
    assert (small.captions, small.specification) == (large.captions, large.specification)


@pytest.mark.parametrize("draw_logo", [plain_logo, centred_logo, reference_logo])
def test_held_out_combinations_never_occur(draw_logo: Callable[[int, int, int], PlainLogo]) -> None:
    specs = [draw_logo(4, index, 8).specification for index in range(1500)]
    assert not any(is_held_out(spec) for spec in specs if spec is not None)


@pytest.mark.parametrize("draw_logo", [plain_logo, centred_logo])
def test_every_value_occurs(draw_logo: Callable[[int, int, int], PlainLogo]) -> None:
    specs = [spec for index in range(1500) if (spec := draw_logo(0, index, 8).specification)]
    assert {spec.shape for spec in specs} == set(SHAPES)
    assert {spec.charge for spec in specs} == set(CHARGES)
    assert {spec.field for spec in specs} == set(FIELDS)
    assert {spec.charge_colour for spec in specs} == {spec.field_colour for spec in specs} == set(COLOURS)


def test_what_the_decoder_learns_is_plain_half_of_the_time() -> None:
    specs = [spec for index in range(1500) if (spec := centred_logo(0, index, 8).specification)]
    assert 0.5 < Counter(spec.field for spec in specs)["plain"] / len(specs) < 0.6


def test_half_of_what_clip_learns_differs_in_few_things_alone() -> None:
    specs = [spec for index in range(1500) if (spec := plain_logo(0, index, 8).specification)]
    schemes = Counter((s.shape, s.field_colours, s.charge_colour) for s in specs if s.field == "plain")
    popular = sum(count for _, count in schemes.most_common(len(POPULAR_SHAPES) * len(POPULAR_SCHEMES)))
    assert 0.28 < popular / len(specs) < 0.4, "these differ in the charge"
    orders = Counter(s.field_colours for s in specs if s.second_colour)
    paired = [orders[order] for pair in POPULAR_PAIRS for order in (pair, pair[::-1])]
    assert 0.15 < sum(paired) / len(specs) < 0.3, "these differ in order and pattern"
    assert min(paired) > 0.5 * max(paired)


def test_captions_name_what_is_drawn_in_the_order_drawn() -> None:
    for index in range(400):
        logo = plain_logo(8, index, 8)
        assert len(logo.captions) >= 2
        if (spec := logo.specification) is None:
            continue
        for caption in logo.captions:
            for word in (spec.shape, spec.charge, spec.charge_colour):
                names = (word, *OTHER_NAMES.get(word, ()))
                assert any(name in caption.lower() for name in names), (caption, spec)
            named = colour_words(caption)
            places = [named.index(colour) for colour in spec.field_colours]
            assert places == sorted(places), (caption, spec)


def test_a_caption_at_length_says_outline_and_line_and_names_nothing_else_in_colour() -> None:
    spec = next(
        spec for i in range(50) if (spec := centred_logo(1, i, 8).specification) and spec.field != "plain"
    )
    said, lengths = Counter[str](), []
    extras = Extras(outline_colour="dark gray", bar_colour="gray")
    for seed in range(400):
        caption = broad_caption(np.random.default_rng(seed), spec, extras)
        rest = [c for c in colour_words(caption) if c not in (*spec.field_colours, spec.charge_colour)]
        assert set(rest) <= {"dark gray", "gray", "white"}, caption
        assert "gray" in rest, "a line below is always told"
        said.update(rest)
        lengths.append(len(caption))
    assert 0.6 < said["dark gray"] / 400 < 0.8
    assert min(lengths) < 70 < 120 < max(lengths)


def test_a_line_lies_below_its_crest() -> None:
    lines = 0
    for index in range(300):
        logo = centred_logo(2, index)
        if logo.specification is None:
            continue
        pixels = np.asarray(logo.image, dtype=np.int16)
        filled = np.flatnonzero((pixels.min(axis=2) < 200).any(axis=1))
        gaps = np.flatnonzero(np.diff(filled) > 2)
        lines += bool(gaps.size and filled[gaps[-1] + 1] > 48)
    assert 60 < lines < 120


@pytest.mark.parametrize("draw_logo", [plain_logo, centred_logo, reference_logo])
def test_a_white_crest_is_visible_on_white(draw_logo: Callable[[int, int, int], PlainLogo]) -> None:
    seen = 0
    for index in range(600):
        spec = draw_logo(3, index, 8).specification
        if spec is not None and spec.field_colours == ("white",):
            poured = draw_logo(3, index, 256).image.copy()
            ImageDraw.floodfill(poured, (0, 0), (255, 0, 255), thresh=60)
            enclosed = (np.asarray(poured).min(axis=2) > 240).mean()
            assert enclosed > 0.035, "the ground does not run into the crest: a line is around it"
            seen += 1
    assert seen > 10
