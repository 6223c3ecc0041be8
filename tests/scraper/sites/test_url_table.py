"""Tables of addresses: every format, streamed; what is wrong is told before anything is fetched."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crest.errors import DataError
from scraper.config import SourceConfig
from scraper.sites.url_table import Row, Table, open_table

ROWS: list[dict[str, Any]] = [
    {"url": "http://a.example/1.png", "caption": "a red lion", "club": "Lions"},
    {"url": "http://b.example/2.png", "caption": 'blue "Rovers",\nin two lines; with all', "club": "Rovers"},
    {"url": "http://a.example/3.png", "caption": "", "club": "Lions"},
]


def source(path: Path, **settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"site": "url_table", "path": str(path), **settings})


def csv_text(separator: str) -> str:
    lines = [separator.join(ROWS[0])]
    for row in ROWS:
        lines.append(separator.join('"' + str(value).replace('"', '""') + '"' for value in row.values()))
    return "\n".join(lines) + "\n"


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def write_csv(path: Path) -> None:
    path.write_text(csv_text(","), encoding="utf-8-sig")


def write_semicolons(path: Path) -> None:
    path.write_text(csv_text(";"), encoding="utf-8")


def write_tabs(path: Path) -> None:
    path.write_text(csv_text("\t"), encoding="utf-8")


def write_tildes_zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(csv_text("~").encode()))


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")


def write_jsonl_zipped(path: Path) -> None:
    path.write_bytes(gzip.compress("\n\n".join(json.dumps(row) for row in ROWS).encode()))


def write_row_groups(path: Path) -> None:
    write_parquet(path, ROWS, row_group_size=2)


FORMS: dict[str, Callable[[Path], None]] = {
    "t.csv": write_csv,
    "semicolons.csv": write_semicolons,
    "t.tsv": write_tabs,
    "tildes.csv.gz": write_tildes_zipped,
    "t.jsonl": write_jsonl,
    "t.jsonl.gz": write_jsonl_zipped,
    "t.parquet": write_row_groups,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    table = open_table(source(tmp_path / name, group_column="club"))
    assert [(row.url, row.caption, row.group, row.fault) for row in table.read()] == [
        (row["url"], row["caption"] or None, row["club"], "") for row in ROWS
    ]
    assert table.rows == len(ROWS)
    assert all(row.where.startswith(name) for row in table.read())


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, write in FORMS.items():
        write(tmp_path / name)
    (tmp_path / "readme.md").write_text("not a table")
    table = open_table(source(tmp_path))
    assert table.rows == len(ROWS) * len(FORMS)
    assert [row.where.partition(":")[0].partition(",")[0] for row in table.read()][:: len(ROWS)] == sorted(
        FORMS
    )


def test_parts_are_the_rows_in_order_so_many_at_a_time(tmp_path: Path) -> None:
    lines = "".join(f"http://a.example/{number}.png,logo {number}\n" for number in range(25))
    (tmp_path / "t.csv").write_text("url,caption\n" + lines)
    table = open_table(source(tmp_path / "t.csv"))
    parts = list(table.parts(10))
    assert [len(part) for part in parts] == [10, 10, 5]
    assert [row.caption for part in parts for row in part] == [f"logo {number}" for number in range(25)]
    assert parts[1][0].where == "t.csv:12"


def test_title_and_licence_are_kept_where_there_are_such_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("title,url,licence\nLions,http://a.example/1.png,CC0\n")
    (row,) = open_table(source(tmp_path / "t.csv", caption_column=None)).read()
    assert row == Row("http://a.example/1.png", None, "", "Lions", "CC0", "t.csv:2")


def test_a_grown_table_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("url\nhttp://a.example/1.png\n")
    before = open_table(source(path, caption_column=None))
    path.write_text("url\nhttp://a.example/1.png\nhttp://a.example/2.png\n")
    after = open_table(source(path, caption_column=None))
    assert (before.rows, after.rows) == (1, 2)
    assert before.fingerprint != after.fingerprint


def test_rows_that_cannot_be_read_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = (
        b"url,caption\nhttp://a.example/1.png,a lion\n,no address\nhttp://a.example/2.png,red, white\n"
        b'\nhttp://a.example/3.png,caf\xe9\nhttp://a.example/4.png,a "quote" within\n'
    )
    path.write_bytes(rows)
    table = open_table(source(path))
    assert [(row.where, row.fault, row.caption) for row in table.read()] == [
        ("t.csv:2", "", "a lion"),
        ("t.csv:3", "no_address", None),
        ("t.csv:4", "wrong_column_count", None),
        ("t.csv:6", "not_utf8", None),
        ("t.csv:7", "", 'a "quote" within'),
    ]
    assert table.rows == 5
    jsonl = tmp_path / "t.jsonl"
    jsonl.write_bytes(
        b'{"url": "http://a.example/1.png"}\n{"url": \n["x"]\n{"caption": "x"}\n{"url": "\xe9"}\n'
    )
    faults = [row.fault for row in open_table(source(jsonl)).read()]
    assert faults == ["", "broken_line", "broken_line", "no_address", "not_utf8"]


def test_a_title_that_is_not_utf_8_costs_its_row_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"url,title\nhttp://a.example/1.png,caf\xe9\nhttp://a.example/2.png,caf\n")
    assert [row.fault for row in open_table(source(path, caption_column=None)).read()] == ["not_utf8", ""]
    path = tmp_path / "t.jsonl"
    rows = ['{"url": "x", "licence": "half an emoji \\ud83d"}', "[" * 100_000, '{"url": "y"}']
    path.write_text("\n".join(rows))
    assert [row.fault for row in open_table(source(path)).read()] == ["not_utf8", "broken_line", ""]


def test_a_parquet_that_is_damaged_within_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, ROWS * 500)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the head of the first page; the footer is whole
    path.write_bytes(content)
    table = open_table(source(path))
    with pytest.raises(DataError, match=r"t\.parquet: is not a whole Parquet file"):
        list(table.read())


def told(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        open_table(source(path, **settings))
    return str(error.value)


def test_a_stray_quote_is_told_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    start = "url,caption\nhttp://a.example/1.png,fine\n"
    path.write_text(start + 'http://a.example/2.png,"Lions" of York\n')
    assert told(path).startswith(f"{path}:3: the row that begins here has a stray quote")
    path.write_text(start + 'http://a.example/2.png,"Lions\n' + "http://a.example/3.png,more\n" * 9)
    assert told(path).startswith(f"{path}:3: the row that begins here has a stray quote")
    path.write_text(start + 'http://a.example/2.png,"Lions\n' + "http://a.example/3.png,more\n" * 9999)
    assert told(path).startswith(f"{path}:3: the row that begins here has a stray quote")


@pytest.mark.parametrize("name", FORMS)
def test_a_missing_column_is_told_with_those_there_are(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    said = told(tmp_path / name, url_column="address")
    assert said == (
        f"{tmp_path / name}: has the columns url, caption, club, expected address; name the right one in "
        "source.url_column."
    )


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    assert "there is no such table" in told(tmp_path / "no.csv")
    assert "is no table, expected .csv" in told(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    assert "t.parquet: is not a whole Parquet file" in told(tmp_path)
    (tmp_path / "t.parquet").unlink()
    (tmp_path / "t.jsonl").write_text("url,caption\n")
    assert "begins with a line that is not JSON" in told(tmp_path)
    (tmp_path / "t.jsonl").write_text("")
    assert "has no rows" in told(tmp_path)
    (tmp_path / "t.jsonl").rename(tmp_path / "t.jsonl.gz")
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"url": "x"}\n' * 999)[:-12])
    assert "is not whole gzip" in told(tmp_path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_memory_does_not_grow_with_the_table(name: str, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}{name}"
        made = [{"url": f"http://a.example/{row}.png", "caption": "w" * 100} for row in range(rows)]
        if name.endswith("parquet"):
            write_parquet(path, made, row_group_size=500)
        elif name.endswith("csv"):
            path.write_text("url,caption\n" + "".join(f"{row['url']},{row['caption']}\n" for row in made))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
        del made
        tracemalloc.start()
        table: Table = open_table(source(path))
        assert sum(len(part) for part in table.parts(100)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # imports
    assert peak(5000) < 1.5 * peak(1000)
