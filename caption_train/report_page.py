"""The comparison of captioners as one page: the figures, then logos with what everybody says of them.

One file that asks for nothing: pictures and style lie inside. Shows what report.json and answers.jsonl hold.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from caption_train.report_config import CHANCE, ReportConfig
from caption_train.report_scores import LOWER_IS_BETTER, SHARES, TITLES, Figure
from crest.colours import COLOUR_WORDS, SPELLINGS
from crest.images import decode, square
from crest.page import document, scroll
from crest.page import text as _text
from crest.wording import colours_of, content_words, stem

STYLE: Final = Path(__file__).with_name("report.css")
THUMB_PX: Final = 112
_WORDS: Final = re.compile(
    r"\b(?:" + "|".join(sorted((*COLOUR_WORDS, *SPELLINGS), key=len, reverse=True)) + r")\b|[^\W\d_]+",
    re.IGNORECASE,
)


def thumbnail(content: bytes, name: str) -> str:
    """A logo as a data address."""
    stream = io.BytesIO()
    square(decode(content, name), THUMB_PX).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def render(
    settings: ReportConfig, told: Mapping[str, Any], figures: Mapping[str, Mapping[str, Figure]],
    shown: Sequence[tuple[str, Mapping[str, Any]]], config_text: str,
) -> str:  # fmt: skip
    """The page as HTML.

    Args:
        told: what report.json holds.
        figures: system -> metric -> figure, chance included.
        shown: thumbnail and row of answers.jsonl of each logo on the page.
    """
    names = [system.name for system in settings.systems]
    logos = "\n".join(_logo(thumb, row, names) for thumb, row in shown)
    grid = f'<h2>Logos</h2><p class="soft">{_LEGEND}</p><ul class="logos">{logos}</ul>' if shown else ""
    who = "".join(
        f"<li><b>{_text(name)}</b> {_text(', '.join(f'{key} {value}' for key, value in made.items()))}</li>"
        for name, made in told["captioners"].items()
    )
    body = (
        "<h1>Captioners against people</h1>"
        f'<p class="verdict">{_verdict(figures, names)}</p>'
        f'<p class="soft">{told["logos"]:,} held-out logos of {told["groups"]:,} groups, of which no '
        "captioner that was trained here has learned. Below each figure its 95 % interval, from resampled "
        "groups. Things are the content words that are neither colours nor lettering. BLEU and chrF "
        "(sacrebleu) count shared sequences of words and of letters, 0 to 100.</p>"
        f"{_table(figures)}{grid}<h2>Settings</h2><ul>{who}</ul>"
        f'<details><summary>Resolved config</summary><pre tabindex="0">{_text(config_text)}</pre></details>'
    )
    return document("Captioners against people", STYLE, f"<main>\n{body}\n</main>")


_LEGEND: Final = (
    'Words that people used too are <b class="right">underlined</b>; colours that they did not name are '
    '<b class="wrong">struck out</b>.'
)


def _verdict(figures: Mapping[str, Mapping[str, Figure]], names: Sequence[str]) -> str:
    told = [name for name in names if "colour_f1" in figures[name]]
    if not told:
        return "People named no colours of these logos, nor did any captioner."
    best = max(told, key=lambda name: figures[name]["colour_f1"].value)
    own, chance = figures[best], figures[CHANCE]
    sentence = f"{best} names the colours that people name with an F1 of {own['colour_f1'].value:.0%}"
    if "object_f1" in own:
        sentence += f" and the things with {own['object_f1'].value:.0%}"
    if "colour_f1" in chance:
        sentence += f"; without looking, {chance['colour_f1'].value:.0%} of the colours are reached"
    return f"{_text(sentence)}."


def _table(figures: Mapping[str, Mapping[str, Figure]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in figures)
    lines = []
    for metric, title in TITLES.items():
        if not any(metric in own for own in figures.values()):
            continue
        known = {name: own[metric].value for name, own in figures.items() if metric in own and name != CHANCE}
        choose = min if metric in LOWER_IS_BETTER else max
        is_contest = metric != "words" and len(set(known.values())) > 1
        best = choose(known.values()) if is_contest else None
        cells = "".join(
            _cell(metric, own.get(metric), None if name == CHANCE else best) for name, own in figures.items()
        )
        note = "<small>lower is better</small>" if metric in LOWER_IS_BETTER else ""
        lines.append(f'<tr><th scope="row">{_text(title)}{note}</th>{cells}</tr>')
    caption = "What captioners say, measured by what people said; the best of each row in bold"
    scores = (
        f'<table><caption>{caption}</caption><thead><tr><th scope="col">Measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return f"<h2>Scores</h2>{scroll(scores, caption)}"


def _cell(metric: str, figure: Figure | None, best: float | None) -> str:
    if figure is None:
        return "<td>–</td>"
    value = _number(metric, figure.value)
    if best is not None and figure.value == best:
        value = f"<b>{value}</b>"
    if figure.low is None or figure.high is None:
        return f"<td>{value}</td>"
    return f"<td>{value}<small>{_number(metric, figure.low)} to {_number(metric, figure.high)}</small></td>"


def _number(metric: str, value: float) -> str:
    return f"{100 * value:.1f}\u00a0%" if metric in SHARES else f"{value:.1f}"


def _logo(thumb: str, row: Mapping[str, Any], names: Sequence[str]) -> str:
    human = str(row["human"][0])
    said = "".join(
        f"<dt>{_text(name)}</dt><dd>{_marked(str(row[name]), human) or '<i>nothing</i>'}</dd>"
        for name in names
    )
    picture = f'<img src="{thumb}" alt="{_text(human)}" width="{THUMB_PX}" height="{THUMB_PX}">'
    return f"<li>{picture}<dl><dt>people</dt><dd>{_text(human)}</dd>{said}</dl></li>"


def _marked(text: str, human: str) -> str:
    """A caption with the words that people used too, and the colours that they did not."""
    colours, things = set(colours_of(human)), set(content_words(human))
    parts: list[str] = []
    end = 0
    for found in _WORDS.finditer(text):
        parts.append(_text(text[end : found.start()]))
        word, end = found[0], found.end()
        colour = SPELLINGS.get(word.lower(), word.lower())
        if colour in COLOUR_WORDS:
            kind = "right" if colour in colours else "wrong"
            parts.append(f'<b class="{kind}">{_text(word)}</b>')
        elif stem(word) in things:
            parts.append(f'<b class="right">{_text(word)}</b>')
        else:
            parts.append(_text(word))
    return "".join([*parts, _text(text[end:])])
