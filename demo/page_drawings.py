"""Chapters of the demo's page about what was drawn: scores, drawings side by side, what is hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crest.page import text
from demo.config import SYSTEMS
from demo.heraldry import CHARGES, COLOURS, FIELDS, SHAPES, Specification
from demo.hindsight import confusions
from demo.markup import image, title
from demo.plots import Bar, Mark, bars, strip
from demo.report import ATTRIBUTES, GOALS, Shown, label, per_cent


def scores(metrics: Mapping[str, Any]) -> str:
    """A tile for each figure, stock and tuned with their intervals."""
    notes = {
        "exact": "all five attributes right",
        "shape": f"of {len(SHAPES)} outlines",
        "field": f"of {len(FIELDS)} patterns",
        "field_colour": f"of {len(COLOURS)} colours; both, in order",
        "charge": f"of {len(CHARGES)} charges",
        "charge_colour": f"of {len(COLOURS)} colours",
        "r_precision_at_1": f"own prompt first of {round(metrics['r_precision_at_1.distractors']) + 1}",
        "clip_score": "100 × cosine, reference CLIP",
    }
    tiles = "".join(_tile(metrics, name, note) for name, note in notes.items())
    return (
        title(
            "Scores",
            "Is what was asked for what was drawn?",
            f"{metrics['prompts']} prompts ask for combinations that are in no training data. Each "
            "drawing is compared with every crest that can be specified; the nearest one in pixels is what "
            "it shows. No model has a say.",
        )
        + '<p class="soft"><span class="key tuned">tuned on the scraped league</span>'
        '<span class="key stock">stock weights</span><span class="key goal">goal</span>'
        f'bars are 95\u00a0% intervals over prompts</p><ul class="tiles">{tiles}</ul>'
    )


def _tile(metrics: Mapping[str, Any], name: str, note: str) -> str:
    is_share = name != "clip_score"

    def told(value: float) -> str:
        return per_cent(value) if is_share else f"{value:.1f}"

    marks = [
        Mark(s, *(metrics[f"{s}.{name}{end}"] for end in ("", ".low", ".high"))) for s in reversed(SYSTEMS)
    ]
    tuned, stock = marks
    goal = GOALS.get(name)
    largest = 1.0 if is_share else max(1.0, *(mark.high for mark in marks)) * 1.1
    words = "; ".join(f"{m.tone} {told(m.value)} ({told(m.low)} to {told(m.high)})" for m in marks)
    heading = label(name)[0].upper() + label(name)[1:]
    aim = f" · goal {per_cent(goal)}" if goal is not None else ""
    return (
        f'<li class="tile"><h3>{text(heading)}</h3><p class="big">{told(tuned.value)}</p>'
        f'<p class="soft">stock {told(stock.value)}{aim}<br>{text(note)}</p>'
        f"{strip(marks, largest=largest, goal=goal, description=words)}</li>"
    )


def drawings(shown: Sequence[Shown], most: int) -> str:
    """Truth, stock and tuned side by side for the first prompts."""
    cards = "".join(_card(one) for one in shown[:most])
    return (
        title(
            "Drawings",
            "Asked for, stock, tuned",
            f"The first {min(most, len(shown))} prompts in their order, same seeds for both models, nothing "
            "picked by hand. A cross names what the judge sees instead.",
        )
        + f'<ul class="cards">{cards}</ul>'
    )


def _card(one: Shown) -> str:
    asked = _words(one.specification)
    heads = {"asked for": ("truth", f"The truth: {one.text}")}
    heads |= {name: (name, f"Drawn by the {name} model") for name in SYSTEMS}
    head = "".join(
        f"<th scope='col'>{heading}{image(one.pictures[name], alt)}</th>"
        for heading, (name, alt) in heads.items()
    )
    seen = {name: _words(one.verdicts[name]["seen"]) for name in SYSTEMS}
    rows = ""
    for name in ATTRIBUTES[1:]:
        cells = "".join(_check(bool(one.verdicts[system][name]), seen[system][name]) for system in SYSTEMS)
        hidden = f"<span class='hidden'>{label(name)}: </span>"
        rows += f"<tr><th scope='row'>{hidden}{text(asked[name])}</th>{cells}</tr>"
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<li class='card'><p>{text(one.text)}</p><table>{body}</table></li>"


def _words(specification: Mapping[str, str | None]) -> dict[str, str]:
    spec = Specification.from_dict(specification)
    return {
        "shape": spec.shape,
        "field": spec.field,
        "field_colour": ", ".join(spec.field_colours),
        "charge": spec.charge,
        "charge_colour": spec.charge_colour,
    }


def _check(is_right: bool, seen: str) -> str:
    if is_right:
        return '<td class="yes"><span aria-hidden="true">✓</span><span class="hidden">right</span></td>'
    return (
        '<td class="no"><span aria-hidden="true">✗ </span><span class="hidden">wrong: </span>'
        f"{text(seen)}</td>"
    )


def by_value(shown: Sequence[Shown]) -> str:
    """How often each shape, field, charge and colour is right when asked for."""
    values = {
        "shape": SHAPES,
        "field": FIELDS,
        "field_colour": COLOURS,
        "charge": CHARGES,
        "charge_colour": COLOURS,
    }
    panels = ""
    for name, words in values.items():
        rows = [bar for word in words if (bar := _bar(shown, name, word)) is not None]
        rows.sort(key=lambda bar: (bar.tuned, bar.stock))
        told = ", ".join(
            f"{bar.label} {per_cent(bar.tuned)} of {bar.count} (stock {per_cent(bar.stock)})" for bar in rows
        )
        heading = label(name).capitalize()
        plot = bars(rows, description=f"Right by {label(name)}: {told}")
        panels += f'<div class="panel"><h3>{heading}</h3>{plot}</div>'
    truths = {one.id: Specification.from_dict(one.specification) for one in shown}
    mistakes = confusions([one.verdicts["tuned"] for one in shown], truths, "tuned")
    items = "".join(f"<li>{text(mistake)}</li>" for mistake in mistakes) or "<li>no mistake at all</li>"
    panels += f'<div class="panel"><h3>Its most frequent mistakes</h3><ul class="errors">{items}</ul></div>'
    return (
        title(
            "By value",
            "Which ones are hard?",
            "How often an attribute is right, by what was asked for, the hardest first.",
        )
        + '<p class="soft"><span class="key tuned">tuned</span><span class="key stock">stock</span></p>'
        f'<div class="panels">{panels}</div>'
    )


def _bar(shown: Sequence[Shown], name: str, value: str) -> Bar | None:
    asked = [one for one in shown if one.specification[name] == value]
    if not asked:
        return None
    stock, tuned = (sum(bool(one.verdicts[s][name]) for one in asked) / len(asked) for s in SYSTEMS)
    return Bar(value, len(asked), stock, tuned)
