import gzip
import io
import json
import tarfile
import tracemalloc

import pytest

from crest.errors import DataError
from crest.tars import write_tar
from scraper.config import SourceConfig
from scraper.harvest import Drop
from scraper.sites import Item
from scraper.sites.shards import Shards


@pytest.fixture
def picture(draw, as_png):
    return lambda seed=1: as_png(draw(seed, 32))


def entries(path):
    found = list(Shards().open(SourceConfig(site="shards", path=path)).entries)
    items = [one for one in found if isinstance(one, Item)]
    return items, [one for one in found if isinstance(one, Drop)]


def sample(picture, **members):
    return {"png": picture, **{kind: words.encode() for kind, words in members.items()}}


def test_shards_of_img2dataset_keep_address_and_caption_and_count_what_failed(tmp_path, picture):
    meta = {"url": "https://x.example/Up/logo-150x150.png?v=2", "caption": "A lion.", "key": "000000000"}
    meta |= {"status": "success", "original_width": 600, "sha256": "ab"}
    failed = {"url": "https://x.example/gone.png", "status": "failed_to_download", "error_message": "404"}
    samples = [
        ("000000000", {"jpg": picture(), "txt": b"A lion.", "json": json.dumps(meta).encode()}),
        ("000000001", {"txt": b"", "json": json.dumps(failed).encode()}),
        ("000000002", {"txt": b"Words alone."}),
    ]
    write_tar(tmp_path / "00000.tar", samples)
    (item,), dropped = entries(tmp_path)
    assert item.where == "00000.tar#000000000.jpg"
    assert item.read() == picture()
    card = item.card
    assert (card.caption, card.further_captions) == ("A lion.", ())
    assert card.image_urls == ("https://x.example/Up/logo-150x150.png?v=2",)
    assert card.source_file == "x.example/up/logo"
    assert (card.title, card.group) == ("000000000", "00000-000000000")
    assert dropped == [
        Drop("failed-to-download", "00000.tar#000000001"),
        Drop("no_image", "00000.tar#000000002"),
    ]


def source_files(folder, picture, *urls):
    """What the picture of each address is said to be a rendition of."""
    metas = (json.dumps({"url": url}) for url in urls)
    write_tar(folder / "a.tar", [(f"{n}", sample(picture(), json=meta)) for n, meta in enumerate(metas)])
    return [item.card.source_file for item in entries(folder)[0]]


def test_files_that_only_the_query_tells_apart_are_not_taken_for_renditions_of_one(tmp_path, picture):
    urls = [f"https://x.example/image.php?id={number}" for number in (3, 4)]
    assert source_files(tmp_path, picture, *urls, "https://x.example/?id=3") == ["", "", ""]


def test_renditions_differ_in_size_suffix_and_what_the_query_of_a_named_picture_says(tmp_path, picture):
    urls = ["https://x.example/Up/a-150x150.PNG?v=2", "https://x.example/Up/a.webp?w=90", "//x.example/up/a"]
    assert source_files(tmp_path, picture, *urls) == ["x.example/up/a"] * 3


def test_malformed_address_costs_nothing(tmp_path, picture):
    urls = [
        "http://[x/a.png",
        "http://[x/a?id=3",
        "https://i0.wp.com/[x/a.png",
        "https://y.example/http://[x/a",
    ]
    assert source_files(tmp_path, picture, *urls) == ["", "", "i0.wp.com/[x/a", "y.example/http://[x/a"]


def test_shards_of_crest_keep_all_that_was_known(tmp_path, picture):
    said = [
        {"text": "A red lion.", "origin": "human", "weight": 1.0},
        {"text": "A lion in red.", "origin": "human", "weight": 1.0},
        {"text": "Some animal.", "origin": "model", "model": "vit", "weight": 0.5},
    ]
    meta = {
        "id": "00112233aabbccdd",
        "source": "sportslogohistory",
        "caption": "A red lion.",
        "captions": said,
        "written_by": "human",
        "group": "lions",
        "page_url": "https://x.example/lions/",
        "image_url": "https://x.example/lions.png",
        "title": "Lions",
        "kind": "primary",
        "years": "1990-1999",
        "licence": "CC0",
        "source_file": "x.example/lions",
        "fetched_at": "2024-01-01T00:00:00Z",
        "headers": {"etag": "x"},
    }
    write_tar(
        tmp_path / "train-000000.tar",
        [("00112233aabbccdd", sample(picture(), txt="A red lion.", json=json.dumps(meta)))],
    )
    (item,), dropped = entries(tmp_path)
    card = item.card
    assert dropped == [Drop("caption_of_another_writer", "train-000000.tar#00112233aabbccdd: Some animal.")]
    assert (card.caption, card.further_captions, card.written_by) == (
        "A red lion.",
        ("A lion in red.",),
        "human",
    )
    for name in (
        "source",
        "group",
        "page_url",
        "title",
        "kind",
        "years",
        "licence",
        "source_file",
        "fetched_at",
    ):
        assert getattr(card, name) == meta[name]
    assert (card.image_urls, card.headers) == ((meta["image_url"],), {"etag": "x"})


