"""The judgement as one page: verdict, table, forest plot, prompts at their best and worst, near copies.

Shows what was measured and nothing that was not; the numbers are those of metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crest.page import Strip, forest, histogram, page, picture, table, text
from eval.evidence import Evidence
from eval.judge import Finding, Judgement
from eval.statistics import Interval, figure, p_text, span
from eval.systems import System

PAIRS_SHOWN = 8


def render(
    judgement: Judgement, evidence: Evidence, systems: Sequence[System], flat: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]], config_text: str, shown: int,
) -> str:  # fmt: skip
    """The page as HTML.

    Args:
        flat: what metrics.json will hold; its settings and hashes are shown.
        pairs: rows of nearest.jsonl, nearest first.
        shown: prompts in each grid.
    """
    others = [system.name for system in systems if system.name != judgement.baseline]
    title = f"{' and '.join(others)} against {judgement.baseline}"
    parts = [f"<h1>{text(title)}</h1>"]
    parts += [f'<p class="verdict">{text(sentence)}</p>' for sentence in judgement.verdicts]
    each = len(evidence.prompt_of) / len(evidence.prompts)
    parts.append(
        f'<p class="soft">{len(evidence.prompts)} prompts, {each:g} picture{"s" if each != 1 else ""} a '
        "prompt and "
        f"system, same seeds. Scored by {text(flat['reference'])} ({text(flat['reference_hash'])}), "
        f"{_independence(systems)}. The primary metric was named before drawing.</p>"
    )
    parts.append(_metric_table(judgement, [system.name for system in systems]))
    if judgement.skipped:
        items = "".join(
            f"<li>{text(name)}: {text(reason)}</li>" for name, reason in judgement.skipped.items()
        )
        parts.append(f'<p class="soft">Not measured:</p><ul class="soft">{items}</ul>')
    for name in others:
        parts.append(_differences(judgement, name))
    for name in others:
        parts.append(_prompts(judgement, evidence, name, shown))
    if pairs:
        parts.append(_nearest(evidence, pairs, others))
    hashes = {
        k: v
        for k, v in flat.items()
        if k.startswith(("samples.", "reference", "config_hash")) or k == "seconds"
    }
    rows = "".join(f"<li><code>{text(k)}</code> {text(v)}</li>" for k, v in hashes.items())
    parts.append(
        f"<h2>Settings</h2><ul>{rows}</ul><details><summary>Resolved config</summary>"
        f'<pre tabindex="0">{text(config_text)}</pre></details>'
    )
    return page(title, "\n".join(parts))


def _independence(systems: Sequence[System]) -> str:
    unknown = [text(system.name) for system in systems if not system.ancestry]
    if not unknown:
        return "which conditioned none of the systems"
    return f"though which CLIP conditioned {' and '.join(unknown)} is not known"


def _metric_table(judgement: Judgement, names: Sequence[str]) -> str:
    head = ["Metric", *(text(name) for name in names), "Difference", "p", "p (Holm)", "Effect", "Wins"]
    rows = []
    for finding in judgement.findings:
        values = [_interval(finding.values[name], is_share=finding.metric.is_share) for name in names]
        for place, (name, comparison) in enumerate(finding.comparisons.items()):
            metric = finding.metric
            mark = " (primary)" if metric.name == judgement.primary else ""
            better = {"higher": "higher is better", "lower": "lower is better", "neither": "described only"}[
                metric.better
            ]
            label = f"{text(metric.title)}{mark}<small>{better}</small>"
            if len(finding.comparisons) > 1:
                label += f"<small>{text(name)}</small>"
            tone = _tone(finding, name, judgement.primary)
            is_tested = metric.better != "neither"
            difference = _interval(comparison.difference, is_share=metric.is_share)
            rows.append(
                [
                    label,
                    *(values if place == 0 else [""] * len(values)),
                    f'<span class="{tone}">{difference}</span>',
                    _p(comparison.p),
                    _p(finding.holm.get(name)),
                    "–"
                    if comparison.effect_size is None or not is_tested
                    else text(figure(comparison.effect_size)),
                    "–" if comparison.win_share is None or not is_tested else f"{comparison.win_share:.0%}",
                ]
            )
    notes = "".join(
        f"<li>{text(finding.metric.title)}: {text(finding.outcome.note)}.</li>"
        for finding in judgement.findings
        if finding.outcome.note
    )
    caption = f"Difference: system minus {judgement.baseline}; 95 % intervals below; the prompt is the unit"
    return f'<h2>Scores</h2>{table(caption, head, rows)}<ul class="soft">{notes}</ul>'


def _interval(interval: Interval, *, is_share: bool) -> str:
    value, low, high = (figure(n, is_share=is_share) for n in (interval.value, interval.low, interval.high))
    return f"{value}<small>{low} to {high}</small>"


def _p(p: float | None) -> str:
    return "–" if p is None else text(p_text(p).removeprefix("p ").removeprefix("= "))


def _tone(finding: Finding, name: str, primary: str) -> str:
    comparison = finding.comparisons[name]
    p = comparison.p if finding.metric.name == primary else finding.holm.get(name)
    if p is None or p >= 0.05 or finding.metric.better == "neither":
        return "even"
    return "better" if (comparison.difference.value > 0) == (finding.metric.better == "higher") else "worse"


def _differences(judgement: Judgement, name: str) -> str:
    strips = []
    for finding in judgement.findings:
        if finding.metric.better == "neither":
            continue
        d = finding.comparisons[name].difference
        sign = 1 if finding.metric.better == "higher" else -1
        low, high = sorted((sign * d.low, sign * d.high))
        strips.append(
            Strip(
                finding.metric.title, sign * d.value, low, high,
                span(d, is_share=finding.metric.is_share), _tone(finding, name, judgement.primary),
            )
        )  # fmt: skip
    primary = judgement.primary_finding
    gains = primary.outcome.scores[name] - primary.outcome.scores[judgement.baseline]
    plot = forest(
        strips, left=f"{judgement.baseline} better", right=f"{name} better",
        description=f"Differences between {name} and {judgement.baseline} with 95 % intervals",
    )  # fmt: skip
    bars = histogram(
        gains, label=f"{primary.metric.title}, {name} minus {judgement.baseline}, by prompt",
        description=f"Histogram of {len(gains)} differences by prompt: {int((gains > 0).sum())} above 0",
    )  # fmt: skip
    return (
        f"<h2>{text(name)} against {text(judgement.baseline)}</h2>"
        '<p class="soft">Right of the dashed line the system is better. Every line has its own scale; colour '
        "marks differences that hold at 5 % (secondary metrics after Holm).</p>"
        f'{plot}<h3>Prompt by prompt</h3>{bars}'
    )  # fmt: skip


def _prompts(judgement: Judgement, evidence: Evidence, name: str, shown: int) -> str:
    finding = judgement.primary_finding
    scores = finding.outcome.scores
    d = scores[name] - scores[judgement.baseline]
    tie_break = scores[name]
    order = np.lexsort((tie_break, d))
    shown = min(shown, len(order))
    start = (len(order) - shown) // 2
    groups = {
        f"Prompts that {name} gains most on": order[::-1][:shown],
        "Prompts in the middle": order[start : start + shown],
        f"Prompts that {name} loses most on, or gains least": order[:shown],
    }
    parts = [f"<h2>What {text(name)} and {text(judgement.baseline)} drew</h2>"]
    parts.append(
        f'<p class="soft">Sorted by the difference in {text(finding.metric.title)}; the first seed of each '
        "prompt, nothing picked by hand.</p>"
    )
    for heading, numbers in groups.items():
        cards = "".join(
            _card(evidence, finding, (judgement.baseline, name), int(number)) for number in numbers
        )
        parts.append(f'<h3>{text(heading)}</h3><ul class="grid">{cards}</ul>')
    return "".join(parts)


def _card(evidence: Evidence, finding: Finding, names: tuple[str, str], number: int) -> str:
    first = int(np.flatnonzero(evidence.prompt_of == number)[0])
    prompt = evidence.prompts[number]
    scores = {name: float(finding.outcome.scores[name][number]) for name in names}
    figures = "".join(
        f"<figure>{picture(evidence.systems[name].pixels[first], f'Drawn by {name} for: {prompt}')}"
        f"<figcaption>{text(name)}: {figure(scores[name], is_share=finding.metric.is_share)}</figcaption>"
        "</figure>"
        for name in names
    )
    return f'<li class="card"><p>{text(prompt)}</p><div class="pair">{figures}</div></li>'


def _nearest(evidence: Evidence, pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    assert evidence.train is not None
    place = {picture_id: number for number, picture_id in enumerate(evidence.train.ids)}
    cards = []
    for row in [row for row in pairs if row["system"] in names][:PAIRS_SHOWN]:
        gallery = evidence.systems[row["system"]]
        drawn = gallery.pixels[gallery.ids.index(row["file"])]
        real = evidence.train.pixels[place[row["nearest_id"]]]
        flag = ", flagged" if row["is_flagged"] else ""
        cards.append(
            f'<li class="card"><p>{text(row["prompt"])}</p><div class="pair"><figure>'
            f"{picture(drawn, 'Drawn by ' + row['system'])}<figcaption>{text(row['system'])}: cosine "
            f"{row['cosine']:.3f}{flag}</figcaption></figure><figure>"
            f"{picture(real, 'Nearest training picture')}<figcaption>training picture "
            f"{text(row['nearest_id'])}</figcaption></figure></div></li>"
        )
    return (
        '<h2>Nearest training pictures</h2><p class="soft">The closest pairs of all; nearest.jsonl has one '
        "for every picture. Look: no number proves that nothing was copied.</p>"
        f'<ul class="grid">{"".join(cards)}</ul>'
    )
