import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from crest.colours import COLOUR_WORDS
from scraper.palette_words import NAMES, colour_sentence, measured_colours


def badge(
    *colours: tuple[int, int, int], paper: tuple[int, ...] = (0, 0, 0, 0), side: int = 600
) -> Image.Image:
    """Rings of these colours, the outermost first, drawn large and not antialiased."""
    picture = Image.new("RGBA", (side, side), paper if len(paper) == 4 else (*paper, 255))
    pen = ImageDraw.Draw(picture)
    for number, colour in enumerate(colours):
        inset = side * (0.08 + 0.4 * number / len(colours))
        pen.ellipse((inset, inset, side - inset, side - inset), fill=(*colour, 255))
    return picture


def shrunk(picture: Image.Image, side: int = 90) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def as_jpeg(picture: Image.Image, quality: int = 80) -> Image.Image:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=quality)
    return Image.open(stream)


NAVY, WHITE, GOLD, RED = (COLOUR_WORDS[name] for name in ("navy", "white", "gold", "red"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_told_by_its_own_colour(name: str) -> None:
    assert measured_colours(badge(COLOUR_WORDS[name])) == [name]


@pytest.mark.parametrize("side", [60, 90, 200, 600, 1500])
def test_antialiased_edges_add_no_colours(side: int) -> None:
    assert sorted(measured_colours(shrunk(badge(NAVY, WHITE, GOLD), side))) == ["gold", "navy", "white"]


def test_sentence_names_the_most_frequent_first() -> None:
    assert colour_sentence(shrunk(badge(NAVY, WHITE, GOLD))) == "Colours: navy, white and gold."
    assert colour_sentence(shrunk(badge(RED))) == "Colour: red."


def test_paper_around_a_logo_is_no_colour_of_it_but_white_within_is() -> None:
    on_white = shrunk(badge(RED, NAVY, paper=WHITE))
    assert measured_colours(on_white) == ["red", "navy"]
    assert measured_colours(shrunk(badge(RED, WHITE, NAVY, paper=WHITE))) == ["red", "white", "navy"]
    assert measured_colours(shrunk(badge(RED, WHITE, paper=NAVY))) == ["red", "white"]


def test_transparent_pixels_do_not_count_whatever_colour_they_hide() -> None:
    picture = shrunk(badge(RED))
    pixels = np.array(picture)
    pixels[pixels[..., 3] == 0] = (0, 200, 0, 0)
    assert measured_colours(Image.fromarray(pixels)) == ["red"]


def test_thin_strokes_keep_their_colour() -> None:
    picture = badge(NAVY, side=96)
    ImageDraw.Draw(picture).line((0, 94, 96, 94), fill=(*GOLD, 255), width=2)
    ImageDraw.Draw(picture).line((48, 20, 48, 76), fill=(*RED, 255), width=2)
    assert measured_colours(picture) == ["navy", "gold", "red"]


def test_compression_adds_no_colours() -> None:
    assert measured_colours(as_jpeg(badge(RED, WHITE, NAVY, paper=WHITE, side=300))) == [
        "red",
        "white",
        "navy",
    ]


@pytest.mark.parametrize("shade", [(200, 16, 46), (227, 24, 55), (186, 12, 47), (213, 0, 50), (167, 25, 48)])
def test_the_reds_that_clubs_wear_are_red(shade: tuple[int, int, int]) -> None:
    assert measured_colours(badge(shade)) == ["red"]


@pytest.mark.parametrize(
    ("shade", "name"),
    [
        ((12, 35, 64), "navy"), ((0, 34, 68), "navy"), ((0, 83, 188), "blue"), ((253, 185, 39), "gold"),
        ((255, 182, 18), "gold"), ((0, 0, 0), "black"), ((165, 172, 175), "silver"), ((0, 122, 51), "green"),
        ((85, 37, 130), "purple"), ((252, 76, 2), "orange"), ((111, 38, 61), "maroon"),
    ],
)  # fmt: skip
def test_the_colours_of_real_clubs_have_their_plain_names(shade: tuple[int, int, int], name: str) -> None:
    assert measured_colours(badge(shade)) == [name]


def test_nothing_to_see_has_no_colours() -> None:
    assert colour_sentence(Image.new("RGBA", (40, 40), (0, 0, 0, 0))) is None
    assert colour_sentence(Image.new("RGB", (40, 40), RED)) == "Colour: red."


def test_the_picture_is_left_as_it_was() -> None:
    picture = shrunk(badge(RED, NAVY))
    before = picture.tobytes()
    measured_colours(picture)
    assert picture.tobytes() == before
