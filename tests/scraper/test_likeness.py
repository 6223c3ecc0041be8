import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from scraper.likeness import (
    BLANK,
    INVISIBLE,
    LOOK_DTYPE,
    THUMB_BYTES,
    folds_of,
    grid_of,
    look_at,
    look_from_json,
    look_to_json,
    pack_looks,
)


def bits_apart(one, other):
    return (one ^ other).bit_count()


def shield(colour, ground="white", size=(96, 96)):
    picture = Image.new("RGB", size, ground)
    ImageDraw.Draw(picture).polygon([(10, 10), (86, 10), (48, 90)], fill=colour)
    return picture


def levels(look):
    return np.frombuffer(look.thumb, dtype=np.uint8).astype(int)


def test_other_colours_have_the_same_hash_but_another_thumb():
    red, green = look_at(shield("red")), look_at(shield("green"))
    assert bits_apart(red.bits, green.bits) <= 4
    assert np.abs(levels(red) - levels(green)).mean() > 20


def test_symmetric_art_keeps_its_hash_under_noise():
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 86, 86), fill="navy")
    noise = np.random.default_rng(0).integers(-6, 7, (96, 96, 3))
    noisy = Image.fromarray(np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8))
    assert bits_apart(look_at(picture).bits, look_at(noisy).bits) <= 2


def test_mirrored_hash_is_the_hash_of_the_mirrored_picture(draw):
    for seed in range(8):
        there, back = look_at(draw(seed, 128)), look_at(ImageOps.mirror(draw(seed, 128)))
        assert bits_apart(there.mirrored_bits, back.bits) <= 1
        assert bits_apart(there.bits, back.mirrored_bits) <= 1


def test_margin_changes_nothing():
    there = look_at(shield("red"))
    wide = Image.new("RGB", (300, 180), "white")
    wide.paste(shield("red"), (120, 50))
    here = look_at(wide)
    assert (here.bits, here.thumb) == (there.bits, there.thumb)


def test_noise_of_a_jpeg_does_not_move_the_box():
    badge = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(badge).rectangle((10, 20, 80, 70), fill="red")
    stream = io.BytesIO()
    badge.save(stream, "JPEG", quality=60)
    there, here = look_at(badge), look_at(Image.open(stream))
    assert here.aspect == pytest.approx(there.aspect, rel=0.02)


@pytest.mark.parametrize("ground", [(246, 246, 246), (232, 232, 232), (250, 248, 244)])
def test_light_grey_ground_counts_as_white(ground):
    there, here = look_at(shield("navy")), look_at(shield("navy", ground))
    assert np.abs(levels(there) - levels(here)).mean() < 2


def test_white_logo_on_grey_is_still_seen():
    assert levels(look_at(shield("white", (120, 120, 120)))).min() < 150


def test_coloured_ground_belongs_to_the_logo():
    there, here = look_at(shield("white", "red")), look_at(shield("white", "blue"))
    assert np.abs(levels(there) - levels(here)).mean() > 20


def test_wide_wordmark_has_wide_thumbs():
    assert [folds_of(aspect) for aspect in (0.1, 0.4, 1.0, 1.9, 2.1, 7.9, 8.1, 90.0)] == [
        -2,
        -1,
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert {rows * columns for rows, columns in map(grid_of, (0.1, 1.0, 3.0, 20.0))} == {64 * 64}
    assert grid_of(20.0) == (16, 256)
    for size in ((40, 900), (300, 300), (900, 40)):
        assert len(look_at(Image.effect_noise(size, 80).convert("RGB")).thumb) == THUMB_BYTES


def test_blank_and_invisible_are_told_apart():
    assert look_at(Image.new("RGB", (50, 50), "navy")).is_blank
    nothing = look_at(Image.new("RGBA", (50, 50), (0, 0, 0, 0)))
    assert nothing.is_blank
    assert not nothing.is_invisible
    white = Image.new("RGBA", (50, 50), (255, 255, 255, 0))
    ImageDraw.Draw(white).ellipse((5, 5, 40, 40), fill=(255, 255, 255, 255))
    assert look_at(white).is_invisible


def test_black_logo_on_nothing_is_not_blank():
    black = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    ImageDraw.Draw(black).ellipse((5, 5, 40, 40), fill=(0, 0, 0, 255))
    assert not look_at(black).is_blank


def test_single_pixel_and_single_line_are_measured():
    for size in ((1, 1), (1, 40), (40, 1)):
        assert len(look_at(Image.new("RGB", size, "red")).thumb) == THUMB_BYTES
    line = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(line).line((5, 30, 55, 30), fill="black")
    assert not look_at(line).is_blank


def test_no_picture_is_too_odd_to_be_looked_at():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(rng.integers(1, 24, 2).tolist())
        levels = rng.integers(0, 256, (*size, 3)) * (rng.random((*size, 1)) < rng.random())
        look = look_at(Image.fromarray((levels * rng.random()).astype(np.uint8)))
        assert look.is_blank or 0.0 < look.aspect < 100.0


def test_packed_looks_say_the_same(draw):
    white = Image.new("RGBA", (50, 50), (255, 255, 255, 0))
    ImageDraw.Draw(white).ellipse((5, 5, 40, 40), fill=(255, 255, 255, 255))
    looks = [look_at(draw(3)), look_at(Image.new("RGB", (50, 50), "navy")), look_at(white)]
    rows = pack_looks(looks)
    assert rows.dtype == LOOK_DTYPE
    assert rows["flags"].tolist() == [0, BLANK, BLANK + INVISIBLE]
    assert rows["bits"].tolist() == [look.bits for look in looks]
    assert rows["mirrored"].tolist() == [look.mirrored_bits for look in looks]
    assert [row.tobytes() for row in rows["thumb"]] == [look.thumb for look in looks]
    assert [f"{number:016x}" for number in rows["pixels"].tolist()] == [look.pixels[:16] for look in looks]


def test_journal_keeps_a_look(draw):
    look = look_at(draw(3))
    assert look_from_json(look_to_json(look)) == look
