"""The benchmark of subjects knows a club when it sees one, and the classes by the judge."""

import numpy as np
import pytest

from benchmarks.subjects import class_prompts, club_pictures, measure
from crest.images import to_array, to_float


def drawn_class(count: int) -> tuple[np.ndarray, list[object]]:
    from demo.plain import centred_logo

    logos = [logo for index in range(60) if (logo := centred_logo(5, index)).specification][:count]
    return np.stack([to_float(to_array(logo.image)) for logo in logos]), [
        logo.specification for logo in logos
    ]


@pytest.mark.slow
def test_a_club_is_recognised_and_the_other_one_is_not() -> None:
    pictures, asked = drawn_class(8)
    right = {
        "A": club_pictures("A", range(60, 76)),
        "B": club_pictures("B", range(60, 76)),
        "class": pictures,
    }
    figures = measure(right, asked)
    assert figures["A.recognised"] > 0.8
    assert figures["B.recognised"] > 0.8
    assert figures["A.in_class"] == figures["B.in_class"] == 0
    assert figures["class.field_colour"] > 0.6  # its judge knows the proportions of another world
    swapped = measure({"A": right["B"], "B": right["A"], "class": np.repeat(pictures[:1], 8, axis=0)}, asked)
    assert swapped["A.recognised"] == swapped["B.recognised"] == 0
    assert swapped["class.variety"] == 0 < figures["class.variety"]
    assert figures["class.found"] > 0.8
    assert swapped["class.found"] < 0.3
    assert swapped["class.field_colour"] < figures["class.field_colour"]


def test_prompts_that_judge_are_none_of_those_that_teach() -> None:
    from demo.heraldry import is_held_out

    taught, judged = class_prompts(1, 40, held_out=False), class_prompts(2, 40, held_out=True)
    assert not {*taught[0]} & {*judged[0]}
    assert all(is_held_out(specification) for specification in judged[1])
