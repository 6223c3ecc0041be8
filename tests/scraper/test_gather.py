import io
import json
import os
import shutil
import tarfile
import time

import pytest
from PIL import Image

from crest.errors import DataError
from crest.records import Pictures, picture_bytes, read_manifest, read_records
from crest.tars import read_tar, write_tar
from scraper.chunks import fitted
from scraper.collect import collect
from scraper.config import PackConfig
from scraper.gather import BATCH, checked
from scraper.harvest import Drop
from scraper.pack import main as pack
from scraper.refused import Refused
from scraper.sites import Card, Item
from scraper.store import FileStore, TarStore


@pytest.fixture
def run(shelf, tmp_path):
    def gather(folder=None, site="folder", **sections):
        source = {"site": site, "path": str(folder or tmp_path / "mine"), "licence": "mine"}
        source |= sections.pop("source", {})
        collect(shelf.config(source=source, **sections))
        return read_records(shelf.dir / "records.jsonl")

    (tmp_path / "mine").mkdir()
    return gather


def counts(shelf):
    return json.loads((shelf.dir / "crawl.json").read_text())["counts"]


def test_alpha_and_bytes_of_a_folder_are_kept(run, shelf, tmp_path, draw):
    path = tmp_path / "mine" / "a.png"
    draw(1, has_alpha=True).save(path)
    (tmp_path / "mine" / "a.txt").write_text("A badge.")
    (record,) = run()
    assert (shelf.dir / record.image).read_bytes() == path.read_bytes()
    assert (record.caption, record.source, record.licence, record.image_url) == (
        "A badge.",
        "mine",
        "mine",
        "a.png",
    )
    assert (record.source_file, record.written_by, record.frames) == ("a", "human", 1)
    assert record.sha256.startswith(record.id)


def test_what_the_source_says_goes_into_the_record(run, tmp_path, draw):
    draw(1).save(tmp_path / "mine" / "a.png")
    row = {
        "file_name": "a.png",
        "text": ["One.", "Two."],
        "license": "CC0",
        "written_by": "rule",
        "kind": "wordmark",
    }
    (tmp_path / "mine" / "metadata.jsonl").write_text(json.dumps(row))
    (record,) = run(source={"written_by": "vit"})
    assert (record.caption, record.further_captions, record.written_by) == ("One.", ("Two.",), "rule")
    assert (record.licence, record.kind) == ("CC0", "wordmark")


def test_one_broken_picture_does_not_end_the_run(run, shelf, tmp_path, draw):
    for number in range(3):
        draw(number).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (tmp_path / "mine" / "2.png").write_text("<html>")
    assert len(run()) == 1
    assert read_manifest(shelf.dir, "records", "").dropped == {"broken": 1, "html_not_image": 1}


def test_pictures_without_captions_are_kept_and_counted(run, shelf, tmp_path, draw):
    draw(1).save(tmp_path / "mine" / "a.png")
    assert [record.caption for record in run()] == [None]
    assert counts(shelf)["caption_missing"] == 1


def test_cards_pictures_and_captions_are_counted(run, shelf, tmp_path, draw):
    for number in range(3):
        draw(number).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine" / "captions.csv").write_text("0.png,A lion.\n1.png,A crest.\ngone.png,A ball.\n")
    run()
    found = counts(shelf)
    assert {
        name: found[name] for name in ("cards", "pictures", "caption_whole", "caption_missing", "kept")
    } == {
        "cards": 4,
        "pictures": 3,
        "caption_whole": 2,
        "caption_missing": 1,
        "kept": 3,
    }


def test_svg_logos_are_drawn_at_the_side_that_is_asked(run, shelf, tmp_path):
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><circle r="20" fill="red"/></svg>'
    )
    (tmp_path / "mine" / "a.svg").write_text(drawing)
    (record,) = run(source={"side_px": 128})
    assert (record.width_px, record.height_px, record.image) == (128, 64, f"images/{record.id}.png")


