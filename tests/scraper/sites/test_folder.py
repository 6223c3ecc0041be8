import json

import pytest

from crest.errors import DataError
from scraper.sites.folder import read_folder


@pytest.fixture
def folder(tmp_path, draw):
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw(number).save(tmp_path / name)
    return tmp_path


def captions(listing):
    return {one.path.name: one.card.caption for one in listing.cards}


def test_metadata_jsonl_gives_captions_groups_and_pages(folder):
    rows = [
        {
            "file_name": "a.png",
            "text": "A red; and a blue.",
            "brand": "ACME Inc.",
            "source_url": "https://acme.example/",
        },
        {"file_name": "./sub/c.png", "text": "A \n crest.", "license": "CC0"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    listing = read_folder(folder)
    assert captions(listing) == {"a.png": "A red; and a blue.", "c.png": "A crest.", "b.png": None}
    first, second, third = (one.card for one in listing.cards)
    assert (first.group, first.page_url) == ("acme-inc", "https://acme.example/")
    assert (second.group, second.licence) == ("sub-c", "CC0")
    assert third.group == "b"
    assert listing.counts == {"caption_whole": 2, "caption_missing": 1}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_metadata_csv_in_any_separator_keeps_semicolons_and_commas(folder, separator):
    text = (
        separator.join(("file_name", "text"))
        + "\n"
        + separator.join(("a.png", '"A red; a blue, and ""X""."'))
        + "\n"
    )
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig")
    assert captions(read_folder(folder))["a.png"] == 'A red; a blue, and "X".'


def test_semicolon_in_an_unquoted_caption_of_a_comma_csv_is_no_border(folder):
    (folder / "metadata.csv").write_text("filepath,title\na.png,A red; a blue.\n", encoding="utf-8")
    assert captions(read_folder(folder))["a.png"] == "A red; a blue."


def test_csv_row_with_too_many_cells_is_an_error_not_a_loss(folder):
    (folder / "metadata.csv").write_text("file_name;text\na.png;A red; a blue.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.csv:2: has more cells than the header"):
        read_folder(folder)


def test_csv_without_header_is_told(folder):
    (folder / "metadata.csv").write_text("a.png,A red.\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected a header with file_name and text"):
        read_folder(folder)


def test_txt_beside_each_picture(folder):
    (folder / "a.txt").write_text("A red shield.\n", encoding="utf-8")
    (folder / "sub" / "c.txt").write_text("A crown.", encoding="utf-8")
    (folder / "notes.txt").write_text("buy milk", encoding="utf-8")
    listing = read_folder(folder)
    assert captions(listing) == {"a.png": "A red shield.", "b.png": None, "c.png": "A crown."}
    assert listing.dropped == (("no_image", "notes"),)


def test_pictures_without_captions_are_allowed_and_counted(folder):
    listing = read_folder(folder)
    assert set(captions(listing).values()) == {None}
    assert listing.counts["caption_missing"] == 3


def test_captions_without_pictures_are_counted(folder):
    rows = [{"file_name": "a.png", "text": "A."}, {"file_name": "gone.png", "text": "B."}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_folder(folder).dropped == (("no_image", "gone.png"),)


def test_name_that_leads_out_of_the_folder_is_refused(folder):
    (folder.parent / "secret.png").write_bytes((folder / "a.png").read_bytes())
    rows = [{"file_name": "../secret.png", "text": "A."}, {"file_name": "a.png", "text": "B."}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    listing = read_folder(folder)
    assert listing.dropped == (("outside_folder", "../secret.png"),)
    assert {one.path.parent for one in listing.cards} <= {folder, folder / "sub"}


def test_no_caption_names_any_picture(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "x/a.png", "text": "A."}', encoding="utf-8")
    with pytest.raises(DataError, match=r"none of its 1 captions names one of its 3 pictures .*'x/a\.png'"):
        read_folder(folder)


def test_row_without_a_file_name_is_told(folder):
    (folder / "metadata.jsonl").write_text('{"text": "A."}', encoding="utf-8")
    with pytest.raises(DataError, match="names no picture"):
        read_folder(folder)


def test_captions_without_a_single_picture(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A."}', encoding="utf-8")
    with pytest.raises(DataError, match="holds 1 captions but no picture"):
        read_folder(tmp_path)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is empty, expected a folder of pictures"):
        read_folder(tmp_path)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is a file"):
        read_folder(tmp_path / "a.png")


def test_fingerprint_changes_with_the_input_only(folder, draw):
    before = read_folder(folder).fingerprint
    assert read_folder(folder).fingerprint == before
    draw(9).save(folder / "d.png")
    assert read_folder(folder).fingerprint != before
