"""The parts of a page: texts that cannot break it, tables, pictures, plots."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crest.page import (
    MAX_DOTS,
    STYLE,
    Line,
    Strip,
    curves,
    document,
    forest,
    histogram,
    page,
    picture,
    png,
    table,
    text,
)

NASTY = '<b onclick="x">&'


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """The corners of every polyline."""
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in one.split())] for one in found]


def test_a_page_asks_for_nothing_and_says_what_it_is() -> None:
    drawn = page(NASTY, "<p>body</p>")
    assert "default-src 'none'" in drawn
    assert not re.search(r"https?://|<script|@import|url\(", drawn)
    assert f"<title>{text(NASTY)}</title>" in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_a_document_has_a_style_of_its_own_and_asks_for_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "own.css").write_text("p { color: green }", encoding="utf-8")
    drawn = document(NASTY, tmp_path / "own.css", "<header></header>")
    assert "<style>\np { color: green }</style>" in drawn
    assert "default-src 'none'" in drawn
    assert "<body>\n<header></header>\n</body>" in drawn
    assert f"<title>{text(NASTY)}</title>" in drawn


def test_the_style_travels_with_the_package() -> None:
    import tomllib

    settings = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))
    assert STYLE.name in settings["tool"]["setuptools"]["package-data"]["crest"]


def test_texts_are_safe_in_every_part() -> None:
    strip = Strip(NASTY, 1.0, 0.5, 1.5, NASTY, "even")
    parts = [
        table(NASTY, ("a",), [("b",)]),
        forest([strip], left=NASTY, right=NASTY, description=NASTY),
        histogram(np.array([1.0, -1.0]), label=NASTY, description=NASTY),
        curves([Line(NASTY, [(0, 1)])], across=NASTY, description=NASTY, levels=[(NASTY, 2.0)]),
        picture(np.zeros((3, 2, 2), np.uint8), NASTY),
    ]
    assert all(NASTY not in part and text(NASTY) in part for part in parts)


def test_a_picture_comes_back_pixel_by_pixel() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(3, 2, 3)
    drawn = picture(pixels, "dots")
    assert drawn == png(Image.fromarray(pixels.transpose(1, 2, 0)), "dots")
    data = re.search(r'base64,([^"]*)"', drawn)
    assert data
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as found:
        assert np.array_equal(np.asarray(found).transpose(2, 0, 1), pixels)
    assert 'width="3" height="2"' in drawn


def test_a_curve_lies_where_its_values_say() -> None:
    svg = curves([Line("loss", [(0, 4.0), (5, 3.0), (10, 2.0)])], across="step", description="falls")
    (line,) = points_of(svg)
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)  # tenths of a pixel are written
    assert y0 < y1 < y2  # down the screen is down in value
    assert "step 0<" in svg
    assert ">10<" in svg
    assert svg.count("<circle") == 3


def test_levels_and_bands_share_the_scale_of_the_curves() -> None:
    svg = curves(
        [Line("R@1", [(0, 0.2), (4, 0.6)], band=[(0, 0.1, 0.3), (4, 0.5, 0.7)])],
        across="step",
        description="rises",
        levels=[("chance", 0.2)],
        shown=lambda value: f"{100 * value:.0f} %",
    )
    level, line = points_of(svg)
    assert level[0][1] == level[1][1] == line[0][1]
    corners = re.search(r'<polygon points="([^"]*)"', svg)
    assert corners
    ys = [float(pair.split(",")[1]) for pair in corners[1].split()]
    assert len(ys) == 4
    assert ys[0] < line[0][1] < ys[3]
    assert "chance 20 %" in svg


def test_one_point_or_a_flat_curve_is_drawn_too() -> None:
    for points in ([(7, 3.0)], [(0, 0.0), (9, 0.0)]):
        svg = curves([Line("x", points)], across="step", description="flat")
        assert "nan" not in svg
        assert all(0 <= x <= 420 and 0 <= y <= 230 for line in points_of(svg) for x, y in line)


def test_long_curves_have_no_dots() -> None:
    line = Line("x", [(step, float(step)) for step in range(MAX_DOTS + 1)])
    assert "<circle" not in curves([line], across="step", description="many")


def test_curves_can_be_told_apart_without_colours() -> None:
    lines = [Line("a", [(0, 1.0)]), Line("b", [(0, 2.0)], dash="6 3")]
    svg = curves(lines, across="step", description="two")
    assert svg.count('stroke-dasharray="6 3"') == 2  # the curve and its name


@pytest.mark.parametrize("ends", [(21.641, 21.649), (0.0, 3e-5), (1.5, 7.0), (2.0, 2.0)])
def test_ticks_do_not_look_the_same(ends: tuple[float, float]) -> None:
    svg = curves([Line("x", [(0, ends[0]), (1, ends[1])])], across="step", description="x")
    ticks = re.findall(r'text-anchor="end">([^<]*)</text>', svg)[:3]
    assert len(set(ticks)) == 3
    assert [float(tick) for tick in ticks] == sorted(float(tick) for tick in ticks)
    assert all(len(tick) <= 8 for tick in ticks)