def test_shards_give_records_with_the_address_of_their_pictures(run, tmp_path, draw, as_png):
    meta = {
        "url": "https://x.example/a.png",
        "source": "sportslogohistory",
        "fetched_at": "2024-01-01T00:00:00Z",
    }
    sample = {"png": as_png(draw(1)), "txt": b"A lion.", "json": json.dumps(meta).encode()}
    write_tar(tmp_path / "mine" / "0.tar", [("0", sample)])
    (record,) = run(site="shards")
    assert (record.image_url, record.source, record.fetched_at, record.caption) == (
        meta["url"],
        meta["source"],
        meta["fetched_at"],
        "A lion.",
    )


def test_empty_folder_leaves_nothing_behind(run, shelf):
    with pytest.raises(DataError, match="is empty"):
        run()
    assert not shelf.dir.exists()


def test_source_of_nothing_is_told(run, shelf, tmp_path):
    write_tar(tmp_path / "mine" / "0.tar", [])
    with pytest.raises(DataError, match="holds nothing that shards reads"):
        run(site="shards")
    assert not shelf.dir.exists()


def test_run_again_is_up_to_date_until_the_input_changes(run, tmp_path, draw, capsys):
    draw(1).save(tmp_path / "mine" / "a.png")
    run()
    capsys.readouterr()
    run()
    assert "up to date" in capsys.readouterr().out
    draw(2).save(tmp_path / "mine" / "b.png")
    assert len(run()) == 2


def test_order_is_that_of_the_source_and_few_are_read_ahead(shelf, draw, as_png):
    pulled = []

    def entries():
        for number in range(200):
            pulled.append(number)
            yield Drop("no_image", "x") if number % 7 == 0 else Item(Card(()), f"{number}", reader(number))

    def reader(number):
        def read():
            time.sleep(0.002 * (number % 3))
            if number % 5 == 0:
                raise Refused("unreadable", "no")
            return as_png(draw(number, 16))

        return read

    config = shelf.config()
    config = config.model_copy(update={"source": config.source.model_copy(update={"path": shelf.dir})})
    seen = []
    for number, (entry, outcome) in enumerate(checked(entries(), config, FileStore(shelf.dir))):
        assert len(pulled) - number <= ((os.cpu_count() or 1) + 1) * BATCH
        seen.append(outcome.reason if isinstance(outcome, Drop) else entry.where)
        assert isinstance(entry, Drop) == (number % 7 == 0)
    expected = ["no_image" if n % 7 == 0 else "unreadable" if n % 5 == 0 else f"{n}" for n in range(200)]
    assert seen == expected


def test_without_pixels_bytes_are_compared_and_nothing_is_decoded(run, shelf, tmp_path, draw):
    folder = tmp_path / "mine"
    for name in ("a.png", "b.png"):
        draw(1).save(folder / name)
    draw(1).save(folder / "c.png", compress_level=1)  # the same pixels in other bytes
    draw(2).save(folder / "d.jpg")
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:-40])
    (folder / "flipped.png").write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    (folder / "cut.jpg").write_bytes((folder / "d.jpg").read_bytes()[:-40])
    records = run(screen={"pixels": False})
    assert sorted(record.image_url for record in records) == ["a.png", "c.png", "d.jpg"]
    assert json.loads((shelf.dir / "crawl.json").read_text())["dropped"] == {"broken": 3, "duplicate": 1}
    assert [(record.width_px, record.height_px) for record in records] == [(96, 96)] * 3


def test_without_pixels_what_bytes_do_not_show_is_decoded_after_all(run, shelf, tmp_path, draw):
    folder = tmp_path / "mine"
    draw(1).save(folder / "a.gif")
    (folder / "b.jpg").write_bytes(
        (draw(2).save(folder / "b.jpg") or (folder / "b.jpg").read_bytes()) + b"tail"
    )
    assert [record.image_url for record in run(screen={"pixels": False})] == ["a.gif", "b.jpg"]


