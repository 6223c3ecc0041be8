import re

import pytest
from PIL import Image

from crest.records import Record, content_id, write_jsonl, write_records
from scraper.contact_sheet import PER_REASON, write_sheet
from scraper.harvest import Drop


@pytest.fixture
def sheet(tmp_path, as_png):
    """Writes pictures, records and losses, and returns the page."""
    (tmp_path / "images").mkdir()

    def put(picture):
        content = as_png(picture)
        name = f"images/{content_id(content)}.png"
        (tmp_path / name).write_bytes(content)
        return name

    def make(drops, records=()):
        write_jsonl(tmp_path / "dropped.jsonl", map(vars, drops))
        write_records(tmp_path / "records.jsonl", records)
        write_sheet(tmp_path)
        return (tmp_path / "dropped.html").read_text()

    make.put = put
    return make


def test_duplicate_stands_beside_the_twin_that_was_kept(sheet, draw):
    kept, lost = sheet.put(draw(1)), sheet.put(draw(1, 64))
    record = Record("k", kept, "s", None, "g", title="Kings <1990>")
    page = sheet([Drop("near_duplicate", "https://a.example/x.png", lost, "k")], [record])
    assert len(re.findall(r'<img class="dropped"', page)) == 1
    assert len(re.findall(r'<img class="kept"', page)) == 1
    assert "kept: Kings &lt;1990&gt;" in page
    assert '<a href="https://a.example/x.png"' in page


def test_reasons_come_with_counts_the_most_frequent_first(sheet):
    drops = [Drop("http_404", f"https://a.example/{number}.png") for number in range(PER_REASON + 5)]
    page = sheet([Drop("broken", "x.png"), *drops])
    assert re.findall(r"<h2>(\w+) <span>(\d+)", page) == [("http_404", str(PER_REASON + 5)), ("broken", "1")]
    assert page.count("<li>") == PER_REASON + 1
    assert "and 5 more" in page


def test_what_strangers_wrote_is_no_markup(sheet, draw):
    nasty = '"><script>alert(1)</script>'
    page = sheet(
        [
            Drop("too_small", nasty, sheet.put(draw(2))),
            Drop("http_404", f"https://a.example/{nasty}"),
            Drop("http_404", "javascript:alert(1)"),
            Drop(nasty, "x"),
        ]
    )
    assert "<script" not in page
    assert 'href="javascript' not in page


def test_page_asks_nothing_of_the_network(sheet, draw):
    page = sheet([Drop("blank", "https://a.example/x.png", sheet.put(Image.new("RGB", (80, 80), "navy")))])
    assert all(address.startswith("data:image/") for address in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"<(link|script|iframe)|@import|url\(", page)


def test_long_addresses_are_cut_for_the_eye_alone(sheet):
    address = "https://a.example/" + "x" * 400
    page = sheet([Drop("http_404", address)])
    assert f'href="{address}"' in page
    assert f">{address}<" not in page


def test_picture_that_is_gone_costs_its_thumbnail_only(sheet):
    page = sheet([Drop("blank", "x", "images/gone.png")])
    assert "dropped: no picture" in page


def test_nothing_dropped_is_said(sheet):
    assert "Nothing was dropped." in sheet([])