def test_words_of_a_model_alone_keep_its_name(tmp_path, picture):
    meta = {"written_by": "human", "captions": [{"text": "Some animal.", "origin": "model", "model": "vit"}]}
    write_tar(tmp_path / "a.tar", [("a", sample(picture(), json=json.dumps(meta)))])
    card = entries(tmp_path)[0][0].card
    assert (card.caption, card.written_by) == ("Some animal.", "vit")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": "One."}, ["One."]),
        ({"json": '{"TEXT": "One."}'}, ["One."]),
        ({"json": '{"title": "One."}'}, ["One."]),
        ({"txt": "One.", "json": '{"title": "Lions", "captions": ["Two.", "One."]}'}, ["One.", "Two."]),
        (
            {"caption": "One.", "json": '{"caption": "Two.", "text": ["Three.", "Four."]}'},
            ["One.", "Two.", "Three.", "Four."],
        ),
        ({"json": "{}"}, []),
        ({}, []),
    ],
)
def test_words_are_found_wherever_they_stand(tmp_path, picture, members, expected):
    write_tar(tmp_path / "a.tar", [("a", sample(picture(), **members))])
    card = entries(tmp_path)[0][0].card
    assert [one for one in (card.caption, *card.further_captions) if one] == expected


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_zipped_tar_is_read_as_well(tmp_path, picture, name):
    write_tar(tmp_path / "plain", [(f"{n}", sample(picture(n), txt="A.")) for n in range(3)])
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    (tmp_path / "plain").unlink()
    assert [item.read() for item in entries(tmp_path)[0]] == [picture(n) for n in range(3)]
    assert len(entries(tmp_path / name)[0]) == 3


def test_folders_and_further_pictures_of_a_sample(tmp_path, picture):
    members = {"png": picture(1), "jpg": b"the same, lossy", "mask.png": picture(2)}
    write_tar(tmp_path / "a.tar", [("./set/one", members), ("set/two", {"jpeg": picture(3)})])
    items, dropped = entries(tmp_path)
    assert [(item.where, item.read()) for item in items] == [
        ("a.tar#set/one.png", picture(1)),
        ("a.tar#set/two.jpeg", picture(3)),
    ]
    assert dropped == [Drop("further_picture", "a.tar#set/one.mask.png")]


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "header":
        content[1024 * 3 + 100] ^= 0xFF
        at = content.find(b"2.png")
        content[at : at + 5] = b"X.png"
    elif kind == "cut":
        content = content[: len(content) // 2]
    elif kind == "cut between members":
        content = content.rstrip(b"\0")
        content += bytes(-len(content) % 512)
    elif kind == "zipped and cut":
        content = bytearray(gzip.compress(bytes(content))[:-200])
    else:
        content = bytearray(b"no tar at all " * 100)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["header", "cut", "cut between members", "zipped and cut", "nonsense"])
def test_damaged_tar_is_named_and_counted_and_the_next_one_is_read(tmp_path, picture, kind):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{n}", sample(picture(n), txt="A.")) for n in range(4)])
    damage(tmp_path / "a.tar", kind)
    items, dropped = entries(tmp_path)
    assert [drop.reason for drop in dropped] == ["damaged_tar"]
    assert dropped[0].what.startswith("a.tar: ")
    assert [item.where for item in items if item.where.startswith("b.tar")] == [
        f"b.tar#{n}.png" for n in range(4)
    ]


def test_broken_json_costs_its_sample(tmp_path, picture):
    write_tar(tmp_path / "a.tar", [("a", sample(picture(), json="{")), ("b", sample(picture(), json="[]"))])
    items, dropped = entries(tmp_path)
    assert items == []
    assert [drop.reason for drop in dropped] == ["broken_json", "broken_json"]


def test_json_that_ends_a_reader_costs_its_sample_and_half_an_emoji_nothing(tmp_path, picture):
    deep, half = "[" * 100_000, '{"caption": "A lion \\ud83d", "headers": {"x": "\\ud83d"}}'
    write_tar(tmp_path / "a.tar", [("a", sample(picture(), json=deep)), ("b", sample(picture(), json=half))])
    (item,), (drop,) = entries(tmp_path)
    assert drop.reason == "broken_json"
    assert (item.card.caption, item.card.headers) == ("A lion ?", {"x": "?"})


def test_links_and_hidden_members_are_passed_over(tmp_path, picture):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "._a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            archive.addfile(info, io.BytesIO(picture()))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [item.where for item in entries(tmp_path)[0]] == ["a.tar#a.png"]


def test_tar_is_never_in_memory(tmp_path):
    members = {"png": b"\x89PNG\r\n\x1a\n" + bytes(1_000_000)}
    write_tar(tmp_path / "a.tar", ((f"{n}", members) for n in range(40)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in Shards().open(SourceConfig(site="shards", path=tmp_path)).entries)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40
    assert peak < 8_000_000


def test_missing_and_empty_places_are_told(tmp_path):
    for path, says in ((tmp_path, "holds no tar"), (tmp_path / "x.tar", "there is no such file")):
        with pytest.raises(DataError, match=says):
            entries(path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match="is no tar"):
        entries(tmp_path / "a.zip")
