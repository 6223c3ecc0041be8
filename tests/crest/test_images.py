import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crest import images
from crest.errors import DataError


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def test_black_logo_on_nothing_stays_black_on_white(black_logo: Image.Image) -> None:
    flat = images.flatten(images.decode(encode(black_logo), "logo.png"))
    assert flat.mode == "RGB"
    assert flat.getpixel((32, 32)) == (0, 0, 0)
    assert flat.getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_pixel_is_mixed_with_the_background() -> None:
    picture = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    assert images.flatten(picture).getpixel((0, 0)) == (204, 204, 204)
    assert images.flatten(picture, (100, 0, 0)).getpixel((0, 0)) == (80, 0, 0)


def test_decode_keeps_the_alpha_of_palette_and_grey_pictures(black_logo: Image.Image) -> None:
    palette = black_logo.quantize(4)
    for picture in (palette, black_logo.convert("LA")):
        decoded = images.decode(encode(picture), "logo.png")
        assert decoded.mode == "RGBA"
        assert decoded.getpixel((1, 1))[3] == 0
        assert images.flatten(decoded).getpixel((32, 32)) == (0, 0, 0)
    colour_key = images.decode(
        encode(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)), "logo.png"
    )
    assert images.flatten(colour_key).getpixel((0, 0)) == (255, 255, 255)


def test_decode_gives_rgb_where_there_is_no_alpha(logo: Image.Image) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        assert images.decode(encode(logo, kind), "logo").mode in ("RGB", "RGBA")
    assert images.decode(encode(logo.convert("CMYK"), "JPEG"), "logo.jpg").mode == "RGB"
    assert images.decode(encode(logo.convert("L")), "logo.png").mode == "RGB"


def test_grey_of_sixteen_bits_keeps_its_tone() -> None:
    picture = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))
    red, green, blue = images.decode(encode(picture), "logo.png").convert("RGB").getpixel((0, 0))
    assert red == green == blue
    assert abs(red - 128) <= 1


def test_truncated_png_is_refused_by_name(logo: Image.Image) -> None:
    content = encode(logo)
    for size_bytes in (0, 10, len(content) // 2, len(content) - 40):
        with pytest.raises(DataError, match=r"club/crest\.png: is not a whole picture"):
            images.decode(content[:size_bytes], "club/crest.png")


def test_html_served_as_an_image_is_refused() -> None:
    with pytest.raises(DataError, match="is not a whole picture"):
        images.decode(b"<!doctype html><title>404</title>", "crest.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_undecoded() -> None:
    content = encode(Image.new("1", (9_000, 9_000)))
    assert len(content) < 100_000
    with pytest.raises(DataError, match=r"bomb\.png: .*9000 x 9000 pixels, over 64,000,000"):
        images.decode(content, "bomb.png")


def test_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: there is no such picture"):
        images.read_image(tmp_path / "none.png")


def test_four_to_one_wordmark_keeps_both_ends(wordmark: Image.Image) -> None:
    square = images.square(wordmark, 64)
    assert square.size == (64, 64)
    red, blue = square.getpixel((2, 32)), square.getpixel((61, 32))
    assert red[0] > 240
    assert red[2] < 15
    assert blue[2] > 240
    assert blue[0] < 15
    assert square.getpixel((32, 4)) == (255, 255, 255)


def test_upright_picture_is_centred_on_its_square() -> None:
    padded = images.pad_square(Image.new("RGB", (10, 30), (0, 0, 0)))
    dark = np.asarray(padded)[15, :, 0] == 0
    assert padded.size == (30, 30)
    assert list(np.flatnonzero(dark)) == list(range(10, 20))


def test_square_picture_of_the_right_size_comes_back_unchanged(logo: Image.Image) -> None:
    assert images.square(logo, 64).tobytes() == logo.tobytes()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(images.square(Image.fromarray(stripes), 8))
    assert np.abs(small[:, 2:-2].astype(int) - 128).max() <= 8  # the nearest pixel would be 0 or 255


def test_pixels_survive_the_trip_to_floats_and_back(logo: Image.Image) -> None:
    array = images.to_array(logo)
    assert array.shape == (3, 64, 64)
    assert array.dtype == np.uint8
    floats = images.to_float(array)
    assert floats.dtype == np.float32
    assert 0.0 <= floats.min() <= floats.max() <= 1.0
    assert images.from_float(floats).tobytes() == logo.tobytes()


def test_every_byte_value_survives_the_trip_to_floats() -> None:
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3).T.reshape(3, 16, 16)
    assert np.array_equal(images.to_array(images.from_float(images.to_float(array))), array)


def test_values_outside_the_range_are_clipped() -> None:
    pixels = np.array([-1.0, 2.0], dtype=np.float32).reshape(1, 1, 2).repeat(3, axis=0)
    assert list(np.asarray(images.from_float(pixels))[0, :, 0]) == [0, 255]


def test_grid_lays_pictures_row_by_row() -> None:
    pictures = np.stack([np.full((3, 4, 4), value, dtype=np.float32) for value in (0.0, 0.25, 0.5)])
    sheet = images.grid(pictures, columns=2, gap_px=1)
    assert sheet.shape == (3, 11, 11)
    assert [sheet[0, 1, 1], sheet[0, 1, 6], sheet[0, 6, 1], sheet[0, 6, 6], sheet[0, 0, 0]] == [
        0,
        0.25,
        0.5,
        1,
        1,
    ]
    assert images.grid(pictures, columns=9, gap_px=0).shape == (3, 4, 12)


@pytest.mark.parametrize("mode", ["LA", "P", "1", "L", "CMYK"])
def test_any_mode_flattens_to_what_it_shows(mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (1, 1, 3, 3))
    if mode == "P":
        given = picture.quantize(4)
    elif mode == "LA":
        given = picture.convert("LA")
    else:
        given = images.flatten(picture).convert(mode)
    flat = images.flatten(given)
    assert flat.mode == "RGB"
    assert (flat.getpixel((0, 0)), flat.getpixel((2, 2))) == ((255, 255, 255), (0, 0, 0))
