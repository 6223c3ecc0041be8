import base64
import contextlib
import gzip
import io
import threading

import numpy as np
import pytest
import resvg_py
from PIL import Image

from scraper.refused import Refused
from scraper.store import keep_picture
from scraper.svg import MAX_SIZE_BYTES, render_svg

RECT = '<rect width="10" height="20" fill="red"/>'


def svg(inside, size='width="10" height="20"', before=""):
    return (
        f'{before}<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>'
        f"{inside}</svg>"
    ).encode()


def drawn(content, side_px=100):
    return Image.open(io.BytesIO(render_svg(content, "x.svg", side_px)))


def refused(content, **limits):
    with pytest.raises(Refused) as caught:
        render_svg(content, "x.svg", 100, **limits)
    assert str(caught.value).startswith("x.svg: ")
    return caught.value.reason


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ('width="10" height="20"', (50, 100)),
        ('viewBox="0 0 40 20"', (100, 50)),
        ('width="100%" height="100%" viewBox="0,0,40,20"', (100, 50)),
        ('width="12.7mm" height="5.08cm"', (25, 100)),
        ("", (50, 100)),
        ('width="1e9" height="1"', (100, 1)),
        ('width="1" height="1e9"', (1, 100)),
    ],
)
def test_longest_side_is_as_asked_and_the_aspect_is_kept(size, expected):
    assert drawn(svg(RECT, size)).size == expected


def test_ground_stays_transparent_and_colours_are_exact():
    picture = drawn(svg('<circle cx="5" cy="10" r="5" fill="#0a5fb4"/>'))
    assert picture.mode == "RGBA"
    assert picture.getpixel((0, 0))[3] == 0
    assert picture.getpixel((25, 50)) == (10, 95, 180, 255)


def test_same_drawing_gives_the_same_bytes_from_any_thread():
    content = svg('<circle cx="5" cy="10" r="5" fill="red" stroke="blue"/>')
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(render_svg(content, "x", 64))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {render_svg(content, "x", 64)}
    assert len(answers) == 8


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    "element",
    ['<image width="10" height="10" xlink:href="{}"/>', '<image width="10" height="10" href="{}"/>'],
)
def test_file_that_exists_is_not_drawn(tmp_path, scheme, element):
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "secret.png")
    content = svg(element.format(f"{scheme}{tmp_path}/secret.png"))
    if not scheme:  # the trap is real: resvg itself would read it
        raw = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=content.decode())))
        assert raw.getpixel((5, 5)) == (0, 0, 255, 255)
    assert refused(content) == "svg_external"


def test_file_behind_a_drawing_within_the_drawing_is_not_drawn(tmp_path):
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "secret.png")
    inner = svg(f'<image width="10" height="10" href="{tmp_path}/secret.png"/>')
    address = f"data:image/svg+xml;base64,{base64.b64encode(inner).decode()}"
    assert refused(svg(f'<image width="10" height="20" href="{address}"/>')) == "svg_external"


@pytest.mark.parametrize(
    "element",
    [
        '<image width="9" height="9" href="{}/a.png"/>',
        '<use href="{}/a.svg#b"/>',
        '<filter id="f"><feImage href="{}/a.png"/></filter><rect width="9" height="9" filter="url(#f)"/>',
        '<linearGradient id="g" xlink:href="{}/a.svg#g"/>',
        '<style>@import url("{0}/a.css"); rect {{ fill: url({0}/a.svg#g) }}</style>' + RECT,
        '<style href="{}/a.css"/>' + RECT,
        '<rect width="9" height="9" style="fill:url({}/a.svg#g) red"/>',
        '<script href="{}/a.js"/>' + RECT,
        '<a href="{}/">' + RECT + "</a>",
    ],
)
def test_no_drawing_reaches_the_network(server, element):
    with contextlib.suppress(Refused):
        drawn(svg(element.format(server.url)))
    before = f'<?xml-stylesheet href="{server.url}/a.css"?><!DOCTYPE svg SYSTEM "{server.url}/a.dtd">'
    assert drawn(svg(RECT, before=before)).getpixel((5, 5)) == (255, 0, 0, 255)
    entity = f'<!DOCTYPE svg [<!ENTITY a SYSTEM "{server.url}/a.txt">]>'
    assert refused(svg("<text>&a;</text>", before=entity)) == "svg_external"
    assert not server.requests


