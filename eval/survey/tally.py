"""Tally the answers of a survey: win rates with honest intervals, checks, exclusions.

    python -m eval.survey.tally --config configs/demo/survey.json

Reads answers.csv (one file or many) and private/key.json; writes tally.json and tally.html.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crest.config import run_command
from eval.survey.config import SurveyConfig

if TYPE_CHECKING:
    from eval.survey.answers import Answer, Answers
    from eval.survey.preference import Rate


@dataclass(frozen=True)
class QuestionTally:
    """What the answers to one question say of the system against the baseline."""

    rate: Rate
    naive: Rate
    answers: int
    prompts: int
    raters: int
    ties: float
    """share of "no difference" """
    without_ties: float | None
    """win rate among the decided answers"""
    left_share: float | None
    """share of the left picture among the decided answers"""
    left_p: float
    """binomial test of that share against one half"""
    alpha: float | None
    """Krippendorff's alpha over the three answers"""


@dataclass(frozen=True)
class Tally:
    """The whole tally."""

    filtered: Mapping[str, QuestionTally]
    """question -> figures without the excluded raters"""
    unfiltered: Mapping[str, QuestionTally]
    excluded: Mapping[str, int]
    """rule -> raters left out by it"""
    raters: int
    """all raters with a valid answer"""
    gold_share: float | None
    """right answers to gold items, all raters"""
    repeat_share: float | None
    """repeats answered like the first time, all raters"""
    median_ms: float
    """median time for a pair"""


def check(config: SurveyConfig) -> None:
    """Look whether key and answers are there."""
    from eval.survey.answers import answer_files, read_key

    read_key(config.survey.dir / "private" / "key.json")
    answer_files(config.tally.answers, config.survey.dir)


def main(config: SurveyConfig) -> None:
    """Read, count, write."""
    from crest.records import write_json, write_text
    from eval.survey.answers import answer_files, read_answers, read_key
    from eval.survey.tally_page import render

    folder = config.survey.dir
    key = read_key(folder / "private" / "key.json")
    answers = read_answers(answer_files(config.tally.answers, folder), key)
    found = tally(answers.kept, key)
    flat = flat_tally(found, answers, key)
    write_text(folder / "tally.html", render(found, answers, key, flat))
    write_json(folder / "tally.json", flat)
    print(flat["verdict"])
    print(f"the tally is {folder / 'tally.html'}")


def tally(answers: Sequence[Answer], key: Mapping[str, Any]) -> Tally:
    """Count all answers, once with every rater and once without those whom the rules exclude.

    Args:
        answers: valid answers.
        key: the survey's private key; its rules were fixed at export.
    Raises:
        DataError: nobody is left, or nobody answered a real pair.
    """
    from crest.errors import DataError

    kinds = {pair_id: pair["kind"] for pair_id, pair in key["pairs"].items()}
    gold, times = _gold(answers, key, kinds), _times(answers)
    rules = key["exclude"]
    out: dict[str, str] = {}
    for rater in dict.fromkeys(answer.rater for answer in answers):
        right = gold.get(rater, [])
        if right and sum(right) / len(right) < rules["min_gold_share"]:
            out[rater] = "gold"
        elif statistics.median(times[rater]) < rules["min_ms"]:
            out[rater] = "too_fast"
    real = [answer for answer in answers if kinds[answer.pair] == "real"]
    kept = [answer for answer in real if answer.rater not in out]
    if not any(answer.question == key["primary"] for answer in kept):
        raise DataError(
            f"survey {key['survey_id']}: {len(out)} raters are excluded by the rules and no answer to the "
            "primary question is left; collect more answers."
        )
    golds = [is_right for right in gold.values() for is_right in right]
    same = _repeats(answers, key, kinds)
    return Tally(
        filtered=_by_question(kept, key),
        unfiltered=_by_question(real, key),
        excluded=dict(Counter(out.values())),
        raters=len(times),
        gold_share=sum(golds) / len(golds) if golds else None,
        repeat_share=sum(same) / len(same) if same else None,
        median_ms=statistics.median(time for values in times.values() for time in values),
    )


def _gold(
    answers: Sequence[Answer], key: Mapping[str, Any], kinds: Mapping[str, str]
) -> dict[str, list[bool]]:
    """Rater -> for each gold item, whether the whole logo won (primary question; a tie is wrong)."""
    found: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        if kinds[answer.pair] == "gold" and answer.question == key["primary"]:
            found[answer.rater].append(answer.choice == "whole")
    return found


