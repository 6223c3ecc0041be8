"""Chapters of a CLIP run's page: before against after, curves, finds, forgetting, what was left out."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from clip_train.run_record import Metrics, Run, under
from crest.page import Line, curves, png, table, text

WIDEST_PX: Final = 1100
"""Grids wider than this are shown smaller, so that the page stays small."""
WAYS: Final = {
    "": "mean of both ways",
    "text_to_image_": "caption finds its logo",
    "image_to_text_": "logo finds its caption",
}
DASHES: Final = {"": "", "text_to_image_": "7 3", "image_to_text_": "2 3"}
FIGURES: Final = {
    **{f"r_at_{k}": f"R@{k}" for k in (1, 5, 10)},
    "mrr": "mean reciprocal rank",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}
MEASURES: Final = {
    **{f"{way}{name}": f"{title}, {said}" for name, title in FIGURES.items() for way, said in WAYS.items()},
    "loss": "held-out loss",
}


def before_and_after(run: Run) -> str:
    """Every held-out figure of the start and of the result, with intervals and the chance level."""
    before, after, gain = run.before, run.after, run.report.get("gain") or {}
    known = {**before, **after}
    others = sorted(name for name in known if name not in MEASURES and not _is_side_figure(name))
    rows = []
    for name in (*(name for name in MEASURES if name in known), *others):
        chance = chance_of(name, after, before)
        cells = [_cell(name, before, after), _cell(name, after, before)]
        if gain:
            cells.append(_cell(name, gain, {}, signed=True))
        rows.append((text(MEASURES.get(name, name)), *cells, "–" if chance is None else shown(name, chance)))
    if not rows:
        return "<h2>Before and after</h2><p>Nothing was validated yet.</p>"
    change = ("change, same pairs",) if gain else ()
    now = "refused" if run.refused else "after" if run.is_finished else "so far"
    head = ("measure", "before", now, *change, "by chance")
    note = (
        "All that is right for a caption or logo counts as found, duplicates too; ties count half. In small "
        "print the 95\u00a0% intervals, where the run drew them; the better figure is bold."
    )
    return f'<h2>Before and after</h2><p class="soft">{note}</p>' + table(
        "Retrieval on held-out logos before and after training", head, rows
    )


def _cell(name: str, own: Metrics, other: Metrics, *, signed: bool = False) -> str:
    if name not in own:
        return "–"
    value = shown(name, own[name], signed)
    if name in MEASURES and name in other and own[name] != other[name]:
        is_better = (own[name] < other[name]) == _lower_is_better(name)
        value = f"<b>{value}</b>" if is_better else value
    low, high = own.get(f"{name}_low"), own.get(f"{name}_high")
    if low is None or high is None:
        return value
    return f"{value}<small>{shown(name, low, signed)} to {shown(name, high, signed)}</small>"


def learning(run: Run) -> str:
    """Curves of all that was recorded along the way."""
    trained = [(int(row["step"]), under(row, "train/")) for row in run.rows]
    held_out = run.validated
    both = [_line("training batch", trained, "loss", "even"), _line("held out", held_out, "loss")]
    plots = [_plot("Loss", both)]
    for by in ("r_at_1", "r_at_5", "r_at_10"):
        lines = [_line(said, held_out, f"{way}{by}", dash=DASHES[way]) for way, said in WAYS.items()]
        chance = chance_of(by, run.after, run.before)
        plots.append(_plot(f"Held-out {name_of(by)}", lines, [] if chance is None else [("chance", chance)]))
    plots += [
        _plot("Drift", [_line("away from the start", held_out, "drift", "worse")]),
        _plot("Learning rate", [_line("of the fastest parameters", trained, "lr", "even")]),
        _plot("Logit scale", [_line("of the training step", trained, "logit_scale", "even")]),
    ]
    drawn = "".join(plots)
    return f'<h2>Learning</h2><div class="plots">{drawn}</div>' if drawn else ""


def _plot(
    title: str, lines: Sequence[Line], levels: Sequence[tuple[str, float]] = (), across: str = "step"
) -> str:
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    ends = [(line.label, line.points[0][1], line.points[-1][1]) for line in lines]
    told = "; ".join(f"{label} from {first:.4g} to {last:.4g}" for label, first, last in ends)
    style = _per_cent if "R@" in title else None
    drawn = curves(lines, across=across, description=f"{title}: {told}", levels=levels, shown=style)
    return f"<div><h3>{text(title)}</h3>{drawn}</div>"


def _line(
    label: str, rows: Iterable[tuple[float, Metrics]], name: str, tone: str = "accent", dash: str = ""
) -> Line:
    found = [(x, row) for x, row in rows if name in row and math.isfinite(row[name])]
    ends = (f"{name}_low", f"{name}_high")
    band = [(x, row[ends[0]], row[ends[1]]) for x, row in found if all(end in row for end in ends)]
    points = [(x, row[name]) for x, row in found]
    return Line(label, points, "even" if dash else tone, [] if dash else band, dash)


def finds(run: Run) -> str:
    """The newest retrieval grid."""
    if not run.images:
        return ""
    grids = "".join(
        f"<figure>{_smaller(content, f'{name} at step {step}')}"
        f"<figcaption>{text(name)}, step {step}</figcaption></figure>"
        for name, (step, content) in sorted(run.images.items())
    )
    captions = "".join(f"<li>{text(caption)}</li>" for caption in run.report.get("preview_captions", ()))
    rows = f'<ol class="soft">{captions}</ol>' if captions else ""
    return (
        '<h2>What it finds</h2><p class="soft">Held-out captions, one after the other: first the logo that '
        f"the caption belongs to, then those that the model finds nearest.</p>{rows}"
        f'<div class="wide">{grids}</div>'
    )


def _smaller(content: bytes, alt: str) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    if picture.width > WIDEST_PX:
        picture = picture.resize((WIDEST_PX, round(picture.height * WIDEST_PX / picture.width)))
    return png(picture, alt)


def forgetting(run: Run) -> str:
    """The drift on the fixed probe, and the weights between the start and the tuned ones."""
    probe, wise = run.report.get("probe") or {}, run.report.get("wise") or []
    parts = []
    if probe:
        rows = [
            (text(str(name).replace("_", " ")), plain(value))
            for name, value in probe.items()
            if value is not None
        ]
        said = "How far its answers about general pictures and words moved; 0 is no change."
        parts.append(
            f'<p class="soft">{said}</p>' + table("Drift on the fixed probe", ("measure", "value"), rows)
        )
    if len(wise) > 1:
        parts.append(_wise(wise, run))
    return f"<h2>What it forgot</h2>{''.join(parts)}" if parts else ""


def _wise(wise: Sequence[Mapping[str, Any]], run: Run) -> str:
    """WiSE-FT. Source: Wortsman et al. 2021 (arXiv 2109.01903), section 3."""
    rows = sorted(({**row, **row.get("metrics", {})} for row in wise), key=lambda row: float(row["alpha"]))
    along = [(float(row["alpha"]), row) for row in rows]
    names = [name for name in (run.best_by, "drift") if any(name in row for row in rows)]
    lines = []
    for row in rows:
        mark = "<small>exported</small>" if row["alpha"] == run.report.get("alpha") else ""
        lines.append((f"{row['alpha']:g}{mark}", *(_cell(name, row, {}) for name in names)))
    plots = "".join(
        _plot(name_of(name), [_line("by share of the tuned weights", along, name, tone)], across="share")
        for name, tone in zip(names, ("accent", "worse"), strict=False)
    )
    head = ("share of the tuned weights", *(text(name_of(name)) for name in names))
    return (
        "<h3>Between the start and the tuned weights</h3>"
        '<p class="soft">Weights on the line from those it started from (0) to the tuned ones (1), measured '
        f'on the validation split (WiSE-FT).</p><div class="plots">{plots}</div>'
        + table("Figures by share of the tuned weights", head, lines)
    )


def dropped(run: Run) -> str:
    """What went no further, by reason."""
    told = {**run.card.get("dropped", {}), **run.report.get("dropped", {})}
    sources = {"training": told, "pack": run.shards.get("dropped", {})}
    rows = [
        (text(str(reason).replace("_", " ")), plain(count), where)
        for where, counts in sources.items()
        for reason, count in counts.items()
        if count
    ]
    if not rows:
        return ""
    return "<h2>What was left out</h2>" + table("Left out, by reason", ("reason", "count", "by"), rows)


def chance_of(name: str, *sources: Metrics) -> float | None:
    """The chance level of a figure, from the first of the sources that tells it."""
    for way in WAYS:
        name = name.removeprefix(way)
    return next((own[f"chance_{name}"] for own in sources if f"chance_{name}" in own), None)


def name_of(measure: str) -> str:
    """A figure's short name for people."""
    return MEASURES.get(measure, measure.replace("_", " ")).removesuffix(f", {WAYS['']}")


def shown(name: str, value: float, signed: bool = False) -> str:
    """A figure's value for people: shares in per cent, ranks with one decimal."""
    if "r_at_" in name:
        return _per_cent(value, signed)
    kind = ",.1f" if name.endswith("_rank") else ".4g"
    return f"{value:{'+' if signed else ''}{kind}}"


def span(figures: Metrics, name: str) -> str:
    """A figure with its interval, where there is one."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    value = shown(name, figures[name])
    if low is None or high is None:
        return value
    return f"{value} (95\u00a0% interval {shown(name, low)} to {shown(name, high)})"


def plain(value: object) -> str:
    """Any value of a file as HTML."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _is_side_figure(name: str) -> bool:
    return name.endswith(("_low", "_high")) or name.startswith("chance_") or name in ("samples", "drift")


def _lower_is_better(name: str) -> bool:
    return name.endswith(("loss", "_rank"))


def _per_cent(value: float, signed: bool = False) -> str:
    return f"{100 * value:+.1f}\u00a0points" if signed else f"{100 * value:.1f}\u00a0%"
