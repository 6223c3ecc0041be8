import pytest

from scraper.opt_out import header_opt_out, page_opt_out

US = "crest-scraper"


@pytest.mark.parametrize(
    "value",
    [
        "noai",
        "NoAI",
        "noimageai",
        "noml",
        "noindex, noai",
        "index,follow ,  noimageai",
        "crest-scraper: noai",
        "Crest-Scraper: noindex, noai",
        "otherbot: noindex, crest-scraper: noai",
        "otherbot: noindex\nnoai",
        "unavailable_after: 25 Jun 2030 15:00:00 PST, noai",
        "unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noai",
        "max-image-preview: large, noimageai",
    ],
)
def test_header_that_is_meant_for_us_is_heeded(value: str) -> None:
    assert header_opt_out({"x-robots-tag": value}, US).startswith("X-Robots-Tag: no")


@pytest.mark.parametrize(
    "value",
    [
        "noindex, nofollow",
        "otherbot: noai",
        "otherbot: noindex, noai",
        "all",
        "",
        "noaid",
        "otherbot: noai\ncrest-scraper: noindex",
        "max-snippet: -1",
        "otherbot: unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noai",
    ],
)
def test_header_for_others_or_of_another_matter_is_not(value: str) -> None:
    assert header_opt_out({"x-robots-tag": value}, US) == ""


def test_reservation_of_text_and_data_mining_is_heeded() -> None:
    assert header_opt_out({"tdm-reservation": " 1 "}, US) == "TDM-Reservation: 1"
    assert header_opt_out({"tdm-reservation": "0"}, US) == ""


@pytest.mark.parametrize(
    "meta",
    [
        '<meta name="robots" content="noai">',
        "<META CONTENT='index, NOIMAGEAI' NAME='Robots'/>",
        '<meta name="crest-scraper" content="noml">',
        '<meta content="noimageai, noai" property="x" name=robots>',
        '<meta\n  name="robots"\n  content="noindex noai">',
        '<meta name="tdm-reservation" content="1">',
    ],
)
def test_meta_element_that_is_meant_for_us_is_heeded(meta: str) -> None:
    assert page_opt_out(f"<html><head>{meta}</head><body></body></html>", US)


@pytest.mark.parametrize(
    "meta",
    [
        '<meta name="robots" content="noindex, nofollow">',
        '<meta name="otherbot" content="noai">',
        '<meta name="description" content="noai">',
        '<!-- <meta name="robots" content="noai"> -->',
        "<p>noai</p>",
        '<meta name="robots" content="noai',
        "<meta>",
    ],
)
def test_meta_element_for_others_or_of_another_matter_is_not(meta: str) -> None:
    assert page_opt_out(f"<html><head>{meta}</head></html>", US) == ""


def test_hostile_page_takes_no_time() -> None:
    for piece in ("<meta ", "<!--", "<meta name=robots content=", "<"):
        assert page_opt_out(piece * 400_000, US) == ""
