import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crest.images import flatten, read_image
from crest.records import content_id
from scraper.pictures import examine, picture_type
from scraper.refused import Refused
from scraper.store import keep_picture


def test_original_bytes_and_alpha_are_kept(tmp_path, draw, as_png):
    content = as_png(draw(1, has_alpha=True))
    kept = keep_picture(content, "x", tmp_path)
    path = tmp_path / kept.image
    assert path.read_bytes() == content
    assert kept.id == content_id(content) == path.stem
    assert read_image(path).mode == "RGBA"
    assert read_image(path).getpixel((0, 0))[3] == 0
    assert (kept.width_px, kept.height_px) == (96, 96)


def test_type_comes_from_the_bytes(tmp_path, draw):
    for form, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp")):
        stream = io.BytesIO()
        draw(1).save(stream, form)
        assert picture_type(stream.getvalue()) == suffix


def test_page_served_as_a_picture_is_not_one(tmp_path):
    with pytest.raises(Refused) as refused:
        keep_picture(b"<!DOCTYPE html><html>Please log in</html>", "http://x.example/a.png", tmp_path)
    assert refused.value.reason == "html_not_image"
    assert not (tmp_path / "images").exists()


def test_half_a_picture_is_broken(tmp_path, draw, as_png):
    content = as_png(draw(1))
    with pytest.raises(Refused) as refused:
        keep_picture(content[: len(content) // 2], "x", tmp_path)
    assert refused.value.reason == "broken"


def test_body_that_is_already_on_disk_is_linked(tmp_path, draw, as_png):
    body = tmp_path / "body"
    body.write_bytes(as_png(draw(1)))
    for _ in range(2):
        kept = keep_picture(body.read_bytes(), "x", tmp_path, body)
    assert (tmp_path / kept.image).stat().st_ino == body.stat().st_ino
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{kept.id}.png"]


def test_picture_that_was_cut_short_by_a_crash_is_written_again(tmp_path, draw, as_png):
    content = as_png(draw(1))
    kept = keep_picture(content, "x", tmp_path)
    (tmp_path / kept.image).write_bytes(b"")
    keep_picture(content, "x", tmp_path)
    assert (tmp_path / kept.image).read_bytes() == content


def encoded(picture: Image.Image, form: str, **rest: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **rest)
    return stream.getvalue()


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20">'
    '<rect width="40" height="20" fill="red"/></svg>'
)


@pytest.mark.parametrize(
    "content",
    [
        SVG.encode(),
        b"\xef\xbb\xbf  \n" + SVG.encode(),
        b"<?xml version='1.0'?>\n<!-- made > by -- hand --><!-- <html> -->\n" + SVG.encode(),
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">' + SVG.encode(),
        b'<!DOCTYPE svg [ <!ENTITY a "x"> <!ENTITY b ">"> ]>\n' + SVG.encode(),
        SVG.replace("<svg", "<svg:svg").replace("</svg", "</svg:svg").encode(),
        b"\xff\xfe" + SVG.encode("utf-16-le"),
    ],
)
def test_svg_is_known_by_its_first_element(content: bytes) -> None:
    assert picture_type(content) == "svg"


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Please log in</html>",
        b"\n\n<HTML><body>404</body></HTML>",
        b"\xef\xbb\xbf<!-- x --><!doctype html><title>x</title><svg></svg>",
        b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "a" "b"><html xmlns="x"><svg/></html>',
        b"<script>location='/login'</script>",
    ],
)
def test_page_that_pretends_to_be_a_picture_is_told_apart(content: bytes) -> None:
    with pytest.raises(Refused, match="is a web page") as refused:
        examine(content, "x")
    assert refused.value.reason == "html_not_image"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"II*\0" + bytes(40), "tiff"),
        (b"MM\0*" + bytes(40), "tiff"),
        (b"\0\0\1\0" + bytes(40), "ico"),
        (b"%PDF-1.7", "pdf"),
        (b"8BPS" + bytes(40), "psd"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    ],
)
def test_pictures_of_other_kinds_are_named(content: bytes, name: str) -> None:
    with pytest.raises(Refused, match=name) as refused:
        examine(content, "x")
    assert refused.value.reason == "unsupported_type"


