"""The league: reproducible, without end, honest captions, nothing held out except in prompts."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from demo.heraldry import CHARGES, FIELDS, SHAPES, is_held_out
from demo.league import FIELDS_DEALT, Logo, club, cut, held_out_prompts, league, league_logos
from demo.names import city_name, league_name
from demo.wording import OTHER_NAMES


@cache
def logos() -> list[Logo]:
    """The default world of one seed."""
    return list(league_logos(7))


def test_the_default_world_has_about_2500_logos_with_names_of_their_own() -> None:
    assert 2300 < len(logos()) < 2800
    assert len({logo.file_name for logo in logos()}) == len(logos())


def test_same_seed_gives_the_same_club() -> None:
    assert club(1, 2, 3) == club(1, 2, 3)
    assert club(1, 2, 3) != club(2, 2, 3)
    assert league(1, 2, clubs_per_league=4).clubs[3] == club(1, 2, 3, clubs_per_league=4)
    logo = club(1, 2, 3).logos[0]
    assert logo.draw(64).tobytes() == logo.draw(64).tobytes()


def test_the_world_does_not_end() -> None:
    assert len({city_name(number) for number in range(30_000)}) == 30_000
    assert len({league_name(number) for number in range(200)}) == 200


def test_held_out_combinations_never_occur_in_the_league() -> None:
    assert not any(is_held_out(logo.specification) for logo in logos() if logo.specification)


def test_prompts_are_held_out_distinct_and_balanced() -> None:
    prompts = held_out_prompts(7, 120)
    specs = [prompt.specification for prompt in prompts]
    assert all(is_held_out(spec) for spec in specs)
    assert len(set(specs)) == 120
    for counts, values in (
        (Counter(spec.shape for spec in specs), SHAPES),
        (Counter(spec.charge for spec in specs), CHARGES),
    ):
        assert {counts[value] for value in values} == {120 // len(values)}
    fields = Counter(spec.field for spec in specs)
    assert fields == {field: 12 * FIELDS_DEALT.count(field) for field in FIELDS}
    assert min(Counter(spec.charge_colour for spec in specs).values()) >= 8
    assert held_out_prompts(7, 120) == prompts


def test_captions_name_what_is_drawn() -> None:
    for logo in logos():
        spec, inscription = logo.specification, logo.dress.inscription
        if inscription is not None:
            assert f'"{inscription.text}" ' in logo.caption
        if spec is not None:
            for word in (spec.shape, spec.charge, spec.charge_colour):
                assert any(name in logo.caption for name in (word, *OTHER_NAMES.get(word, ()))), logo
            text = logo.caption.lower()
            patterns = {
                "halves": "halved",
                "stripes": "striped",
                "chevrons": "chevroned",
                "quarters": "quartered",
            }
            if spec.field != "plain":
                assert patterns[spec.field] in text
                assert all(colour in text for colour in spec.field_colours)


def test_a_cut_card_begins_like_the_full_text() -> None:
    cut_logos = [logo for logo in logos() if logo.card_text and logo.card_text.endswith("…")]
    assert len(cut_logos) > 100
    for logo in cut_logos:
        assert logo.card_text is not None
        assert logo.caption.startswith(logo.card_text[:-1])
        assert len(logo.card_text) < len(logo.caption)
    assert cut("short") == "short"


def test_some_cards_lack_text_picture_or_ground() -> None:
    count = len(logos())
    assert 0.09 < sum(logo.card_text is None for logo in logos()) / count < 0.15
    assert 0.01 < sum(logo.is_broken for logo in logos()) / count < 0.035
    assert 0.28 < sum(logo.has_alpha for logo in logos()) / count < 0.4


def test_pictures_have_their_kind_and_mode() -> None:
    for logo in logos()[:60]:
        image = logo.draw(80)
        assert image.mode == ("RGBA" if logo.has_alpha else "RGB")
        assert image.size == ((80, 20) if logo.kind == "wordmark" else (80, 80))
        assert (logo.specification is None) == (logo.kind == "wordmark")


def test_a_cutout_on_white_is_the_opaque_drawing() -> None:
    for logo in [logo for logo in logos() if logo.has_alpha and logo.specification][:10]:
        rgba = np.asarray(logo.draw(64), dtype=np.float64)
        alpha = rgba[..., 3:] / 255
        on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
        opaque = np.asarray(Logo(**{**vars(logo), "has_alpha": False}).draw(64), dtype=np.float64)
        assert np.abs(on_white - opaque).max() <= 2
