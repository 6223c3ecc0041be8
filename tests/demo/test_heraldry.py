"""Crests: every value can be drawn, drawings differ, and labels tell what was drawn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from crest.colours import COLOURS as NAMED_COLOURS
from demo.charges import charge_mask
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
    Lettering,
    Specification,
    draw,
    is_held_out,
    label_map,
    random_specification,
)

EXPECTED_ANSWERS = "001000000000000010101000001000000000000000000001000000000000000000000000"
"""For a plain red field with white charges: shape by shape, charge by charge."""

OUTLINED = Layout(width=0.9, height=0.94, outline_width=0.05, outline_colour="black")


def test_every_shape_field_and_charge_can_be_drawn_in_its_colours() -> None:
    for (shape, field), charge in zip(product(SHAPES, FIELDS), CHARGES * 3, strict=False):
        spec = Specification(shape, field, "red", None if field == "plain" else "blue", charge, "gold")
        pixels = {colour for _, colour in draw(spec, OUTLINED, 64).getcolors(4096) or []}
        for colour in (*spec.field_colours, "gold", "black", "white"):
            assert NAMED_COLOURS[colour] in pixels, (spec, colour)


def test_the_drawing_agrees_with_the_label_map() -> None:
    inks = {BACKGROUND: "white", OUTLINE: "black", FIELD_A: "red", FIELD_B: "blue", CHARGE: "gold"}
    for shape, field in product(SHAPES, FIELDS):
        spec = Specification(shape, field, "red", None if field == "plain" else "blue", "heart", "gold")
        labels = label_map(shape, field, "heart", OUTLINED, 64)
        pixels = np.asarray(draw(spec, OUTLINED, 64), dtype=np.float32)
        for label, colour in inks.items():
            if label != FIELD_B or field != "plain":
                typical = np.median(pixels[labels == label], axis=0)
                assert tuple(typical) == NAMED_COLOURS[colour], (shape, field, label)


def test_the_lettering_band_is_ignored_and_nothing_else_changes() -> None:
    layout = Layout(centre=(0.5, 0.375), height=0.7, lettering=Lettering("ATLANTA", "navy"))
    labels = label_map("shield", "plain", "star", layout, 64)
    assert (labels[51:61] == IGNORE).all()
    assert not (labels[:50] == IGNORE).any()


def test_charges_stay_apart_at_26_pixels() -> None:
    masks = [np.asarray(charge_mask(charge, 104).reduce(4), dtype=np.float32) / 255 for charge in CHARGES]
    for i, j in product(range(len(masks)), repeat=2):
        if i != j:
            union = np.maximum(masks[i], masks[j]).sum()
            assert np.minimum(masks[i], masks[j]).sum() / union < 0.83, (CHARGES[i], CHARGES[j])


def test_a_specification_survives_its_dictionary() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        spec = random_specification(rng)
        assert Specification.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("field", "first", "second", "third"),
    [("plain", "red", "blue", "gold"), ("halves", "red", None, "gold"), ("halves", "red", "red", "gold"),
     ("plain", "red", None, "red"), ("halves", "red", "blue", "blue")],
)  # fmt: skip
def test_colours_that_cannot_be_told_apart_are_refused(
    field: str, first: str, second: str | None, third: str
) -> None:
    with pytest.raises(ValueError, match="colour"):
        Specification("shield", field, first, second, "star", third)


def test_one_combination_in_ten_is_held_out() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([is_held_out(random_specification(rng, held_out=None)) for _ in range(4000)])
    assert 0.08 < share < 0.12


def test_held_out_combinations_never_change() -> None:
    # These answers are part of the shipped weights' promise: a change of the hash would leak.
    spec = Specification("shield", "plain", "red", None, "star", "white")
    answers = [
        is_held_out(Specification(s, "plain", "red", None, c, "white")) for s in SHAPES for c in CHARGES
    ]
    assert is_held_out(spec) == answers[0]
    assert "".join(str(int(answer)) for answer in answers) == EXPECTED_ANSWERS


def test_a_random_specification_honours_the_plain_share_and_the_held_out_wish() -> None:
    rng = np.random.default_rng(1)
    specs = [random_specification(rng, plain_share=1.0, held_out=True) for _ in range(50)]
    assert all(spec.field == "plain" and is_held_out(spec) for spec in specs)
    seen = {random_specification(rng).field_colour for _ in range(300)}
    assert seen == set(COLOURS)
