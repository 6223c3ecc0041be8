import json
import weakref

import pytest
from PIL import Image, ImageOps

from crest.records import Record, read_manifest, read_records
from scraper.collect import collect, made_from, write_dropped, write_kept
from scraper.harvest import Drop


@pytest.fixture
def mine(shelf, tmp_path):
    """Collects the pictures of a folder."""
    folder = tmp_path / "mine"
    folder.mkdir()

    def run(**sections):
        config = shelf.config(source={"site": "folder", "path": str(folder)}, **sections)
        collect(config)
        return json.loads((shelf.dir / "crawl.json").read_text())

    run.folder = folder
    return run


def test_every_loss_is_counted_told_and_shown(mine, shelf, draw, capsys):
    draw(1, 240).save(mine.folder / "logo.png")
    draw(1, 240).resize((200, 200), Image.Resampling.LANCZOS).save(mine.folder / "smaller.png")
    ImageOps.mirror(draw(1, 240)).save(mine.folder / "mirrored.png")
    draw(2, 40).save(mine.folder / "tiny.png")
    Image.new("RGB", (90, 90), "navy").save(mine.folder / "blank.png")
    (mine.folder / "copy.png").write_bytes((mine.folder / "logo.png").read_bytes())
    (mine.folder / "half.png").write_bytes((mine.folder / "logo.png").read_bytes()[:300])
    expected = {
        "near_duplicate": 1,
        "mirrored_duplicate": 1,
        "too_small": 1,
        "blank": 1,
        "duplicate": 1,
        "broken": 1,
    }
    assert mine()["dropped"] == expected
    said = capsys.readouterr().out
    page = (shelf.dir / "dropped.html").read_text()
    for reason in expected:
        assert f"{reason} 1" in said
        assert f"<h2>{reason} " in page
    dropped = [json.loads(line) for line in (shelf.dir / "dropped.jsonl").read_text().splitlines()]
    (kept,) = read_records(shelf.dir / "records.jsonl")
    twins = [drop for drop in dropped if drop["reason"].endswith("duplicate")]
    assert [drop["like"] for drop in twins] == [kept.id] * 3
    assert all((shelf.dir / drop["image"]).exists() for drop in twins)


def test_animated_and_wide_pictures_are_kept_whole_and_noted(mine, shelf, draw):
    frames = [draw(seed).convert("P") for seed in (1, 2)]
    frames[0].save(mine.folder / "moving.gif", save_all=True, append_images=frames[1:])
    draw(3).resize((700, 100)).save(mine.folder / "wide.png")
    draw(4).resize((100, 700)).save(mine.folder / "tall.png")
    report = mine()
    assert report["notes"] == {"animated": 1, "wide": 2}
    assert report["dropped"] == {}
    sizes = {record.image_url: (record.width_px, record.height_px) for record in read_records_of(shelf)}
    assert sizes["wide.png"] == (700, 100)


def read_records_of(shelf):
    return read_records(shelf.dir / "records.jsonl")


def test_seven_and_thirty_pictures_work_and_a_second_run_has_nothing_to_do(mine, draw, capsys):
    for seed in range(37):
        draw(seed).save(mine.folder / f"{seed}.jpg", quality=95)
    assert mine()["counts"]["kept"] == 37
    capsys.readouterr()
    mine()
    assert "up to date, 37 logos; nothing to do." in capsys.readouterr().out


def test_other_thresholds_are_another_folder(shelf):
    source = {"site": "folder", "path": "x"}
    assert made_from(shelf.config(source=source), "f") != made_from(
        shelf.config(source=source, screen={"min_side_px": 65}), "f"
    )
    assert made_from(shelf.config(source=source), "f") != made_from(shelf.config(source=source), "g")


def test_records_and_losses_are_streamed(tmp_path):
    made, most = [], 0

    def records():
        nonlocal most
        for number in range(50):
            one = Record(f"{number:016x}", "", "s", "words", f"g{number % 5}")
            made.append(weakref.ref(one))
            yield one
            most = max(most, sum(reference() is not None for reference in made))

    tally = write_kept(tmp_path, records(), 6.0)
    assert tally.counts == {"kept": 50, "kept_with_caption": 50, "groups": 5}
    assert most <= 2
    counts = write_dropped(tmp_path, (Drop("a" if number else "b", str(number)) for number in range(4)))
    assert list(counts.items()) == [("a", 3), ("b", 1)]


def test_hash_of_the_records_follows_their_order_and_words(tmp_path):
    one, other = (Record(f"{number:016x}", "", "s", "words", "g") for number in range(2))
    first = write_kept(tmp_path, [one, other], 6.0).hash
    assert write_kept(tmp_path, iter([one, other]), 6.0).hash == first
    assert write_kept(tmp_path, [other, one], 6.0).hash != first


def test_a_source_that_breaks_leaves_the_old_file(tmp_path):
    write_kept(tmp_path, [Record("0" * 16, "", "s", None, "g")], 6.0)
    before = (tmp_path / "records.jsonl").read_bytes()

    def breaks():
        yield Record("1" * 16, "", "s", None, "g")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_kept(tmp_path, breaks(), 6.0)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert list(tmp_path.glob("*.part")) == []


def test_manifest_counts_what_crawl_json_counts(mine, shelf, draw):
    draw(1).save(mine.folder / "a.png")
    report = mine()
    manifest = read_manifest(shelf.dir, "records", "")
    assert (manifest.counts, manifest.dropped) == (report["counts"], report["dropped"])
