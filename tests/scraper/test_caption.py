import pytest

from crest.errors import DataError
from crest.records import Record, read_captions
from scraper.caption import described, finished_captions, main, own_captions
from scraper.collect import collect


def record(name, caption):
    return Record(id=name, image=f"{name}.png", source="test", caption=caption, group=name)


class FakeCaptioner:
    hash = "f00d"

    def __init__(self):
        self.modes = []

    def caption(self, pictures):
        self.modes += [picture.mode for picture in pictures]
        return [
            f"A {'white' if picture.getpixel((0, 0)) == (255, 255, 255) else 'dark'} ground. "
            for picture in pictures
        ]


def test_own_words_are_kept_as_they_are():
    captions, counts = own_captions([record("a", 'A red; and blue, "X".'), record("b", None)])
    assert [(one.id, one.text, one.origin) for one in captions] == [("a", 'A red; and blue, "X".', "human")]
    assert counts == {"whole": 1, "cut_back": 0, "given_up": 0, "missing": 1}


def test_cut_captions_end_at_a_clause_or_are_given_up():
    captions, counts = own_captions(
        [record("a", "A red shield with a gold crown above the…"), record("b", "A red…")]
    )
    assert [one.text for one in captions] == ["A red shield with a gold crown."]
    assert counts == {"whole": 0, "cut_back": 1, "given_up": 1, "missing": 0}


def test_captioner_sees_transparent_pictures_on_white(tmp_path, draw):
    for number in range(3):
        draw(number, has_alpha=True).save(tmp_path / f"{number}.png")
    captioner = FakeCaptioner()
    records = [record(str(number), None) for number in range(3)]
    captions = described(records, tmp_path, captioner, batch_size=2)
    assert [one.text for one in captions] == ["A white ground."] * 3
    assert captioner.modes == ["RGB"] * 3
    assert {(one.origin, one.model) for one in captions} == {("model", "f00d")}


@pytest.fixture
def config(shelf, tmp_path, draw):
    (tmp_path / "mine").mkdir()
    for number in range(3):
        draw(number).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine" / "0.txt").write_text("A badge of badges.")
    config = shelf.config(source={"site": "folder", "path": str(tmp_path / "mine")})
    collect(config)
    return config


def test_captions_file_is_written_and_left_alone_when_run_again(config, shelf, capsys):
    main(config)
    assert "dropped 2: no_caption 2" in capsys.readouterr().out
    assert [one.text for one in read_captions(shelf.dir / "captions.jsonl")] == ["A badge of badges."]
    main(config)
    assert "up to date" in capsys.readouterr().out


def test_captions_of_other_records_do_not_count(config, shelf):
    main(config)
    assert finished_captions(shelf.dir, "another hash") is None


def test_without_records_the_step_before_is_named(shelf):
    with pytest.raises(DataError, match="run python -m scraper"):
        main(shelf.config())
