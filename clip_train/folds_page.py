"""Cross-validation as one page: all held-out logos together, then fold by fold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clip_train.page_chapters import FIGURES, name_of, shown, span
from crest.page import Strip, forest, page, table, text
from crest.records import write_text

PAGE: Final = "index.html"


def write_folds_page(folder: Path, report: Mapping[str, Any]) -> Path:
    """Draw `folder`/index.html.

    Args:
        folder: of the folds.
        report: as folds.json holds it.
    """
    write_text(folder / PAGE, render(report))
    return folder / PAGE


def render(report: Mapping[str, Any]) -> str:
    """The page as HTML."""
    by, gains = report["best_by"], report["gain"]
    name, low, high = name_of(by), gains[f"{by}_low"], gains[f"{by}_high"]
    if low > 0:
        verdict = "Training helps: the interval of the change leaves out zero."
    elif high < 0:
        verdict = "Training harms: the interval of the change leaves out zero."
    else:
        verdict = "Whether training helps cannot be told from these logos: the change may be zero."
    refused = sum(row["refused"] is not None for row in report["folds"])
    body = [
        f"<h1>{report['k']} folds</h1>",
        f'<p class="verdict">Over {report["held_out"]:,} logos, each held out once, {text(name)} is '
        f"{span(report['after'], by)}; before training, {span(report['before'], by)}; by chance "
        f"{shown(by, report['after'][f'chance_{by}'])}. {verdict}</p>",
        f'<p class="verdict worse">{refused} of {report["k"]} folds were refused, and count with the weights '
        "that they started from.</p>"
        if refused
        else "",
        "<h2>All folds</h2>"
        '<p class="soft">Every logo is ranked among those of its own fold, by weights that neither learned '
        "from them nor were chosen by them. Intervals are over groups of logos; how much folds differ is the "
        "deviation.</p>",
        _together(report),
        "<h2>Fold by fold</h2>",
        _strips(report, by),
        _apart(report, by),
    ]
    return page(f"{report['k']} folds", "\n".join(part for part in body if part))


def _cell(figures: Mapping[str, float], name: str, signed: bool = False) -> str:
    low, high = (shown(name, figures[f"{name}_{end}"], signed) for end in ("low", "high"))
    return f"{shown(name, figures[name], signed)}<small>{low} to {high}</small>"


def _together(report: Mapping[str, Any]) -> str:
    rows = []
    for name in FIGURES:
        chance = report["after"].get(f"chance_{name}")
        rows.append(
            (
                text(name_of(name)),
                _cell(report["before"], name),
                _cell(report["after"], name),
                _cell(report["gain"], name, signed=True),
                shown(name, report["deviation"][name]),
                "–" if chance is None else shown(name, chance),
            )
        )
    head = ("mean of both ways", "before", "after", "change, same logos", "deviation of folds", "by chance")
    return table("Retrieval on held-out logos, all folds together", head, rows)


def _strips(report: Mapping[str, Any], by: str) -> str:
    named = [(f"fold {row['fold']}", row["gain"]) for row in report["folds"]]
    strips = []
    for label, gains in (*named, ("all folds", report["gain"])):
        value, low, high = (gains[f"{by}{end}"] for end in ("", "_low", "_high"))
        tone = "better" if low > 0 else "worse" if high < 0 else "even"
        told = f"{shown(by, value, True)} ({100 * low:+.1f} to {100 * high:+.1f})"
        strips.append(Strip(label, value, low, high, told, tone))
    reach = max(max(abs(strip.low), abs(strip.high)) for strip in strips) or 1.0
    return forest(
        strips,
        left="worse",
        right="better",
        description=f"Change of {name_of(by)} by training, with 95 % intervals",
        common_reach=reach,
    )


def _apart(report: Mapping[str, Any], by: str) -> str:
    rows = [
        (
            f'<a href="fold-{row["fold"]}/index.html">fold {row["fold"]}</a>',
            text(row["mode"]),
            f"{row['train']:,}",
            f"{row['val']:,}",
            f"{row['held_out']:,}",
            _cell(row["before"], by),
            _cell(row["after"], by) + ("<small>refused</small>" if row["refused"] is not None else ""),
        )
        for row in report["folds"]
    ]
    head = ("", "mode", "learned from", "chosen by", "held out", f"{text(name_of(by))} before", "after")
    return table("Every fold", head, rows)