def test_entity_of_a_file_is_not_read(tmp_path):
    (tmp_path / "secret.txt").write_text("key")
    entity = f'<!DOCTYPE svg [<!ENTITY a SYSTEM "file://{tmp_path}/secret.txt">]>'
    assert refused(svg("<text>&a;</text>", before=entity)) == "svg_external"


def test_embedded_picture_is_drawn():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "blue").save(stream, "PNG")
    address = base64.b64encode(stream.getvalue()).decode()
    inside = (
        f'<image width="10" height="20" preserveAspectRatio="none" href="data:image/png;base64,{address}"/>'
    )
    assert drawn(svg(inside)).getpixel((25, 50)) == (0, 0, 255, 255)


def test_embedded_bomb_is_refused():
    stream = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(stream, "PNG")
    address = base64.b64encode(stream.getvalue()).decode()
    assert refused(svg(f'<image width="10" href="data:image/png;base64,{address}"/>')) == "svg_too_complex"


def test_entities_of_illustrator_are_read():
    before = '<!DOCTYPE svg [<!ENTITY ns_svg "http://www.w3.org/2000/svg"><!ENTITY ink "fill:#00f;">]>'
    inside = '<rect width="10" height="20" style="&ink;"/>'
    content = svg(inside, before=before).replace(b'http://www.w3.org/2000/svg" xmlns:x', b'&ns_svg;" xmlns:x')
    assert b"&ns_svg;" in content
    assert drawn(content).getpixel((5, 5)) == (0, 0, 255, 255)


def test_billion_laughs_and_its_relatives_are_refused():
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    assert (
        refused(svg("<text>&l9;</text>", before=f'<!DOCTYPE svg [<!ENTITY l0 "ha">{laughs}]>'))
        == "svg_too_complex"
    )
    many = f'<!DOCTYPE svg [<!ENTITY a "{"a" * 900}">]>'
    assert refused(svg(f"<text>{'&a;' * 60_000}</text>", before=many)) in ("svg_too_complex", "broken_svg")


@pytest.mark.parametrize(
    "inside",
    [
        "<g>" * 5000 + RECT + "</g>" * 5000,
        "".join(
            f'<g id="g{n}">{f"""<use xlink:href="#g{n - 1}"/>""" * 10 if n else RECT}</g>' for n in range(12)
        )
        + '<use xlink:href="#g11"/>',
        '<filter id="f"><feTurbulence baseFrequency="0.1" numOctaves="100000000"/></filter>'
        '<rect width="10" height="20" filter="url(#f)"/>',
    ],
)
def test_drawing_that_is_too_much_costs_a_bounded_time_and_the_next_one_is_drawn(inside):
    assert refused(svg(inside), max_cpu_s=1) == "svg_too_complex"
    assert drawn(svg(RECT)).size == (50, 100)


def test_zipped_drawing_is_drawn_and_kept(tmp_path):
    kept = keep_picture(gzip.compress(svg(RECT)), "x.svgz", tmp_path, svg_side_px=64)
    assert (kept.width_px, kept.height_px, kept.image.rpartition(".")[2]) == (32, 64, "png")


def test_zipped_bomb_is_refused_and_a_cut_zip_is_broken():
    assert refused(gzip.compress(b" " * (MAX_SIZE_BYTES + 2))) == "svg_too_complex"
    assert refused(gzip.compress(svg(RECT))[:-12]) == "broken_svg"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nope",
        b"<html/>",
        svg(RECT)[:-3],
        svg(RECT, 'width="0" height="3"'),
        b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><use xlink:href="#a"/></svg>',
        svg('<image width="9" height="9" href="data:image/png;base64,AAAA"/>'),
        b'<?xml version="1.0" encoding="klingon"?>' + svg(RECT),
    ],
)
def test_broken_drawing_is_refused(content):
    assert refused(content) == "broken_svg"


def test_words_are_drawn_with_a_font_of_this_machine_or_not_at_all():
    picture = np.asarray(drawn(svg('<text y="15" font-size="8">AB</text>', 'width="40" height="20"')))
    assert picture.shape == (50, 100, 4)
