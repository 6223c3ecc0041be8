import gzip
import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from crest.errors import DataError
from scraper.config import SourceConfig
from scraper.harvest import Drop
from scraper.refused import Refused
from scraper.sites import Item
from scraper.sites.kanji import Kanji, strokes
from scraper.svg import render_svg

DRAWING = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/TR/2001/REC-SVG-20010904/DTD/svg10.dtd" [
<!ATTLIST g xmlns:kvg CDATA #FIXED "http://kanjivg.example" kvg:element CDATA #IMPLIED >
<!ATTLIST path xmlns:kvg CDATA #FIXED "http://kanjivg.example" kvg:type CDATA #IMPLIED > ]>
<svg xmlns="http://www.w3.org/2000/svg" width="109" height="109" viewBox="0 0 109 109">
<g id="kvg:StrokePaths" style="fill:none;stroke:#000000;stroke-width:3;">
<g kvg:element="x"><path kvg:type="x" d="M10,54.5 L99,54.5"/></g></g>
<g id="kvg:StrokeNumbers" style="font-size:8;fill:#808080"><text transform="matrix(1 0 0 1 4 30)">1</text></g>
</svg>"""


def dictionary(*entries):
    rows = "".join(
        f"<character><literal>{literal}</literal><reading_meaning><rmgroup>"
        f"<reading r_type='ja_on'>x</reading>{meanings}</rmgroup></reading_meaning></character>"
        for literal, meanings in entries
    )
    header = "<?xml version='1.0' encoding='utf-8'?><!DOCTYPE kanjidic2 [<!ELEMENT kanjidic2 (character*)>]>"
    return f"{header}<kanjidic2><header><file_version>4</file_version></header>{rows}</kanjidic2>".encode()


ONE, RAIN, LOST = (
    ("一", "<meaning>one</meaning><meaning m_lang='fr'>un</meaning>"),
    ("雨", "<meaning>rain</meaning><meaning m_lang='es'>lluvia</meaning><meaning> wet\n weather </meaning>"),
    ("亡", "<meaning m_lang='fr'>mort</meaning>"),
)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "dic.xml").write_bytes(dictionary(ONE, RAIN, LOST))
    drawings = tmp_path / "kanjivg"
    drawings.mkdir()
    for name in ("04e00", "096e8", "04ea1"):
        (drawings / f"{name}.svg").write_text(DRAWING)
    return tmp_path


def entries(place, path="dic.xml"):
    source = SourceConfig(site="kanji", path=place / path, drawings=place / "kanjivg")
    found = list(Kanji().open(source).entries)
    return [one for one in found if isinstance(one, Item)], [one for one in found if isinstance(one, Drop)]


def test_english_meanings_become_captions_together_and_one_by_one(place):
    (one, rain), dropped = entries(place)
    assert (one.card.caption, one.card.further_captions) == ("kanji meaning one", ())
    assert rain.card.caption == "kanji meaning rain, wet weather"
    assert rain.card.further_captions == ("kanji meaning rain", "kanji meaning wet weather")
    assert (rain.card.title, rain.card.group, rain.card.kind) == ("雨", "雨", "kanji")
    assert "CC BY-SA" in rain.card.licence
    assert dropped == [Drop("no_meaning", "亡")]


def test_what_one_of_the_two_lacks_is_counted(place):
    (place / "kanjivg" / "096e8.svg").unlink()
    (place / "kanjivg" / "05b57.svg").write_text(DRAWING)
    (place / "kanjivg" / "04e00-Kaisho.svg").write_text(DRAWING)
    items, dropped = entries(place)
    assert [item.card.title for item in items] == ["一"]
    assert dropped == [
        Drop("no_drawing", "雨"),
        Drop("no_meaning", "亡"),
        Drop("no_meaning", "字 (05b57.svg)"),
    ]


@pytest.mark.parametrize("side_px", [64, 256])
def test_strokes_are_black_on_nothing_at_any_size_and_numbers_are_not_drawn(place, side_px):
    svg = entries(place)[0][0].read()
    picture = Image.open(io.BytesIO(render_svg(svg, "x", side_px)))
    pixels = np.asarray(picture)
    assert picture.mode == "RGBA"
    assert picture.size == (side_px, side_px)
    assert pixels[side_px // 2, side_px // 2].tolist() == [0, 0, 0, 255]
    rows = np.flatnonzero(pixels[..., 3].any(axis=1))
    thick = 4.5 / 109 * side_px
    assert thick - 1 <= len(rows) <= thick + 2
    assert abs(rows.mean() + 0.5 - side_px / 2) <= 1


def test_zipped_dictionary_and_its_folder_are_read(place):
    (place / "dic.xml.gz").write_bytes(gzip.compress((place / "dic.xml").read_bytes()))
    assert len(entries(place, "dic.xml.gz")[0]) == 2
    (place / "dic.xml").rename(place / "kanjidic2.xml")
    assert len(entries(place, ".")[0]) == 2


def test_dictionary_is_read_as_a_stream(place):
    many = [(chr(0x4E00 + n % 20000), f"<meaning>{'m' * 500}</meaning>") for n in range(2500)]
    (place / "dic.xml").write_bytes(dictionary(*many))
    source = SourceConfig(site="kanji", path=place / "dic.xml", drawings=place / "kanjivg")
    listing = Kanji().open(source)
    tracemalloc.start()
    try:
        count = sum(1 for _ in listing.entries)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 2500
    assert peak < 1_000_000


def test_one_without_the_other_says_what_to_fetch(place):
    source = SourceConfig(site="kanji", path=place / "gone.xml", drawings=place / "kanjivg")
    with pytest.raises(DataError, match=r"gone\.xml: there is no such file, expected KANJIDIC2's XML.*EDRDG"):
        Kanji().open(source)
    (place / "empty").mkdir()
    for drawings in ("gone", "empty"):
        source = SourceConfig(site="kanji", path=place / "dic.xml", drawings=place / drawings)
        with pytest.raises(DataError, match=r"expected KanjiVG's SVG files.*the KanjiVG project"):
            Kanji().open(source)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html><p>Moved</p></html>", "holds no kanji"),
        (b"", "is no whole XML"),
        (dictionary(ONE)[:-30], "is no whole XML"),
        (b'<!DOCTYPE a [<!ENTITY l "ha"><!ENTITY m "&l;&l;">]><kanjidic2/>', "declares the entity 'l'"),
        (b'<!DOCTYPE a [<!ENTITY l SYSTEM "file:///etc/passwd">]><kanjidic2/>', "declares the entity 'l'"),
    ],
)
def test_another_file_is_told(place, content, says):
    (place / "dic.xml").write_bytes(content)
    with pytest.raises(DataError, match=says):
        entries(place)


def test_broken_drawing_is_refused():
    for content, reason in (
        (b"<svg", "broken_svg"),
        (DRAWING.replace("path", "line").encode(), "no_strokes"),
    ):
        with pytest.raises(Refused) as caught:
            strokes(content, "x.svg")
        assert caught.value.reason == reason
