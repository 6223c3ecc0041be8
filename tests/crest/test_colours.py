"""Colour words and CIELAB."""

from __future__ import annotations

import numpy as np

from crest.colours import COLOUR_WORDS, COLOURS, colour_words, nearest_name, palette, srgb_to_lab


def test_lab_of_known_colours() -> None:
    lab = srgb_to_lab([[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(lab[0], [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab[1], [0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(lab[2], [53.24, 80.09, 67.20], atol=0.02)


def test_the_ten_colours_lie_far_apart() -> None:
    lab = srgb_to_lab(np.array(list(COLOURS.values())) / 255)
    gap = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert len(COLOURS) == 10
    assert gap[~np.eye(10, dtype=bool)].min() > 25


def test_every_word_names_its_own_colour() -> None:
    for word, rgb in COLOUR_WORDS.items():
        assert nearest_name(rgb) == word


def test_nearest_name_keeps_to_the_given_words() -> None:
    assert nearest_name((120, 20, 20)) == "maroon"
    assert nearest_name((150, 20, 30), COLOURS) == "red"


def test_palette_finds_colours_and_shares() -> None:
    image = np.full((40, 40, 3), 255, dtype=np.uint8)
    image[:10] = COLOURS["red"]
    image[10:14] = COLOURS["navy"]
    found = palette(image, 3)
    assert [rgb for rgb, _ in found] == [(255, 255, 255), COLOURS["red"], COLOURS["navy"]]
    np.testing.assert_allclose([share for _, share in found], [0.65, 0.25, 0.1])
    assert len(palette(image, 8)) == 3


def test_palette_merges_shades_of_one_colour() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(COLOURS["blue"], 4, (32, 32, 3)), 0, 255).astype(np.uint8)
    image[:8] = 255
    found = palette(image, 2)
    assert [nearest_name(rgb, COLOURS) for rgb, _ in found] == ["blue", "white"]
    assert abs(sum(share for _, share in found) - 1) < 1e-9


def test_colour_words_come_in_order_and_one_spelling() -> None:
    text = 'A Navy Blue and grey shield, light blue trim. Wordmark "REDS" in dark grey and gold.'
    assert colour_words(text) == ["navy", "gray", "light blue", "dark gray", "gold"]
    assert colour_words("covered in tangles") == []
