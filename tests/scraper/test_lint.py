import json
from collections.abc import Callable
from typing import Any

import pytest

from crest.records import Record
from scraper.caption import main as caption
from scraper.lint import SharedWords, lint, main

SITE = [
    'A navy shield with a white star above the word "Ravens" in gold',
    "A blue lion drawing.",
    "A circle-shaped diagram.",
    "A Football ball.",
    "A snarling black and orange tiger leaping out of a silver ring.",
]


@pytest.fixture
def folder(shelf: Any, as_records: Callable[..., None]) -> Any:
    texts = [*SITE, None, *["A red and white anchor on a blue ring."] * 5]
    as_records(
        shelf.dir,
        [
            Record(f"id{number}", f"{number}.png", "test", text, f"g{number}")
            for number, text in enumerate(texts)
        ],
    )
    return shelf


def test_each_vague_caption_is_counted_under_the_rules_it_breaks(folder: Any) -> None:
    found = lint(folder.dir)
    assert (found["captions"], found["vague"]) == (10, 8)
    assert found["rules"] == {
        "shared_by_many": 5,
        "no_colour": 2,
        "generic_phrase": 2,
        "no_object": 1,
        "too_short": 1,
    }
    assert [row["text"] for row in found["examples"]["too_short"]] == [SITE[3]]
    assert found["by_origin"] == {"human": {"captions": 10, "vague": 8}}


def test_the_command_writes_counts_and_leaves_its_inputs_alone(
    folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    caption(folder.config())
    before = {path.name: path.read_bytes() for path in folder.dir.iterdir()}
    capsys.readouterr()
    main(folder.config())
    said = capsys.readouterr().out
    assert "8 of 10 captions are vague (80.0%)" in said
    assert "generic_phrase: 'A blue lion drawing.'" in said
    assert json.loads((folder.dir / "lint.json").read_text())["vague"] == 8
    assert {name: (folder.dir / name).read_bytes() for name in before} == before


def test_the_heaviest_caption_of_a_picture_is_judged(folder: Any) -> None:
    caption(folder.config(caption={"palette": False}))
    rows = [json.loads(line) for line in (folder.dir / "captions.jsonl").read_text().splitlines()]
    rows.insert(1, {**rows[0], "text": "A drawing.", "weight": 0.1})
    (folder.dir / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lint(folder.dir)["vague"] == 8


def test_words_count_as_shared_whatever_their_case_and_spacing() -> None:
    shared = SharedWords(["A red star.", "a  Red star", "A RED STAR", "A red star.", "A blue star."])
    assert "A red star" in shared
    assert "A blue star." not in shared
