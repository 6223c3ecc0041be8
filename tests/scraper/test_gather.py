import json

import pytest

from crest.errors import DataError
from crest.records import read_manifest, read_records
from scraper.collect import collect


@pytest.fixture
def run(shelf, tmp_path):
    def gather(folder=None, **sections):
        source = {"site": "folder", "path": str(folder or tmp_path / "mine"), "licence": "mine"}
        collect(shelf.config(source=source, **sections))
        return read_records(shelf.dir / "records.jsonl")

    (tmp_path / "mine").mkdir()
    return gather


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
    assert json.loads((shelf.dir / "crawl.json").read_text())["counts"]["caption_missing"] == 1


def test_empty_folder_leaves_nothing_behind(run, shelf):
    with pytest.raises(DataError, match="is empty"):
        run()
    assert not shelf.dir.exists()


def test_run_again_is_up_to_date_until_the_input_changes(run, tmp_path, draw, capsys):
    draw(1).save(tmp_path / "mine" / "a.png")
    run()
    capsys.readouterr()
    run()
    assert "up to date" in capsys.readouterr().out
    draw(2).save(tmp_path / "mine" / "b.png")
    assert len(run()) == 2
