import io

import pytest

from crest.images import read_image
from crest.records import content_id
from scraper.refused import Refused
from scraper.pictures import keep_picture, picture_type


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
