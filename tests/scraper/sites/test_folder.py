import json
import os
from pathlib import Path

import pytest

from crest.errors import DataError
from scraper.config import SourceConfig
from scraper.harvest import Drop
from scraper.sites import Item
from scraper.sites.folder import Folder

FIRST, SECOND = 'A red; a blue, and "X".', "Two | crowns,\tone; sword."


@pytest.fixture
def folder(tmp_path, draw):
    root = tmp_path / "logos"
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        draw(number).save(root / name)
    return root


def listed(folder, **settings):
    return Folder().open(SourceConfig(site="folder", path=folder, **settings))


def entries(folder, **settings):
    found = list(listed(folder, **settings).entries)
    items = [one for one in found if isinstance(one, Item)]
    return items, [one for one in found if isinstance(one, Drop)]


def captions(folder, **settings):
    return {item.where: item.card.caption for item in entries(folder, **settings)[0]}


def say(folder, *rows, name="metadata.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write(folder, text, name="clip_dataset.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))


def test_metadata_jsonl_gives_captions_groups_pages_and_licences(folder):
    say(
        folder,
        {
            "file_name": "b.png",
            "text": "A red; and a blue.",
            "brand": "ACME Inc.",
            "source_url": "https://acme.example/",
            "kind": "wordmark",
            "years": "1990-1999",
        },
        {"file_name": "./sub/c.png", "text": "A \n crest.", "license": "CC0", "written_by": "rule"},
    )
    items, dropped = entries(folder)
    assert [(item.where, item.card.caption) for item in items] == [
        ("b.png", "A red; and a blue."),
        ("sub/c.png", "A crest."),
        ("a.png", None),
    ]
    first, second, third = (item.card for item in items)
    assert (first.title, first.group, first.page_url) == ("ACME Inc.", "acme-inc", "https://acme.example/")
    assert (first.kind, first.years) == ("wordmark", "1990-1999")
    assert (second.group, second.licence, second.written_by) == ("sub-c", "CC0", "rule")
    assert (third.title, third.group, third.source_file) == ("a", "a", "a")
    assert dropped == []


def test_names_and_words_that_no_utf_8_can_hold_cost_no_picture(folder):
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    (folder / "a.png").rename(path)
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "A lion \\ud83d"}')
    items, _ = entries(folder)
    assert [item.where for item in items] == ["b.png", "caf?.png", "sub/c.png"]
    assert items[0].card.caption == "A lion ?"
    assert items[1].read() == path.read_bytes()
    assert (items[1].card.title, items[1].card.source_file) == ("caf?", "caf?")


def test_metadata_of_a_subfolder_names_files_of_that_folder(folder):
    say(folder / "sub", {"file_name": "c.png", "text": "A crest."})
    assert captions(folder)["sub/c.png"] == "A crest."


def test_list_of_texts_gives_further_captions(folder):
    say(folder, {"file_name": "a.png", "text": ["One.", "Two.", "Three."]})
    card = entries(folder)[0][0].card
    assert (card.caption, card.further_captions) == ("One.", ("Two.", "Three."))


def test_picture_that_is_named_twice_keeps_both_captions_and_repeats_are_counted(folder):
    rows = [("One.", ""), ("Two.", "ACME"), ("One.", "")]
    say(folder, *({"file_name": "a.png", "text": text, "brand": brand} for text, brand in rows))
    items, dropped = entries(folder)
    card = items[0].card
    assert (card.caption, card.further_captions, card.group) == ("One.", ("Two.",), "acme")
    assert dropped == [Drop("repeated_caption", "a.png")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "header", ["file_name{0}text\n", "filepath{0}title\n", "\ufefffilepath{0}title\n", ""]
)
@pytest.mark.parametrize("is_quoted", [True, False])
def test_table_in_any_separator_keeps_separators_and_quotes_in_captions(folder, separator, header, is_quoted):
    """Seed 002's clip_dataset.csv lost these: 'expected 2 fields, saw 5' at an unquoted caption with ';'."""
    doubled = FIRST.replace('"', '""')
    shown = [f'"{doubled}"', f'"{SECOND}"'] if is_quoted else [FIRST, SECOND]
    rows = [f"a.png{separator}{shown[0]}", f"./sub/c.png{separator}{shown[1]}"]
    write(folder, header.format(separator) + "\n".join(rows) + "\n")
    assert captions(folder) == {"a.png": FIRST, "sub/c.png": " ".join(SECOND.split()), "b.png": None}


