"""The tally as one self-contained page; its numbers are those of tally.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crest.page import Strip, forest, page, table, text
from eval.statistics import Interval, figure, p_text
from eval.survey.answers import Answers
from eval.survey.export import QUESTIONS

if TYPE_CHECKING:
    from eval.survey.tally import QuestionTally, Tally

RULES = {"gold": "too few gold items right", "too_fast": "answered too fast"}


def render(found: Tally, answers: Answers, key: Mapping[str, Any], flat: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        found: the counts.
        answers: what was read, with the reasons for what was not.
        key: the survey's private key.
        flat: what tally.json will hold.
    """
    title = f"What people chose: {key['system']} against {key['baseline']}"
    excluded = sum(found.excluded.values())
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="verdict">{text(flat["verdict"])}</p>',
        f'<p class="soft">{len(answers.kept)} valid answers from {found.raters} raters; {excluded} of them '
        "left out by rules "
        "fixed at export. Intervals let answers of one rater and answers to one prompt move together.</p>",
        f"<h2>By question</h2>{_forest(found, key)}",
        _rates("Without the excluded raters", found.filtered, key),
        _rates("All raters", found.unfiltered, key),
        _checks(found, answers, key),
    ]
    return page(title, "\n".join(parts))


def _label(question: str, key: Mapping[str, Any]) -> str:
    return QUESTIONS.get(question, question) + (" (primary)" if question == key["primary"] else "")


def _forest(found: Tally, key: Mapping[str, Any]) -> str:
    names = {"match": "Matches better", "quality": "Better logo", "use": "Would rather use"}
    strips = []
    for question, q in found.filtered.items():
        i = q.rate.interval
        tone = "even" if q.rate.p >= 0.05 else "better" if i.value > 0.5 else "worse"
        strips.append(
            Strip(names.get(question, question), i.value - 0.5, i.low - 0.5, i.high - 0.5, _span(i), tone)
        )
    return forest(
        strips, left=f"{key['baseline']} chosen", right=f"{key['system']} chosen",
        description="Win rates with 95 % intervals against one half; the figures are in the table below",
        common_reach=0.5,
    )  # fmt: skip


def _rates(caption: str, tallies: Mapping[str, QuestionTally], key: Mapping[str, Any]) -> str:
    head = [
        "Question",
        f"{text(key['system'])} chosen",
        "p",
        "Naive",
        "No difference",
        "Left chosen",
        "Agreement",
    ]
    rows = []
    for question, q in tallies.items():
        rows.append(
            [
                f"{text(_label(question, key))}<small>{q.answers} answers, {q.prompts} prompts, "
                f"{q.raters} raters</small>",
                _cell(q.rate.interval),
                text(p_text(q.rate.p).removeprefix("p ").removeprefix("= ")),
                _cell(q.naive.interval) + f"<small>{text(p_text(q.naive.p))}</small>",
                f"{figure(q.ties, is_share=True)}",
                "–"
                if q.left_share is None
                else f"{figure(q.left_share, is_share=True)}<small>{text(p_text(q.left_p))}</small>",
                "–" if q.alpha is None else f"{q.alpha:.2f}".replace("-", "−"),
            ]
        )
    return table(caption, head, rows)


def _checks(found: Tally, answers: Answers, key: Mapping[str, Any]) -> str:
    rules = key["exclude"]
    items = [
        f"Gold items right: {_share(found.gold_share)}. Repeats answered the same: "
        f"{_share(found.repeat_share)}.",
        f"Median time for a pair: {found.median_ms / 1000:.1f} s.",
        f"Raters were to be left out below {figure(rules['min_gold_share'], is_share=True)} of gold items "
        f"right or below a median of {rules['min_ms']:.0f} ms a pair.",
        *(f"Raters left out, {RULES.get(rule, rule)}: {count}." for rule, count in found.excluded.items()),
        *(f"Not counted, {reason.replace('_', ' ')}: {count}." for reason, count in answers.dropped.items()),
        "Naive figures (Wilson interval and binomial test without ties) assume independent answers and "
        "claim too much.",
        "Agreement is Krippendorff's alpha over left, no difference, right as choices of a system; 0.2 to "
        "0.4 is usual for matters of taste.",
    ]
    return "<h2>Checks</h2><ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def _share(value: float | None) -> str:
    return "none asked" if value is None else f"{figure(value, is_share=True)}"


def _span(interval: Interval) -> str:
    value, low, high = (figure(x, is_share=True) for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def _cell(interval: Interval) -> str:
    value, low, high = (figure(x, is_share=True) for x in (interval.value, interval.low, interval.high))
    return f"{value}<small>{low} to {high}</small>"
