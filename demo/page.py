"""The demo's one page as HTML: verdict first, then the chapters.

One file that asks for nothing: pictures and plots lie inside. Shows what metrics.json holds, and computes
nothing anew but shares by value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crest.page import document, text
from demo.config import DemoConfig
from demo.markup import image, slug
from demo.page_drawings import by_value, drawings, scores
from demo.page_runs import data, further, learning, minutes, retrieval_chapter
from demo.report import Shown

HERE: Final = Path(__file__).parent
EMBLEM: Final = (
    '<svg viewBox="0 0 40 46" aria-hidden="true">'
    '<path d="M2 2h36v20c0 12-8 18-18 22C10 40 2 34 2 22z" fill="#e3b341"/>'
    '<path d="M6 6h14v33C11 35 6 30 6 22z" fill="#f6efe0"/>'
    '<path d="M20 6h14v16c0 8-5 13-14 17z" fill="#b3202e"/></svg>'
)


def page_html(
    config: DemoConfig,
    metrics: Mapping[str, Any],
    shown: Sequence[Shown],
    logged: Mapping[str, Sequence[Mapping[str, float]]],
    retrieval: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        metrics: as metrics.json holds them.
        shown: all prompts; the first `report.shown` are shown.
        logged: run -> rows of its metrics.jsonl.
        retrieval: judge/retrieval.json.
    """
    chapters = {
        "Scores": scores(metrics),
        "Drawings": drawings(shown, config.report.shown),
        "By value": by_value(shown),
        "Data": data(metrics),
        "Learning": learning(logged),
        "Retrieval": retrieval_chapter(metrics, retrieval, config.place.dir / "data" / "shards"),
        "Minutes": minutes(metrics),
        "Further": further(config, metrics),
    }
    links = "".join(f'<li><a href="#{slug(name)}">{name}</a></li>' for name in chapters)
    body = "\n".join(
        f'<section id="{slug(name)}" aria-labelledby="{slug(name)}-title">{chapter}</section>'
        for name, chapter in chapters.items()
    )
    body = body.replace(" %", "\u00a0%")
    return document(
        "Crest: from a site of logos to drawn logos",
        HERE / "page.css",
        f'{_header(metrics, shown)}\n<nav aria-label="Chapters"><ul class="inner">{links}</ul></nav>\n'
        f'<main class="inner">\n{body}\n</main>',
    )


def _header(metrics: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    lines = "".join(f'<p class="verdict">{_bold(metrics[f"verdict.{number}"])}</p>' for number in (1, 2, 3))
    frieze = "".join(f"<li>{image(one.pictures['tuned'], '')}</li>" for one in shown[:12])
    return (
        f'<header><div class="inner"><h1 class="brand">{EMBLEM}'
        "<span>Crest: from a site of logos to drawn logos<br>"
        "<small>below, the tuned model's first twelve drawings of combinations that it had never seen</small>"
        f'</span></h1>{lines}<ul class="frieze" aria-label="Twelve drawings of the tuned model">{frieze}</ul>'
        '</div><div class="rule"></div></header>'
    )


def _bold(sentence: str) -> str:
    """The figures of a verdict set off; goals that were missed are not."""
    told, mark, missed = text(sentence).replace(" %", "\u00a0%").partition("Goals missed")
    bold = re.sub(r"(\d[\d.]*(?:\u00a0%| minutes| GB))(?! interval)", r"<b>\1</b>", told)
    return bold + mark + missed
