import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caption_train.config import CaptionDataConfig
from caption_train.data import read_captioned
from caption_train.held_out import contents, read_held_out, written_before
from caption_train.report import check, main, n_gram_scores
from caption_train.report_config import CHANCE, CaptionReportConfig, ReportDataConfig
from caption_train.report_scores import distance, score, someone_elses
from crest.errors import DataError
from crest.records import (
    Caption,
    Manifest,
    Record,
    content_id,
    write_captions,
    write_manifest,
    write_records,
)

TRUE = [
    'A navy shield with two white stars above the word "RAVENS" in gold.',
    "A red circle with a wolf's head.",
    "A blue and gold anchor.",
    "A silver tiger on a black ring.",
]
GROUPS = ["a", "a", "b", "c"]


def figures(
    written: list[str], true: list[str] = TRUE, groups: list[str] = GROUPS, **how: Any
) -> dict[str, float]:
    found = score(written, true, groups, **{"resamples": 200, "seed": 0, **how})
    return {name: figure.value for name, figure in found.items()}


def test_peoples_own_words_score_full_marks() -> None:
    found = figures(TRUE)
    for name in ("colour_precision", "colour_recall", "colour_f1", "object_f1", "wordmark_exact"):
        assert found[name] == 1
    assert (found["wordmark_error"], found["duplicates"], found["silent"]) == (0, 0, 0)
    assert n_gram_scores(TRUE, [[text] for text in TRUE]) == pytest.approx({"bleu": 100, "chrf": 100})


def test_colour_words_are_counted_as_sets_in_one_spelling() -> None:
    written = ["A navy blue navy shield, red.", "A red one.", "A green anchor.", "A grey cat."]
    found = figures(written)
    # people: navy white gold, red, blue gold, silver black; written: navy red, red, green, gray; both: 2
    assert found["colour_precision"] == pytest.approx(2 / 5)
    assert found["colour_recall"] == pytest.approx(2 / 8)
    assert found["colour_f1"] == pytest.approx(2 * 2 / (5 + 8))


def test_things_are_counted_by_their_stems_without_lettering() -> None:
    found = figures(['A star on shields "wolf ring"', "", "", ""], TRUE)
    # written: star shield; people: shield star word | circle wolf head | anchor | tiger ring
    assert found["object_precision"] == 1
    assert found["object_recall"] == pytest.approx(2 / 9)
    assert found["silent"] == 0.75


def test_lettering_must_be_right_to_the_letter() -> None:
    found = figures(['The word "RAVEN" in gold on navy', "A red circle", 'An anchor "FC"', "A tiger"])
    assert found["wordmark_exact"] == 0
    assert found["wordmark_error"] == pytest.approx(1 / 6)
    assert found["wordmark_invented"] == pytest.approx(1 / 3)
    assert figures(['"RAVENS"', "", "", ""])["wordmark_exact"] == 1
    assert "wordmark_exact" not in figures(TRUE[1:], TRUE[1:], GROUPS[1:])


@pytest.mark.parametrize(
    ("left", "right", "letters"), [("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ab", 0)]
)
def test_distance_counts_letters_to_change(left: str, right: str, letters: int) -> None:
    assert distance(left, right) == distance(right, left) == letters


def test_captions_said_twice_and_vague_ones_are_counted() -> None:
    found = figures(
        [
            "A blue lion drawing.",
            "a blue  lion drawing.",
            "A red wolf on a ring.",
            "A gold star above a ring.",
        ]
    )
    assert found["duplicates"] == 0.5
    assert found["vague"] == 0.5


