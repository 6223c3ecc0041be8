"""What a picture becomes: fitted, never cropped, alpha and colours kept where seed 002's script lost them."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crest.errors import DataError
from crest.records import Pictures, Record, content_id
from scraper.chunks import fitted
from scraper.config import PackConfig


@pytest.fixture
def fit(tmp_path):
    """Call with a picture or bytes: what is packed of it, decoded and as bytes."""

    def run(picture, kind="PNG", *, side_px=96, packed_as="png", frames=1, options=None):
        content = picture
        if not isinstance(picture, bytes):
            stream = io.BytesIO()
            picture.save(stream, format=kind, **(options or {}))
            content = stream.getvalue()
        name = content_id(content)
        (tmp_path / "images").mkdir(exist_ok=True)
        place = f"images/{name}.{kind.lower()}"
        (tmp_path / place).write_bytes(content)
        size = Image.open(io.BytesIO(content)).size
        record = Record(
            name, place, "test", None, "g", width_px=size[0], height_px=size[1], frames=frames,
            sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        image = fitted(record, Pictures(tmp_path), PackConfig(side_px=side_px, format=packed_as))
        return Image.open(io.BytesIO(image)), image, content

    return run


def black_on_nothing(side_px=200):
    """A black bar on transparent red: what is hidden must never be seen."""
    picture = Image.new("RGBA", (side_px, side_px), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (side_px // 4, side_px // 4, 3 * side_px // 4 + 1, 3 * side_px // 4 + 1))
    return picture


def test_longest_side_is_fitted_and_alpha_kept(fit, draw):
    picture, _, _ = fit(draw(1, 200, has_alpha=True).resize((200, 50)), side_px=100)
    assert (picture.size, picture.mode) == ((100, 25), "RGBA")
    assert picture.getpixel((0, 0))[3] == 0
    assert fit(Image.new("RGB", (1000, 3)), side_px=100)[0].size == (100, 1)


@pytest.mark.parametrize("side_px", [100, 40])
@pytest.mark.parametrize("packed_as", ["png", "webp"])
def test_the_hidden_colour_of_transparent_pixels_does_not_bleed_into_the_edge(fit, side_px, packed_as):
    picture, _, _ = fit(black_on_nothing(201), side_px=side_px, packed_as=packed_as)
    pixels = np.asarray(picture)
    seen = pixels[pixels[..., 3] > 16]
    assert len(seen) > 100
    assert seen[:, :3].max() <= 12


def test_black_logo_on_nothing_is_never_black_on_black(fit):
    """Seed 002's convert("RGB") drops the alpha of a logo drawn on transparent black: nothing is left."""
    logo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (16, 16, 48, 48))
    assert len(set(np.asarray(logo.convert("RGB")).ravel().tolist())) == 1
    kept, _, _ = fit(logo)
    assert (kept.getpixel((32, 32)), kept.getpixel((0, 0))[3]) == ((0, 0, 0, 255), 0)
    flat, _, _ = fit(logo, packed_as="jpg")
    assert min(flat.getpixel((0, 0))) > 250
    assert max(flat.getpixel((32, 32))) < 5


def test_flat_art_keeps_its_exact_colours_where_seed_002_made_jpeg_of_it(fit, draw):
    logo = draw(3, 80)
    colours = {colour for _, colour in logo.getcolors(1 << 20)}
    stream = io.BytesIO()
    logo.save(stream, "JPEG")
    assert len(Image.open(stream).getcolors(1 << 20)) > 10 * len(colours)
    for packed_as in ("png", "webp"):
        kept, _, _ = fit(logo, packed_as=packed_as)
        assert {colour for _, colour in kept.convert("RGB").getcolors(1 << 20)} == colours


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_what_fits_in_the_wanted_format_keeps_its_bytes(fit, draw, kind):
    packed_as = {"PNG": "png", "WEBP": "webp", "JPEG": "jpg"}[kind]
    _, image, content = fit(draw(1), kind, packed_as=packed_as)
    assert image == content
    _, other, _ = fit(draw(1), kind, packed_as="webp" if packed_as == "png" else "png")
    assert other != content


@pytest.mark.parametrize("packed_as", ["png", "webp"])
def test_lossless_formats_keep_every_pixel_and_the_colour_under_zero_alpha(fit, packed_as):
    picture = black_on_nothing(64)
    kept, _, _ = fit(picture, "TIFF", packed_as=packed_as)
    assert np.array_equal(np.asarray(kept.convert("RGBA")), np.asarray(picture))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_the_picture(fit, draw, kind):
    frames = [draw(number, 48) for number in (1, 2)]
    kept, image, content = fit(
        frames[0], kind, packed_as=kind.lower(), frames=2,
        options={"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True},
    )  # fmt: skip
    assert image != content
    assert getattr(kept, "n_frames", 1) == 1
    assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(frames[0].convert("RGB")))


def test_jpg_has_full_colours_and_its_own_kind(fit):
    """Halved colour planes turn a one-pixel red line on white pink; 4:4:4 keeps it red."""
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((220, 0, 0), (31, 0, 33, 64))
    kept, image, _ = fit(picture, packed_as="jpg")
    assert image.startswith(b"\xff\xd8\xff")
    red, green, _ = kept.convert("RGB").getpixel((31, 32))
    assert (red > 190, green < 50) == (True, True)


def test_a_picture_that_a_tag_turns_is_packed_upright_for_readers_that_know_no_tags(fit):
    picture = Image.new("RGB", (60, 20), "white")
    picture.paste((200, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    kept, image, content = fit(picture, "JPEG", packed_as="jpg", options={"exif": exif})
    assert image != content
    assert (kept.size, kept.getexif().get(0x0112)) == ((20, 60), None)
    assert min(kept.getpixel((10, 2))[:1]) > 180
    assert max(kept.getpixel((10, 2))[1:]) < 40


def test_bytes_that_changed_since_they_were_scraped_are_damaged(fit, draw, tmp_path):
    _, _, content = fit(draw(1), "JPEG")
    path = next((tmp_path / "images").iterdir())
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    record = Record(path.stem, f"images/{path.name}", "test", None, "g")
    with pytest.raises(DataError, match=r"is not the picture that was scraped .* fetch it again"):
        fitted(record, Pictures(tmp_path), PackConfig())


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_one_flipped_bit_of_a_png_is_found_by_its_checksum(draw, tmp_path, place):
    """A drawn SVG goes by the id of its source, so its bytes can only be judged by themselves."""
    stream = io.BytesIO()
    draw(1).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"{content_id(b'<svg/>')}.png"
    record = Record(path.stem, f"images/{path.name}", "test", None, "g")
    path.write_bytes(content)
    assert fitted(record, Pictures(tmp_path), PackConfig()) == bytes(content)
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a whole picture"):
        fitted(record, Pictures(tmp_path), PackConfig())


def test_a_picture_in_a_part_is_read_from_its_place(draw, tmp_path):
    stream = io.BytesIO()
    draw(1).save(stream, "PNG")
    content = stream.getvalue()
    Path(tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.tar").write_bytes(b"x" * 512 + content + b"y" * 100)
    record = Record(
        content_id(content), f"parts/0.tar#512+{len(content)}", "t", None, "g", width_px=96, height_px=96
    )
    assert fitted(record, Pictures(tmp_path), PackConfig()) == content