def _times(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Rater -> milliseconds until the last answer of each pair."""
    longest: dict[str, dict[str, float]] = defaultdict(dict)
    for answer in answers:
        pairs = longest[answer.rater]
        pairs[answer.pair] = max(pairs.get(answer.pair, 0.0), answer.ms)
    return {rater: list(pairs.values()) for rater, pairs in longest.items()}


def _repeats(answers: Sequence[Answer], key: Mapping[str, Any], kinds: Mapping[str, str]) -> list[bool]:
    """For each repeat, whether the rater chose the same again (primary question)."""
    first = {(a.rater, a.pair): a.choice for a in answers if a.question == key["primary"]}
    same = []
    for answer in answers:
        if kinds[answer.pair] == "repeat" and answer.question == key["primary"]:
            before = first.get((answer.rater, key["pairs"][answer.pair]["of"]))
            if before is not None:
                same.append(before == answer.choice)
    return same


def _by_question(answers: Sequence[Answer], key: Mapping[str, Any]) -> dict[str, QuestionTally]:
    found = {}
    for question in key["questions"]:
        mine = [answer for answer in answers if answer.question == question]
        if mine:
            found[question] = _question(mine, key)
    return found


def _question(answers: Sequence[Answer], key: Mapping[str, Any]) -> QuestionTally:
    from scipy import stats

    from eval.survey.answers import TIE
    from eval.survey.preference import krippendorff_alpha, naive_rate, two_way_rate

    wins = [0.5 if a.choice == TIE else float(a.choice == key["system"]) for a in answers]
    prompts = [key["pairs"][a.pair]["prompt_id"] for a in answers]
    raters = [a.rater for a in answers]
    decided = [win for win in wins if win != 0.5]
    lefts = [a.is_left for a in answers if a.is_left is not None]
    units: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        units[answer.pair].append(answer.choice)
    return QuestionTally(
        rate=two_way_rate(wins, prompts, raters),
        naive=naive_rate(wins),
        answers=len(wins),
        prompts=len(set(prompts)),
        raters=len(set(raters)),
        ties=1 - len(decided) / len(wins),
        without_ties=sum(decided) / len(decided) if decided else None,
        left_share=sum(lefts) / len(lefts) if lefts else None,
        left_p=float(stats.binomtest(sum(lefts), len(lefts)).pvalue) if lefts else 1.0,
        alpha=krippendorff_alpha(units.values()),
    )


def verdict(found: Tally, key: Mapping[str, Any]) -> str:
    """The one sentence on the primary question; it may be that no preference could be shown."""
    from eval.statistics import figure, p_text
    from eval.survey.preference import needed_factor

    q = found.filtered[key["primary"]]
    interval = q.rate.interval
    value, low, high = (figure(x, is_share=True) for x in (interval.value, interval.low, interval.high))
    figures = (
        f"{key['system']} was chosen in {value} (95\u00a0% interval {low} to {high}, {p_text(q.rate.p)}; "
        f"{q.answers} answers, {q.prompts} prompts, {q.raters} raters; ties count half)"
    )
    if q.rate.p < 0.05:
        more, less = (
            (key["system"], key["baseline"]) if interval.value > 0.5 else (key["baseline"], key["system"])
        )
        return f"Raters prefer {more} over {less}: {figures}."
    factor = needed_factor(q.rate)
    advice = (
        f"; {factor:.1f} times as many prompts and raters would be needed to show one of this size"
        if factor
        else ""
    )
    return f"No preference could be shown between {key['system']} and {key['baseline']}: {figures}{advice}."


def flat_tally(found: Tally, answers: Answers, key: Mapping[str, Any]) -> dict[str, Any]:
    """The tally as one flat object for tally.json."""
    flat: dict[str, Any] = {
        "verdict": verdict(found, key),
        "survey_id": key["survey_id"],
        "system": key["system"],
        "baseline": key["baseline"],
        "primary": key["primary"],
        "answers": len(answers.kept),
        "raters": found.raters,
        "gold.right": found.gold_share,
        "repeat.same": found.repeat_share,
        "median_ms": found.median_ms,
    }
    for prefix, tallies in (("", found.filtered), ("unfiltered.", found.unfiltered)):
        for question, q in tallies.items():
            name = f"{prefix}{question}"
            rate, naive = q.rate, q.naive
            values = {
                "win_rate": rate.interval.value, "win_rate.low": rate.interval.low,
                "win_rate.high": rate.interval.high, "win_rate.p": rate.p,
                "naive.win_rate": naive.interval.value, "naive.low": naive.interval.low,
                "naive.high": naive.interval.high, "naive.p": naive.p,
                "ties": q.ties, "win_rate_without_ties": q.without_ties,
                "left_share": q.left_share, "left_p": q.left_p, "alpha": q.alpha,
                "answers": q.answers, "prompts": q.prompts, "raters": q.raters,
            }  # fmt: skip
            flat |= {f"{name}.{field}": value for field, value in values.items()}
    flat |= {f"excluded.{rule}": count for rule, count in found.excluded.items()}
    flat |= {f"dropped.{reason}": count for reason, count in answers.dropped.items()}
    return flat


if __name__ == "__main__":
    sys.exit(run_command("eval.survey.tally", SurveyConfig, main, check=check))