@pytest.fixture
def many(monkeypatch, tmp_path, draw):
    """Three pictures, one of them twice, of which a file each would be too many."""
    monkeypatch.setattr("scraper.gather.LOOKED_AT", 2)
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        draw(number, has_alpha=True).save(tmp_path / "mine" / name)
        (tmp_path / "mine" / name).with_suffix(".txt").write_text(f"Logo {number}.")
    shutil.copy(tmp_path / "mine" / "a.png", tmp_path / "mine" / "d.png")
    return tmp_path / "mine"


def test_many_pictures_lie_in_tars_byte_for_byte(run, shelf, many):
    records = run()
    assert [one.image.partition("#")[0] for one in records] == ["parts/000000.tar"] * 3
    for record in records:
        assert picture_bytes(shelf.dir, record.image) == (many / record.image_url).read_bytes()
    with tarfile.open(shelf.dir / "parts" / "000000.tar") as archive:
        assert archive.getnames() == [f"{record.id}.png" for record in records]
    assert json.loads((shelf.dir / "crawl.json").read_text())["dropped"] == {"duplicate": 1}


def test_a_full_tar_is_followed_by_another(run, shelf, many, monkeypatch):
    monkeypatch.setattr("scraper.store.TAR_BYTES", 1)
    records = run()
    assert len({one.image.partition("#")[0] for one in records}) == 3
    assert [picture_bytes(shelf.dir, one.image) for one in records] == [
        (many / one.image_url).read_bytes() for one in records
    ]


def test_shards_are_the_same_from_tars_and_from_files(run, shelf, many, monkeypatch):
    def packed():
        pack(shelf.config(source={"site": "folder", "path": str(many), "licence": "mine"}))
        found = {}
        for tar in sorted((shelf.dir / "shards").glob("*.tar")):
            for key, members in read_tar(tar):
                meta = json.loads(members.pop("json"))
                meta.pop("image")
                found[tar.name, key] = (members, meta)
        return found

    run()
    from_tars = packed()
    shutil.rmtree(shelf.dir)
    monkeypatch.setattr("scraper.gather.LOOKED_AT", 100)
    run()
    assert from_tars == packed()
    assert len(from_tars) == 3


def test_a_source_that_grows_or_shrinks_leaves_no_pictures_behind(run, shelf, many):
    run()
    for name in ("c", "d"):
        (many / f"{name}.png").unlink()
        (many / f"{name}.txt").unlink(missing_ok=True)
    assert [one.image[:7] for one in run()] == ["images/", "images/"]
    assert not (shelf.dir / "parts").exists()
    shutil.copy(many / "a.png", many / "e.png")
    assert [one.image[:6] for one in run()] == ["parts/", "parts/"]
    assert not (shelf.dir / "images").exists()


def test_an_interruption_leaves_what_was_there(run, shelf, many, monkeypatch):
    before = [picture_bytes(shelf.dir, one.image) for one in run()]
    shutil.copy(many / "b.png", many / "e.png")
    place = TarStore.place

    def stops(self, found):
        if self._places:
            raise KeyboardInterrupt
        return place(self, found)

    monkeypatch.setattr(TarStore, "place", stops)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert sorted(path.name for path in shelf.dir.glob("parts*")) == ["parts"]
    records = read_records(shelf.dir / "records.jsonl")
    assert [picture_bytes(shelf.dir, one.image) for one in records] == before
    assert read_manifest(shelf.dir, "records", "").counts["kept"] == 3


def test_an_animation_in_a_tar_is_packed_as_its_first_frame(run, shelf, many, draw):
    first, second = draw(7), draw(8)
    first.save(many / "z.png", save_all=True, append_images=[second])
    (many / "z.txt").write_text("It moves.")
    (moving,) = (one for one in run() if one.frames == 2)
    image = fitted(moving, Pictures(shelf.dir), PackConfig())
    packed = Image.open(io.BytesIO(image))
    assert getattr(packed, "n_frames", 1) == 1
    assert packed.convert("RGB").tobytes() == first.convert("RGB").tobytes()