def test_intervals_hold_the_value_and_come_from_groups() -> None:
    true = [f"A {('red', 'blue')[n % 2]} star" for n in range(60)]
    written = [f"A {('red', 'blue')[n % 2] if n % 3 else 'green'} star" for n in range(60)]
    alone = score(written, true, [str(n) for n in range(60)], resamples=400, seed=1)["colour_f1"]
    assert alone.low is not None
    assert alone.high is not None
    assert 0.5 < alone.low < alone.value < alone.high < 0.85
    assert score(written, true, [str(n) for n in range(60)], resamples=400, seed=1)["colour_f1"] == alone
    # thirds that stand and fall together are less sure than as many independent logos
    together = score(written, true, [str(n % 3) for n in range(60)], resamples=400, seed=1)["colour_f1"]
    assert together.low is not None
    assert together.low < alone.low - 0.1


def test_another_logos_words_are_never_of_the_same_group() -> None:
    for place, text in enumerate(someone_elses(TRUE, GROUPS)):
        assert GROUPS[TRUE.index(text)] != GROUPS[place]
    assert someone_elses(["a", "b"], ["same", "same"]) == ["b", "a"]


def test_several_texts_by_people_are_all_references() -> None:
    one = n_gram_scores(["a gold crown on a red ring", "a star"], [["a red ring"], ["a star"]])
    two = n_gram_scores(
        ["a gold crown on a red ring", "a star"], [["a red ring", "a gold crown on a red ring"], ["a star"]]
    )
    assert two["bleu"] > one["bleu"]


