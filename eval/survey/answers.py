"""Read answers.csv files against the key: a bad row is counted under a named reason, never guessed at."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crest.errors import DataError
from crest.records import read_json

COLUMNS = (
    "survey_id", "rater_id", "pair_id", "question", "choice", "left_id", "right_id", "ms",
    "order", "ts", "source",
)  # fmt: skip
NEEDED = COLUMNS[:8]
TIE = "tie"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NUMBER = re.compile(r"\d{1,10}(\.\d{1,6})?")


@dataclass(frozen=True)
class Answer:
    """One choice of one rater."""

    rater: str
    pair: str
    question: str
    choice: str
    """what the key says of the chosen picture (a system, "whole", "destroyed"), or "tie" """
    is_left: bool | None
    """whether the left picture was chosen; None for a tie"""
    ms: float
    """since the pair was shown"""


@dataclass(frozen=True)
class Answers:
    """What was read and what was left out."""

    kept: tuple[Answer, ...]
    dropped: Mapping[str, int]
    """reason -> rows (or, for unknown_column, columns)"""


def read_key(path: Path) -> dict[str, Any]:
    """Read a survey's private key.

    Raises:
        DataError: not there, or not a key.
    """
    if not path.exists():
        raise DataError(
            f"{path}: there is no such key; run python -m eval.survey first, or bring the private folder."
        )
    key = read_json(path)
    if not isinstance(key, dict) or key.get("format") != "crest-survey-key-1":
        raise DataError(f"{path}: is no key of a survey; bring the private/key.json that its export wrote.")
    return key


def answer_files(wanted: Sequence[Path], folder: Path) -> list[Path]:
    """The files to read: as configured, folders opened, else answers.csv of the survey.

    Raises:
        DataError: one is missing.
    """
    files: list[Path] = []
    for path in wanted or (folder / "answers.csv",):
        found = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise DataError(
                f"{path}: holds no answers; collect the raters' files and name them in tally.answers."
            )
        files += found
    return files


def read_answers(files: Sequence[Path], key: Mapping[str, Any]) -> Answers:
    """Read and check every row.

    The first answer to a question counts: the same again is a `duplicate` (a file saved twice), another one
    is
    `contradicted` (a file changed later, or two people under one id).

    Args:
        files: .csv files in the neutral long format.
        key: the private key of the survey.
    Raises:
        DataError: no text, a missing column, or no valid answer at all.
    """
    dropped: Counter[str] = Counter()
    kept: dict[tuple[str, str, str], Answer] = {}
    for path in files:
        for row in _rows(path, dropped):
            found = _answer(row, key)
            if isinstance(found, str):
                dropped[found] += 1
                continue
            place = (found.rater, found.pair, found.question)
            earlier = kept.setdefault(place, found)
            if earlier is not found:
                dropped["duplicate" if earlier.choice == found.choice else "contradicted"] += 1
    if not kept:
        named = ", ".join(str(path) for path in files[:3])
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DataError(
            f"{named}: holds no valid answer{f' ({why})' if why else ''}, expected answers to survey "
            f"{key['survey_id']}; check that files and key belong together."
        )
    return Answers(tuple(kept.values()), dict(sorted(dropped.items())))


def _rows(path: Path, dropped: Counter[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            missing = [name for name in NEEDED if name not in names]
            if names and missing:
                raise DataError(
                    f"{path}: has no column {missing[0]}; expected the columns {','.join(COLUMNS)}."
                )
            dropped.update({"unknown_column": unknown} if (unknown := len(set(names) - set(COLUMNS))) else {})
            for row in reader:
                if None in row or any(row[name] is None for name in NEEDED):
                    dropped["broken_row"] += 1
                else:
                    yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV text ({error}); save it again as CSV in UTF-8.") from None


def _answer(row: Mapping[str, str], key: Mapping[str, Any]) -> Answer | str:
    """The answer of a row, or the reason why it is none."""
    if row["survey_id"] != key["survey_id"]:
        return "wrong_survey"
    if not _ID.fullmatch(row["rater_id"]):
        return "bad_rater"
    pair = key["pairs"].get(row["pair_id"])
    if pair is None:
        return "unknown_pair"
    if row["question"] not in key["questions"]:
        return "unknown_question"
    left, right = row["left_id"], row["right_id"]
    if {left, right} != set(pair["pictures"]):
        return "forged_pictures"
    if row["choice"] not in (left, right, TIE):
        return "unknown_choice"
    if not _NUMBER.fullmatch(row["ms"]):
        return "bad_number"
    is_tie = row["choice"] == TIE
    return Answer(
        rater=row["rater_id"],
        pair=row["pair_id"],
        question=row["question"],
        choice=TIE if is_tie else pair["pictures"][row["choice"]],
        is_left=None if is_tie else row["choice"] == left,
        ms=float(row["ms"]),
    )
