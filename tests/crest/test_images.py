import io
import struct
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


@pytest.mark.parametrize("noise", [0, 6])
def test_a_card_is_padded_with_its_own_flat_ground(noise: int) -> None:
    card = np.full((20, 60, 3), (10, 20, 90), np.uint8)
    card[5:15, 20:40] = 255
    card += np.random.default_rng(0).integers(0, noise + 1, card.shape, dtype=np.uint8) * (card < 200)
    padded = np.asarray(images.square(Image.fromarray(card), 60)).astype(int)
    assert np.abs(padded[2, 2] - (10, 20, 90)).max() <= noise
    assert np.abs(padded[:20] - padded[40:]).max() == 0


def test_padding_is_white_where_the_border_is_white_transparent_or_of_several_colours(
    wordmark: Image.Image, black_logo: Image.Image
) -> None:
    nearly = Image.new("RGB", (60, 20), (250, 251, 252))
    striped = Image.new("RGB", (60, 20), (0, 0, 90))
    striped.paste((200, 0, 0), (0, 0, 30, 20))
    seen_through = Image.new("RGBA", (60, 20), (0, 0, 90, 0))
    wide = Image.new("RGBA", (128, 64))
    wide.paste(black_logo, (32, 0))
    for picture in (wordmark, nearly, striped, seen_through, wide):
        side_px = max(picture.size)
        assert images.square(picture, side_px).getpixel((side_px // 2, 1)) == (255, 255, 255)


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


def test_picture_is_turned_as_its_camera_noted() -> None:
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste((200, 0, 0), (0, 0, 32, 32))  # the left half is red
    for orientation, expected in ((1, (64, 32)), (3, (64, 32)), (6, (32, 64)), (8, (32, 64))):
        note = Image.Exif()
        note[0x0112] = orientation
        for form in ("JPEG", "PNG", "WEBP"):
            stream = io.BytesIO()
            picture.save(stream, form, exif=note)
            found = images.decode(stream.getvalue(), form)
            assert found.size == expected
            red_at = {1: (2, 2), 3: (62, 30), 6: (2, 2), 8: (2, 62)}[orientation]
            red, green, _ = found.getpixel(red_at)  # type: ignore[misc]
            assert red > 150
            assert green < 60


def profile_of(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """An ICC profile of version 2 with these primaries (XYZ) and a straight tone curve, made by hand."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def colour(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    text = b"made by hand\0"
    about = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = {b"desc": about, b"wtpt": colour(white), b"rXYZ": colour(red), b"gXYZ": colour(green)}
    tags |= {b"bXYZ": colour(blue), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, white)) + bytes(48)
    return head[:128] + struct.pack(">I", len(tags)) + table + data


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_another_profile_are_translated(mode: str) -> None:
    """Green for red: what a file calls (255, 0, 0) is green by its profile; a straight curve lifts grey."""
    red, green, blue = SRGB_PRIMARIES
    turned = profile_of(green, red, blue)
    picture = Image.new(mode, (8, 8), (255, 0, 0) if mode == "RGB" else (255, 0, 0, 128))
    stream = io.BytesIO()
    picture.save(stream, "PNG", icc_profile=turned)
    found = images.decode(stream.getvalue(), "x")
    assert found.mode == mode
    assert np.allclose(found.getpixel((0, 0))[:3], (0, 255, 0), atol=3)  # type: ignore[index]
    if mode == "RGBA":
        assert found.getpixel((0, 0))[3] == 128  # type: ignore[index]
    grey = io.BytesIO()
    Image.new("RGB", (8, 8), (55, 55, 55)).save(grey, "PNG", icc_profile=turned)
    assert np.allclose(images.decode(grey.getvalue(), "x").getpixel((0, 0)), 127, atol=3)


def test_profile_that_cannot_be_used_is_left_aside() -> None:
    picture = Image.new("RGB", (8, 8), (10, 200, 30))
    for profile in (b"no profile at all", profile_of(*SRGB_PRIMARIES)[:150]):
        stream = io.BytesIO()
        picture.save(stream, "PNG", icc_profile=profile)
        assert images.decode(stream.getvalue(), "x").getpixel((0, 0)) == (10, 200, 30)


def test_cmyk_and_palettes_have_the_colours_that_they_show() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "JPEG", quality=95)
    assert np.allclose(images.decode(stream.getvalue(), "x").getpixel((8, 8)), (255, 0, 0), atol=4)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 20, 40, 60])
    palette.paste(0, (0, 0, 4, 8))
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=0)
    found = images.decode(stream.getvalue(), "x")
    assert found.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert found.getpixel((7, 7)) == (20, 40, 60, 255)
