import io

import numpy as np
from PIL import Image, ImageDraw

from crest.images import flatten
from scraper.likeness import close_pairs, colour_distances, look_at, look_from_json, look_to_json, thumbs_of


def bits_apart(one, other):
    return (one.bits ^ other.bits).bit_count()


def levels_apart(one, other):
    return float(colour_distances(thumbs_of([one])[0], thumbs_of([other]))[0])


def copies(picture):
    """The same logo smaller, with another margin, without alpha, and as a JPEG."""
    flat = flatten(picture)
    yield picture.resize((120, 120), Image.Resampling.LANCZOS)
    wide = Image.new("RGB", (300, 320), "white")
    wide.paste(flat, (40, 20))
    yield wide
    stream = io.BytesIO()
    flat.save(stream, "JPEG", quality=75)
    yield Image.open(stream).convert("RGB")


def test_copies_look_the_same(draw):
    alike = total = 0
    for seed in range(20):
        original = look_at(draw(seed, 240, has_alpha=True))
        for copy in map(look_at, copies(draw(seed, 240, has_alpha=True))):
            alike += bits_apart(original, copy) <= 12 and levels_apart(original, copy) <= 14
            total += 1
    assert total == 60
    assert alike >= 58


def test_different_badges_do_not(draw):
    looks = [look_at(draw(seed, 240)) for seed in range(60)]
    thumbs = thumbs_of(looks)
    for one, others in close_pairs(looks, 12):
        assert colour_distances(thumbs[one], thumbs[others]).min() > 20


def test_other_colours_have_the_same_hash_but_are_far_apart():
    def shield(colour):
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).polygon([(10, 10), (86, 10), (48, 90)], fill=colour)
        return look_at(picture)

    assert bits_apart(shield("red"), shield("green")) <= 4
    assert levels_apart(shield("red"), shield("green")) > 60


def test_symmetric_art_keeps_its_hash_under_noise():
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 86, 86), fill="navy")
    noise = np.random.default_rng(0).integers(-6, 7, (96, 96, 3))
    noisy = Image.fromarray(np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8))
    assert bits_apart(look_at(picture), look_at(noisy)) <= 2


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


def test_thin_wordmarks_of_other_letters_are_no_relatives():
    def word(seed):
        picture = Image.new("RGB", (480, 40), "white")
        pen = ImageDraw.Draw(picture)
        for left in np.random.default_rng(seed).integers(0, 460, 12).tolist():
            pen.rectangle((left, 5, left + 12, 34), fill="black")
        return look_at(picture)

    others = thumbs_of([word(seed) for seed in range(1, 9)])
    assert colour_distances(thumbs_of([word(0)])[0], others).min() > 20


def test_pairs_are_found_across_blocks(draw):
    looks = [look_at(draw(seed)) for seed in range(40)] * 14
    pairs = {(one, int(other)) for one, others in close_pairs(looks, 0) for other in others}
    assert {(one, other) for one in range(560) for other in range(one + 40, 560, 40)} <= pairs
    assert all(one < other for one, other in pairs)


def test_journal_keeps_a_look(draw):
    look = look_at(draw(3))
    assert look_from_json(look_to_json(look)) == look