def test_nonsense_is_no_picture() -> None:
    for content in (b"", b"\0", b"not a picture", b"<", b"<!--", b"<!DOCTYPE svg [", bytes(1000)):
        with pytest.raises(Refused) as refused:
            examine(content, "x")
        assert refused.value.reason == "not_an_image"


def test_svg_is_kept_as_what_it_shows_under_the_hash_of_its_own_bytes(tmp_path: Path) -> None:
    content = SVG.encode()
    body = tmp_path / "body"
    body.write_bytes(content)
    kept = keep_picture(content, "x", tmp_path, body, svg_side_px=64)
    assert kept.id == content_id(content)
    assert kept.sha256 == hashlib.sha256(content).hexdigest()
    assert kept.image == f"images/{kept.id}.png"
    found = read_image(tmp_path / kept.image)
    assert found.size == (kept.width_px, kept.height_px) == (64, 32)
    assert flatten(found).getpixel((9, 9)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animation_shows_its_first_frame_and_keeps_its_bytes(tmp_path: Path, draw, form: str) -> None:
    frames = [draw(seed) for seed in range(3)]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    kept = keep_picture(content, "x", tmp_path)
    assert kept.frames == 3
    assert (tmp_path / kept.image).read_bytes() == content
    first = np.asarray(flatten(read_image(tmp_path / kept.image)), dtype=float)
    errors = [float(np.abs(first - np.asarray(frame, dtype=float)).mean()) for frame in frames]
    assert errors.index(min(errors)) == 0


def test_still_pictures_have_one_frame(draw) -> None:
    for form in ("GIF", "WEBP", "PNG", "JPEG", "BMP", "AVIF"):
        assert examine(encoded(draw(1), form), form).checked.frames == 1


def test_bomb_is_refused_by_its_header() -> None:
    """The header promises 30,000 x 30,000 pixels; there is nothing behind it to decode."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    whole = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content = b"\x89PNG\r\n\x1a\n" + whole + b"\0\0\0\0IDAT"
    with pytest.raises(Refused, match="larger than 64 megapixels") as refused:
        examine(content, "x")
    assert refused.value.reason == "too_many_pixels"


def test_limit_of_pixels_is_the_configs(draw) -> None:
    content = encoded(draw(1), "PNG")
    with pytest.raises(Refused) as refused:
        examine(content, "x", max_megapixels=0.009)
    assert refused.value.reason == "too_many_pixels"
    assert examine(content, "x", max_megapixels=0.01).picture.size == (96, 96)


def test_picture_of_a_camera_has_its_upright_size(tmp_path: Path) -> None:
    note = Image.Exif()
    note[0x0112] = 6
    content = encoded(Image.new("RGB", (80, 40), "red"), "JPEG", exif=note)
    kept = keep_picture(content, "x", tmp_path)
    assert (kept.width_px, kept.height_px) == (40, 80)


def test_names_of_files_come_from_bytes_alone(tmp_path: Path, draw, as_png) -> None:
    where = "http://x.example/../../../etc/passwd%00.png"
    kept = keep_picture(as_png(draw(1)), where, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == [f"{kept.id}.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_damaged_pictures_are_always_a_counted_refusal(draw) -> None:
    """Whatever Pillow raises on them: an error that is not expected would end the run."""
    random = np.random.default_rng(0)
    forms = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF")
    whole = [np.frombuffer(encoded(draw(1, 48), form), dtype=np.uint8) for form in forms]
    refusals = 0
    for turn in range(180):
        content = whole[turn % len(whole)].copy()
        content[random.integers(0, len(content), 6)] = random.integers(0, 256, 6)
        content = content[: random.integers(len(content) // 2, len(content) + 1)]
        try:
            examine(content.tobytes(), "x")
        except Refused:
            refusals += 1
    assert refusals > 50