@pytest.mark.parametrize("between", [";;", "\t\t", " , ", " | ", "   ", "; ;"])
def test_runs_of_separators_are_one_border(folder, between):
    write(folder, f"a.png{between}A red, big lion.\nb.png{between}A crest.\n")
    assert captions(folder)["a.png"] == "A red, big lion."


def test_caption_before_the_name(folder):
    write(folder, "title;filepath\nA red; a blue.;a.png\n")
    assert captions(folder)["a.png"] == "A red; a blue."


def test_quoted_caption_over_two_lines(folder):
    write(folder, 'filepath;title\na.png;"A red\nlion; roaring."\nb.png;A crest.\n')
    assert captions(folder) == {"a.png": "A red lion; roaring.", "b.png": "A crest.", "sub/c.png": None}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('A lion 5" high', 'A lion 5" high'),
        ('"Bulls" in red', '"Bulls" in red'),
        ('"Bulls", in red', '"Bulls", in red'),
        ('"Never closed', '"Never closed'),
    ],
)
def test_stray_quote_that_can_be_read_in_one_way_is_a_letter(folder, text, read):
    write(folder, f"filepath,title\na.png,{text}\nb.png,A crest.\n")
    assert captions(folder) == {"a.png": read, "b.png": "A crest.", "sub/c.png": None}


def test_stray_quote_that_can_be_read_in_two_ways_is_named_with_its_line(folder):
    write(folder, 'filepath,title\nb.png,A crest.\na.png,"Never\nclosed\n')
    with pytest.raises(DataError, match=r"clip_dataset\.csv:3: opens a quote that is never closed"):
        entries(folder)


def test_stray_quote_among_three_columns_is_named_with_its_line(folder):
    write(folder, 'file_name,text,brand\na.png,"A" red,ACME\nb.png,A crest.,ACME\n')
    with pytest.raises(DataError, match=r"clip_dataset\.csv:2: has a stray quote"):
        entries(folder)


def test_too_many_cells_among_three_columns_are_an_error_not_a_loss(folder):
    write(folder, "file_name;text;brand\na.png;A red; a blue.;ACME\n", "metadata.csv")
    with pytest.raises(DataError, match=r"metadata\.csv:2: has 4 cells, expected 3"):
        entries(folder)


def test_table_that_names_no_picture_is_told(folder):
    write(folder, "epoch,loss\n1,0.5\n")
    with pytest.raises(DataError, match=r"clip_dataset\.csv:1: begins with 'epoch,loss', expected a header"):
        entries(folder)


def test_index_column_of_pandas_is_no_matter(folder):
    write(folder, ",filepath,title\n0,a.png,A lion.\n")
    assert captions(folder)["a.png"] == "A lion."


def test_two_tables_of_one_folder_are_both_read(folder):
    write(folder, "filepath\ttitle\na.png\tA lion.\n")
    write(folder, "filepath\ttitle\nb.png\tA crest.\n", "clip_dataset_val.csv")
    assert captions(folder) == {"a.png": "A lion.", "b.png": "A crest.", "sub/c.png": None}


def test_table_elsewhere_names_pictures_of_the_source_or_beside_itself(folder):
    (folder.parent / "tables").mkdir()
    table = folder.parent / "tables" / "words.tsv"
    write(
        table.parent,
        f"filepath\ttitle\na.png\tA lion.\n../logos/b.png\tA crest.\n{folder}/sub/c.png\tC.\n",
        table.name,
    )
    assert captions(folder, captions=table) == {"a.png": "A lion.", "b.png": "A crest.", "sub/c.png": "C."}
    with pytest.raises(DataError, match=r"correct source\.captions"):
        entries(folder, captions=folder / "nowhere.csv")


def test_table_written_on_another_machine_is_read(folder):
    write(folder, "filepath;title\n/home/me/data/a.png;A lion.\n/home/me/data/sub/c.png;A crest.\n")
    assert captions(folder) == {"a.png": "A lion.", "sub/c.png": "A crest.", "b.png": None}
    write(folder, "filepath;title\nC:\\data\\a.png;A lion.\nC:\\data\\sub\\c.png;A crest.\n")
    assert captions(folder) == {"a.png": "A lion.", "sub/c.png": "A crest.", "b.png": None}