@pytest.fixture
def records(tmp_path: Path, logos: list[Any]) -> Path:
    """A data folder of 16 logos: two of every group, the last without words, one described by a model."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, picture in enumerate(logos):
        path = folder / "images" / f"{number}.png"
        picture.save(path)
        text = None if number == 15 else f"A {('red', 'navy', 'gold')[number % 3]} shield, number {number}."
        rows.append(
            Record(
                content_id(path.read_bytes()), f"images/{number}.png", "test", text, f"g{number // 2}",
                further_captions=("Another text.",) if number % 2 else (),
                written_by="blip" if number == 14 else "human",
            )
        )  # fmt: skip
    write_records(folder / "records.jsonl", rows)
    write_manifest(folder, Manifest("records", "hash", {"kept": 16}))
    return folder


def test_the_logos_are_those_that_training_held_out(records: Path) -> None:
    held_out = read_held_out(ReportDataConfig(records=records, val_share=0.5))
    _, val, _ = read_captioned(CaptionDataConfig(records=records, val_share=0.5), 16)
    by_model = "A gold shield, number 14."
    assert [one.texts[0] for one in held_out] == [text for text in val.captions if text != by_model]
    assert any(one.texts[1:] == ("Another text.",) for one in held_out)
    assert [one.id for one, _ in contents(ReportDataConfig(records=records), held_out)] == [
        content_id(content) for _, content in contents(ReportDataConfig(records=records), held_out)
    ]


def test_shards_bring_their_own_held_out_logos(tmp_path: Path) -> None:
    from crest.shards import Sample, write_shards
    from tests.conftest import draw_logo, png

    def sample(number: int, *origins: str) -> Sample:
        words = [{"text": f"{origin} {number}", "origin": origin, "weight": 1.0} for origin in origins]
        meta = {"group": f"g{number}", "captions": words}
        return Sample(f"{number:016x}", png(draw_logo(number, 32)), words[0]["text"], meta)  # type: ignore[arg-type]

    splits = {"train": [sample(0, "human")], "val": [sample(1, "model", "human"), sample(2, "model")]}
    write_shards(tmp_path / "shards", splits, samples_per_shard=10, parents={})  # type: ignore[arg-type]
    settings = ReportDataConfig(records=tmp_path / "shards")
    held_out = read_held_out(settings)
    assert [(one.texts, one.group) for one in held_out] == [(("human 1",), "g1")]
    assert [content for _, content in contents(settings, held_out)] == [png(draw_logo(1, 32))]


def test_too_many_logos_are_thinned_the_same_way_every_time(records: Path) -> None:
    settings = ReportDataConfig(records=records, val_share=0.9, max_logos=4)
    few = read_held_out(settings)
    assert len(few) == 4
    assert few == read_held_out(settings)


def test_nothing_held_out_is_told(records: Path) -> None:
    with pytest.raises(DataError, match="no held-out logo has words by people"):
        read_held_out(ReportDataConfig(records=records, val_share=0.001))


def config(records: Path, out: Path, **report: Any) -> CaptionReportConfig:
    systems = report.pop("systems", [{"name": "written", "captions": str(out / "captions.jsonl")}])
    return CaptionReportConfig.model_validate(
        {
            "data": {"records": str(records), "val_share": 0.5},
            "report": {
                "dir": str(out / "report"),
                "systems": systems,
                "resamples": 100,
                "device": "cpu",
                **report,
            },
        }
    )


def words_for(records: Path, out: Path) -> None:
    held_out = read_held_out(ReportDataConfig(records=records, val_share=0.5))
    rows = []
    for one in held_out:
        rows.append(Caption(one.id, one.texts[0], "human"))
        rows.append(Caption(one.id, '<b>A red "shield" & a star</b>', "model", "seer"))
        rows.append(Caption(one.id, "lighter words", "model", "seer", weight=0.1))
    write_captions(out / "captions.jsonl", rows)


def test_report_tells_what_was_written_and_shows_it(records: Path, tmp_path: Path) -> None:
    words_for(records, tmp_path)
    settings = config(records, tmp_path, shown=3)
    check(settings)
    main(settings)
    first = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    main(settings)
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == first
    told = json.loads(first["report.json"])
    assert set(told["systems"]) == {"written", CHANCE}
    assert told["systems"]["written"]["wordmark_invented"]["value"] == 1
    assert {"value", "low", "high"} == set(told["systems"]["written"]["colour_f1"])
    page = first["report.html"].decode()
    assert page.count("<li><img") == 3
    assert "&lt;b&gt;A" in page
    assert "<b>A" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    rows = [json.loads(line) for line in first["answers.jsonl"].decode().splitlines()]
    assert len(rows) == told["logos"]
    assert rows[0]["written"] == '<b>A red "shield" & a star</b>'


def test_a_captioner_describes_the_held_out_logos_itself(records: Path, tmp_path: Path) -> None:
    from PIL import Image

    from crest.models.captioner import load_captioner
    from crest.models.hub_captioner import Asking
    from tests.crest.models.tiny_published import build

    folder = build("git", tmp_path / "git")
    words_for(records, tmp_path)
    systems = [
        {"name": "git", "weights": str(folder), "max_tokens": 8},
        {"name": "written", "captions": str(tmp_path / "captions.jsonl")},
    ]
    main(config(records, tmp_path, systems=systems, batch_size=2))
    rows = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    captioner = load_captioner(folder, "cpu", Asking(max_tokens=8))
    image = next(
        path for path in (records / "images").iterdir() if content_id(path.read_bytes()) == rows[0]["id"]
    )
    assert rows[0]["git"] == " ".join(captioner.caption([Image.open(image)])[0].split())
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["captioners"]["git"]["hash"] == captioner.hash


def test_captions_of_other_logos_are_refused(records: Path, tmp_path: Path) -> None:
    write_captions(tmp_path / "captions.jsonl", [Caption("elsewhere", "A star.", "model")])
    with pytest.raises(DataError, match="holds no caption by a model"):
        written_before(tmp_path / "captions.jsonl", read_held_out(ReportDataConfig(records=records)))


@pytest.mark.parametrize(
    "systems",
    [
        [{"name": "both", "weights": "stock/captioner", "captions": "captions.jsonl"}],
        [{"name": "none"}],
        [{"name": "twice", "weights": "a"}, {"name": "twice", "weights": "b"}],
        [{"name": CHANCE, "weights": "a"}],
        [],
    ],
)
def test_systems_that_cannot_be_told_apart_are_refused(
    tmp_path: Path,
    systems: list[dict[str, str]],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"data": {"records": str(tmp_path)}, "report": {"dir": str(tmp_path), "systems": systems}}
    assert command("caption_train.report", value, tmp_path) == 1
    assert "expected" in capsys.readouterr().err
