"""Answers against the key: planted truth comes out, and every bad row is counted under its reason."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crest.config import load_config
from crest.errors import DataError
from eval.survey.answers import COLUMNS, read_answers, read_key
from eval.survey.config import SurveyConfig
from eval.survey.tally import check, main, tally

Row = dict[str, Any]


def key_of(prompts: int = 60, primary: str = "use") -> dict[str, Any]:
    pairs: dict[str, Any] = {
        f"pair_{n}": {
            "kind": "real",
            "prompt_id": f"p{n}",
            "prompt": f"logo {n}",
            "pictures": {f"a{n}": "stock", f"b{n}": "tuned"},
        }
        for n in range(prompts)
    }
    pairs["pair_gold"] = {
        "kind": "gold",
        "prompt_id": "g",
        "prompt": "g",
        "pictures": {"ga": "destroyed", "gb": "whole"},
    }
    pairs["pair_again"] = {**pairs["pair_0"], "kind": "repeat", "of": "pair_0"}
    return {
        "format": "crest-survey-key-1", "survey_id": "survey_1", "baseline": "stock", "system": "tuned",
        "primary": primary, "questions": ["match", "quality", "use"],
        "exclude": {"min_gold_share": 0.5, "min_ms": 600.0}, "pairs": pairs,
    }  # fmt: skip


def row(
    pair: str, choice: str, left: str, right: str, rater: str = "r0", question: str = "use", ms: object = 2000
) -> Row:
    return {
        "survey_id": "survey_1", "rater_id": rater, "pair_id": pair, "question": question, "choice": choice,
        "left_id": left, "right_id": right, "ms": ms, "order": 1, "ts": "2026-01-01T00:00:00Z",
        "source": "static",
    }  # fmt: skip


def simulated(
    key: dict[str, Any], taste: float, raters: int = 12, seed: int = 0, careless: Sequence[int] = ()
) -> list[Row]:
    """Each rater sees 20 real pairs, the gold item and, where he saw pair 0, its repeat."""
    rng = np.random.default_rng(seed)
    rows = []
    real = [name for name, pair in key["pairs"].items() if pair["kind"] == "real"]
    for number in range(raters):
        seen = [real[int(n)] for n in rng.permutation(len(real))[:20]] + ["pair_gold"]
        seen += ["pair_again"] if "pair_0" in seen else []
        for pair in seen:
            (a, worse), (b, better) = key["pairs"][pair]["pictures"].items()
            assert worse in ("stock", "destroyed")
            sides = (a, b) if rng.random() < 0.5 else (b, a)
            for question in key["questions"]:
                likes = rng.random() < (taste if better == "tuned" else 1.0)
                choice = "tie" if rng.random() < 0.1 and better == "tuned" else (b if likes else a)
                if number in careless and better == "whole":
                    choice = a
                rows.append(row(pair, choice, *sides, rater=f"r{number}", question=question))
    return rows


def write(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def counted(tmp_path: Path, rows: Sequence[Row], key: dict[str, Any]) -> Any:
    return tally(read_answers([write(tmp_path / "answers.csv", rows)], key).kept, key)


def test_planted_preference_is_found_and_none_is_not(tmp_path: Path) -> None:
    key = key_of()
    found = counted(tmp_path, simulated(key, 0.8), key).filtered["use"]
    assert found.rate.interval.low < 0.5 + 0.9 * 0.3 < found.rate.interval.high
    assert found.rate.p < 0.001
    assert found.ties == pytest.approx(0.1, abs=0.05)
    none = counted(tmp_path, simulated(key, 0.5, seed=1), key).filtered["use"]
    assert none.rate.interval.low < 0.5 < none.rate.interval.high


def test_sides_are_decoded_by_picture_never_by_place(tmp_path: Path) -> None:
    key = key_of(4)
    rows = [
        row("pair_0", "b0", "b0", "a0"),
        row("pair_1", "b1", "a1", "b1"),
        row("pair_2", "tie", "a2", "b2"),
    ]
    rows += [row("pair_3", "a3", "a3", "b3", rater="r1")]
    found = counted(tmp_path, rows, key).filtered["use"]
    assert found.rate.interval.value == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found.without_ties == pytest.approx(2 / 3)
    assert found.left_share == pytest.approx(2 / 3)
    assert found.ties == pytest.approx(1 / 4)


def test_gold_and_repeats_check_raters_but_never_enter_the_win_rate(tmp_path: Path) -> None:
    key = key_of(3)
    rows = [
        row("pair_0", "b0", "a0", "b0"), row("pair_1", "a1", "a1", "b1"), row("pair_gold", "gb", "ga", "gb"),
        row("pair_again", "b0", "b0", "a0"), row("pair_0", "b0", "a0", "b0", "r1"),
        row("pair_again", "a0", "a0", "b0", "r1"),
    ]  # fmt: skip
    found = counted(tmp_path, rows, key)
    assert found.filtered["use"].answers == 3
    assert found.gold_share == 1
    assert found.repeat_share == pytest.approx(1 / 2)


def test_careless_and_hasty_raters_leave_the_filtered_figures_only(tmp_path: Path) -> None:
    key = key_of()
    rows = simulated(key, 0.7, careless=[3, 4])
    rows = [{**r, "ms": 100} if r["rater_id"] == "r7" else r for r in rows]
    found = counted(tmp_path, rows, key)
    assert found.excluded == {"gold": 2, "too_fast": 1}
    assert found.raters == 12
    assert found.unfiltered["use"].raters == 12
    assert found.filtered["use"].raters == 9


def test_time_of_a_pair_is_that_of_its_last_answer(tmp_path: Path) -> None:
    key = key_of(3)
    rows = [
        row("pair_0", "b0", "a0", "b0", question=q, ms=ms)
        for q, ms in (("match", 300), ("quality", 450), ("use", 900))
    ]
    assert counted(tmp_path, rows, key).excluded == {}


def test_nobody_left_is_said(tmp_path: Path) -> None:
    key = key_of(3)
    with pytest.raises(
        DataError, match="1 raters are excluded by the rules and no answer to the primary question is left"
    ):
        counted(tmp_path, [row("pair_0", "b0", "a0", "b0", ms=5)], key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"survey_id": "survey_2"}, "wrong_survey"),
        ({"rater_id": "../r"}, "bad_rater"),
        ({"rater_id": ""}, "bad_rater"),
        ({"pair_id": "pair_999"}, "unknown_pair"),
        ({"question": "speed"}, "unknown_question"),
        ({"left_id": "a1"}, "forged_pictures"),
        ({"left_id": "b0"}, "forged_pictures"),
        ({"choice": "b1"}, "unknown_choice"),
        ({"choice": "left"}, "unknown_choice"),
        ({"ms": "-5"}, "bad_number"),
        ({"ms": "nan"}, "bad_number"),
        ({"choice": "b0"}, "duplicate"),
        ({"choice": "tie"}, "contradicted"),
    ],
)
def test_bad_row_is_counted_under_its_reason(tmp_path: Path, change: Row, reason: str) -> None:
    good = row("pair_0", "b0", "a0", "b0")
    found = read_answers([write(tmp_path / "answers.csv", [good, {**good, **change}])], key_of(3))
    assert found.dropped == {reason: 1}
    assert [answer.choice for answer in found.kept] == ["tuned"]


def test_unknown_columns_and_torn_rows_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "answers.csv", [{**row("pair_0", "b0", "a0", "b0"), "mood": "fine"}], (*COLUMNS, "mood")
    )
    path.write_text(
        "\ufeff" + path.read_text() + "survey_1,r0,pair_1\n" + ",".join(["x"] * 15) + "\n", encoding="utf-8"
    )
    found = read_answers([path], key_of(3))
    assert found.dropped == {"broken_row": 2, "unknown_column": 1}
    assert len(found.kept) == 1


def test_many_files_are_one_survey(tmp_path: Path) -> None:
    key = key_of(3)
    one = write(tmp_path / "1.csv", [row("pair_0", "b0", "a0", "b0")])
    two = write(tmp_path / "2.csv", [row("pair_0", "b0", "a0", "b0"), row("pair_1", "tie", "a1", "b1", "r1")])
    found = read_answers([one, two], key)
    assert len(found.kept) == 2
    assert found.dropped == {"duplicate": 1}


def test_file_without_a_column_or_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.csv", [row("pair_0", "b0", "a0", "b0")], COLUMNS[:4])
    with pytest.raises(
        DataError, match=r"answers.csv: has no column choice; expected the columns survey_id,rater_id"
    ):
        read_answers([path], key_of(3))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no CSV text"):
        read_answers([path], key_of(3))


def test_empty_file_and_answers_of_another_survey_are_refused(tmp_path: Path) -> None:
    empty = write(tmp_path / "answers.csv", [])
    with pytest.raises(
        DataError, match=r"answers.csv: holds no valid answer, expected answers to survey survey_1"
    ):
        read_answers([empty], key_of(3))
    other = write(tmp_path / "other.csv", [{**row("pair_0", "b0", "a0", "b0"), "survey_id": "x"}])
    with pytest.raises(DataError, match=r"holds no valid answer \(wrong_survey 1\)"):
        read_answers([other], key_of(3))
    nothing = tmp_path / "nothing.csv"
    nothing.write_text("")
    with pytest.raises(DataError, match="holds no valid answer"):
        read_answers([nothing], key_of(3))


@pytest.fixture
def survey(tmp_path: Path) -> Callable[..., SurveyConfig]:
    def make(key: dict[str, Any] | None = None, **tally_section: Any) -> SurveyConfig:
        (tmp_path / "survey" / "private").mkdir(parents=True)
        if key is not None:
            (tmp_path / "survey" / "private" / "key.json").write_text(json.dumps(key))
        systems = [{"name": "stock", "samples": "a"}, {"name": "tuned", "samples": "b"}]
        section = {"dir": str(tmp_path / "survey"), "systems": systems, "baseline": "stock"}
        path = tmp_path / "survey.json"
        path.write_text(json.dumps({"survey": section, "tally": tally_section}))
        return load_config(SurveyConfig, path)

    return make


def test_command_writes_page_and_numbers(
    tmp_path: Path, survey: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_of()
    config = survey(key)
    write(tmp_path / "survey" / "answers.csv", simulated(key, 0.8))
    check(config)
    main(config)
    flat = json.loads((tmp_path / "survey" / "tally.json").read_text())
    assert flat["verdict"].startswith("Raters prefer tuned over stock: tuned was chosen in ")
    assert flat["verdict"] in capsys.readouterr().out
    assert flat["use.win_rate.low"] > 0.5
    assert flat["use.answers"] == flat["unfiltered.use.answers"] == 240
    assert flat["use.naive.win_rate"] > 0.7
    assert all(not isinstance(value, (dict, list)) for value in flat.values())
    assert "<script" not in (tmp_path / "survey" / "tally.html").read_text()


def test_baseline_that_wins_is_named_as_preferred(
    tmp_path: Path, survey: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_of()
    config = survey(key)
    write(tmp_path / "survey" / "answers.csv", simulated(key, 0.15))
    main(config)
    assert capsys.readouterr().out.startswith("Raters prefer stock over tuned: tuned was chosen in ")


def test_undecided_survey_says_how_much_more_is_needed(
    tmp_path: Path, survey: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_of()
    config = survey(key)
    write(tmp_path / "survey" / "answers.csv", simulated(key, 0.52, seed=3))
    main(config)
    said = capsys.readouterr().out
    assert said.startswith("No preference could be shown between tuned and stock")
    assert "times as many prompts and raters would be needed" in said


def test_missing_key_and_missing_answers_are_said(tmp_path: Path, survey: Any) -> None:
    config = survey()
    with pytest.raises(DataError, match=r"key.json: there is no such key; run python -m eval.survey first"):
        check(config)
    (tmp_path / "survey" / "private" / "key.json").write_text(json.dumps(key_of()))
    with pytest.raises(DataError, match=r"answers.csv: holds no answers; collect"):
        check(config)
    (tmp_path / "survey" / "private" / "key.json").write_text("{}")
    with pytest.raises(DataError, match="is no key of a survey"):
        read_key(tmp_path / "survey" / "private" / "key.json")


def test_a_folder_of_files_is_read_whole(tmp_path: Path, survey: Any) -> None:
    key = key_of()
    (tmp_path / "in").mkdir()
    rows = simulated(key, 0.8)
    write(tmp_path / "in" / "1.csv", rows[:300])
    write(tmp_path / "in" / "2.csv", rows[300:])
    main(survey(key, answers=[str(tmp_path / "in")]))
    assert json.loads((tmp_path / "survey" / "tally.json").read_text())["answers"] == len(rows)