def test_table_may_name_files_of_words(folder):
    write(folder, "A red lion.", "a.txt")
    write(folder, "filepath,title\na.png,a.txt\nb.png,gone.txt\n")
    items, dropped = entries(folder)
    assert {item.where: item.card.caption for item in items}["a.png"] == "A red lion."
    assert dropped == [Drop("no_caption_file", "gone.txt")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark_are_read(folder, encoding):
    write(folder, "filepath;title\na.png;Un écusson doré.\n", encoding=encoding)
    assert captions(folder)["a.png"] == "Un écusson doré."


def test_latin_1_is_refused_with_its_line(folder):
    write(folder, "filepath;title\na.png;Un lion.\nb.png;Un écusson.\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"clip_dataset\.csv:3: is not UTF-8 \(byte 0xe9; Latin-1 perhaps\)"):
        entries(folder)


def test_accents_may_be_spelled_in_either_way(folder, draw):
    draw(7).save(folder / "e\u0301cu.png")
    write(folder, "filepath;title\n\u00e9cu.png;A shield.\n")
    assert "A shield." in captions(folder).values()


def test_text_beside_each_picture(folder):
    write(folder, "A red shield.\n", "a.txt")
    write(folder, "A blue shield.\n", "b.png.txt")
    write(folder / "sub", "A crown.", "c.caption")
    write(folder, "buy milk", "notes.txt")
    assert captions(folder) == {"a.png": "A red shield.", "b.png": "A blue shield.", "sub/c.png": "A crown."}
    assert entries(folder)[1] == [Drop("no_image", "notes.txt")]


def test_text_beside_a_picture_joins_what_the_table_says(folder):
    say(folder, {"file_name": "a.png", "text": "One."})
    write(folder, "Two.", "a.txt")
    write(folder, "Public domain.", "licence.txt")
    items, dropped = entries(folder)
    assert (items[0].card.caption, items[0].card.further_captions, dropped) == ("One.", ("Two.",), [])


def test_one_caption_for_all_that_have_none(folder):
    write(folder, "A red shield.\n", "a.txt")
    assert captions(folder, prompt="a photo of a felix person") == {
        "a.png": "A red shield.",
        "b.png": "a photo of a felix person",
        "sub/c.png": "a photo of a felix person",
    }


def test_captions_without_pictures_are_counted(folder):
    say(
        folder,
        {"file_name": "a.png", "text": "A."},
        {"file_name": "gone.png", "text": "B."},
        {"file_name": ""},
    )
    assert entries(folder)[1] == [
        Drop("no_image", "gone.png"),
        Drop("no_image", f"{folder / 'metadata.jsonl'}: row 3: no file name"),
    ]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "C:\\secret.png"])
def test_name_that_leads_out_of_the_folder_is_refused(folder, name):
    (folder.parent / "secret.png").write_bytes((folder / "a.png").read_bytes())
    say(folder, {"file_name": name, "text": "A."}, {"file_name": "a.png", "text": "B."})
    items, dropped = entries(folder)
    assert dropped == [Drop("outside_folder", name)]
    assert {item.where for item in items} == {"a.png", "b.png", "sub/c.png"}


def test_file_of_words_outside_the_folder_is_not_read(folder):
    (folder.parent / "secret.txt").write_text("the key")
    say(folder, {"file_name": "a.png", "text": "../secret.txt"})
    items, dropped = entries(folder)
    assert items[0].card.caption is None
    assert dropped == [Drop("no_caption_file", "../secret.txt")]


def test_no_caption_names_any_picture(folder):
    say(folder, {"file_name": "x/z.png", "text": "A."})
    with pytest.raises(DataError, match=r"none of its 1 captions names one of the 3 pictures .*'x/z\.png'"):
        entries(folder)


def test_row_without_a_file_name_is_told(folder):
    say(folder, {"text": "A."})
    with pytest.raises(DataError, match=r"metadata\.jsonl: row 1: names no picture \(it has text\)"):
        entries(folder)


def test_captions_without_a_single_picture(tmp_path):
    say(tmp_path, {"file_name": "a.png", "text": "A."})
    with pytest.raises(DataError, match="holds 1 captions but no picture"):
        entries(tmp_path)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is empty, expected a folder of pictures"):
        entries(tmp_path)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        entries(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is a file"):
        entries(tmp_path / "a.png")


def test_fingerprint_changes_with_a_table_elsewhere(folder):
    table = folder.parent / "words.csv"
    write(table.parent, "filepath,title\na.png,A lion.\n", table.name)
    before = listed(folder, captions=table).fingerprint
    write(table.parent, "filepath,title\na.png,A lion!!\n", table.name)
    assert listed(folder, captions=table).fingerprint != before
