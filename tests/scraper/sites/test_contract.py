"""What every source keeps to: local ones by their Listing, tables by their rows, web sites by saved pages."""

import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import pyarrow.parquet
import pytest
from PIL import Image

from crest.errors import DataError
from crest.tars import write_tar
from scraper.config import ScraperConfig, SourceConfig
from scraper.gather import gather
from scraper.harvest import Drop
from scraper.pictures import examine
from scraper.sites import Item, Visit, local_source, web_site
from scraper.sites.url_table import open_table

PAGES = Path(__file__).parent.parent / "pages"
NAMES = ("a.png", "b.png", "sub/c.png")
STROKE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 109 109"><path d="M10,50 L90,{}"/></svg>'


@dataclass
class Place:
    """A source as its user would lay it out."""

    root: Path
    png: Callable[[int], bytes]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def pictures(self) -> None:
        for number, name in enumerate(NAMES):
            self.write(name, self.png(number))


def folder_jsonl(place: Place) -> str:
    place.pictures()
    rows = [{"file_name": name, "text": f"Logo {name}."} for name in (*NAMES, "../secret.png", "gone.png")]
    place.write("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return "folder"


def folder_csv(place: Place) -> str:
    place.pictures()
    place.write("metadata.csv", "file_name,text\na.png,A.\n/etc/passwd.png,B.\n")
    return "folder"


def folder_table(place: Place) -> str:
    place.pictures()
    place.write("clip_dataset.csv", "filepath;title\na.png;A red; a blue.\n../../b.png;B.\n")
    return "folder"


def folder_table_elsewhere(place: Place) -> str:
    place.pictures()
    table = place.root.parent / "tables" / "words.tsv"
    table.parent.mkdir()
    table.write_text("a.png\tA lion.\n")
    place.settings["captions"] = table
    return "folder"


def folder_text(place: Place) -> str:
    place.pictures()
    place.write("a.txt", "A lion.")
    return "folder"


def folder_prompt(place: Place) -> str:
    place.pictures()
    place.write(
        "d.svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>'
    )
    place.settings["prompt"] = "a photo of a felix person"
    return "folder"


def shards(place: Place) -> str:
    names = ("000000000", "000000001", "../../etc/evil")
    samples = [(name, {"png": place.png(n), "txt": b"A."}) for n, name in enumerate(names)]
    place.root.mkdir(parents=True)
    write_tar(place.root / "00000.tar", samples)
    return "shards"


def zipped_shards(place: Place) -> str:
    shards(place)
    plain = place.root / "00000.tar"
    place.write("00000.tar.gz", gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    return "shards"


def kanji(place: Place) -> str:
    for number, name in enumerate(("04e00", "04e8c", "04e09")):
        place.write(f"{name}.svg", STROKE.format(20 + 30 * number))
    rows = "".join(
        f"<character><literal>{literal}</literal><meaning>{meaning}</meaning></character>"
        for literal, meaning in (("一", "one"), ("二", "two"))
    )
    place.write("kanjidic2.xml", f"<kanjidic2>{rows}</kanjidic2>")
    place.settings["drawings"] = place.root
    return "kanji"


def instagram(place: Place) -> str:
    for number, name in enumerate(("2021-01-01_00-00-00_UTC", "2021-01-02_00-00-00_UTC")):
        place.write(f"{name}.jpg", place.png(number))
        node = {
            "shortcode": f"Cx{number}",
            "edge_media_to_caption": {"edges": [{"node": {"text": "A cat."}}]},
        }
        place.write(f"{name}.json.xz", lzma.compress(json.dumps({"node": node}).encode()))
    return "instagram"


LOCAL = [
    *(folder_jsonl, folder_csv, folder_table, folder_table_elsewhere, folder_text, folder_prompt),
    *(shards, zipped_shards, kanji, instagram),
]


@pytest.fixture(params=LOCAL, ids=lambda make: make.__name__)
def source(request, tmp_path, draw, as_png) -> SourceConfig:
    place = Place(tmp_path / "source", lambda seed: as_png(draw(seed, 48)))
    site = request.param(place)
    (tmp_path / "secret.png").write_bytes(place.png(9))
    return SourceConfig(site=site, path=place.root, **place.settings)


def listed(source: SourceConfig) -> list[Item | Drop]:
    return list(local_source(source.site).open(source).entries)


def items(source: SourceConfig) -> list[Item]:
    return [entry for entry in listed(source) if isinstance(entry, Item)]


def told(entry: Item | Drop) -> object:
    return entry if isinstance(entry, Drop) else (entry.card, entry.where, entry.read())


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_opened_twice_it_tells_the_same(source):
    first, second = (local_source(source.site).open(source) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    entries = [told(entry) for entry in first.entries]
    assert entries == [told(entry) for entry in second.entries]
    assert first.size in (None, len(entries))
    assert len(items(source)) >= 2


def test_fingerprint_changes_with_any_file(source):
    files = [path for path in sorted(source.path.rglob("*")) if path.is_file()]
    seen = {local_source(source.site).open(source).fingerprint}
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        seen.add(local_source(source.site).open(source).fingerprint)
        path.write_bytes(content)
    assert len(seen) == 1 + len(files)


def test_every_entry_has_a_title_a_group_and_a_picture_that_decodes(source):
    for item in items(source):
        assert item.card.title
        assert item.card.group
        assert examine(item.read(), item.where).picture.size > (0, 0)


def test_names_never_lead_outside(source, tmp_path):
    secret = (tmp_path / "secret.png").read_bytes()
    for item in items(source):
        assert not item.where.startswith("/")
        assert ".." not in PurePosixPath(item.where.replace("#", "/")).parts
        assert item.read() != secret


def test_source_is_left_as_it_was_and_all_is_written_under_the_data_folder(source, tmp_path):
    before = snapshot(tmp_path)
    config = ScraperConfig.model_validate(
        {"data": {"dir": tmp_path / "data"}, "source": source.model_dump(mode="json")}
    )
    harvest = gather(config, lambda _: False, lambda: None)
    after = snapshot(tmp_path)
    assert harvest is not None
    written = {name for name in after if before.get(name) != after[name]}
    assert written == {f"data/{record.image.partition('#')[0]}" for record in harvest.records}
    assert set(before) <= set(after)
    in_tars = source.site == "shards"  # nobody knows beforehand how many come
    assert all(record.image.startswith("parts/") == in_tars for record in harvest.records)
    assert all(in_tars or Path(record.image).stem == record.id for record in harvest.records)
    assert all(record.sha256.startswith(record.id) for record in harvest.records)


def test_listing_alone_writes_nothing(source, tmp_path):
    before = snapshot(tmp_path)
    for entry in listed(source):
        told(entry)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_missing_and_empty_paths_are_one_sentence(source, tmp_path, is_there):
    place = tmp_path / "elsewhere"
    if is_there:
        place.mkdir()
    with pytest.raises(DataError) as caught:
        local_source(source.site).open(source.model_copy(update={"path": place}))
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert "expected" in message
    assert "\n" not in message


SAVED = [("sportslogohistory", "league_lazy.html", "league")]


@pytest.mark.parametrize(("name", "page", "purpose"), SAVED, ids=[one[0] for one in SAVED])
def test_web_site_tells_the_same_twice_and_every_card_has_a_title_and_a_group(name, page, purpose):
    url = "https://site.example/league/"
    html = (PAGES / page).read_text(encoding="utf-8")
    visit = Visit(url, purpose)
    first, second = (web_site(name).read(visit, html, url) for _ in range(2))
    assert first == second
    assembled = web_site(name).assemble([(visit, first)])
    assert assembled == web_site(name).assemble([(visit, second)])
    assert assembled.cards
    for card in assembled.cards:
        assert card.title
        assert card.group
        assert all(address.startswith(("http://", "https://")) for address in card.image_urls)
    assert all(next_visit.url.startswith("https://") for next_visit in first.visits)


def csv_table(folder: Path) -> None:
    (folder / "a.csv").write_text(
        "url;caption\nhttps://x.example/a.png;A red, a blue.\nhttps://x.example/b.png;B.\n"
    )


def jsonl_table(folder: Path) -> None:
    rows = [{"url": f"https://x.example/{name}.png", "caption": name, "group": "g"} for name in "ab"]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))


def parquet_table(folder: Path) -> None:
    table = pyarrow.table(
        {"url": ["https://x.example/a.png", "https://x.example/b.png"], "caption": ["A.", None]}
    )
    pyarrow.parquet.write_table(table, folder / "a.parquet")


TABLES = [csv_table, jsonl_table, parquet_table]


@pytest.fixture(params=TABLES, ids=lambda make: make.__name__)
def table(request, tmp_path) -> SourceConfig:
    (tmp_path / "source").mkdir()
    request.param(tmp_path / "source")
    return SourceConfig(site="url_table", path=tmp_path / "source")


def test_table_tells_the_same_twice_notices_change_and_writes_nothing(table, tmp_path):
    before = snapshot(tmp_path)
    first, second = open_table(table), open_table(table)
    assert first.fingerprint == second.fingerprint
    rows = list(first.read())
    assert rows == list(second.read())
    assert [row.url for row in rows] == ["https://x.example/a.png", "https://x.example/b.png"]
    assert first.rows == len(rows)
    assert snapshot(tmp_path) == before
    path = next(table.path.iterdir())
    path.rename(path.with_name(f"b{path.suffix}"))
    assert open_table(table).fingerprint != first.fingerprint


@pytest.mark.parametrize("is_there", [True, False])
def test_missing_and_empty_tables_are_one_sentence(table, tmp_path, is_there):
    place = tmp_path / "elsewhere"
    if is_there:
        place.mkdir()
    with pytest.raises(DataError) as caught:
        open_table(table.model_copy(update={"path": place}))
    assert str(caught.value).startswith(f"{place}: ")
    assert "\n" not in str(caught.value)


def test_no_source_is_forgotten(tmp_path):
    named = set(get_args(SourceConfig.model_fields["site"].annotation))
    made = {make(Place(tmp_path / make.__name__ / "source", lambda _: _blank())) for make in LOCAL}
    assert named == made | {name for name, *_ in SAVED} | {"url_table"}


def _blank() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()
