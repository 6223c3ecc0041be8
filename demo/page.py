"""The demo's one page as HTML: verdict, figures, pictures, data, curves, retrieval, minutes.

One file that asks for nothing: pictures and plots lie inside. Shows what metrics.json holds and computes nothing anew
but shares by value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from demo.config import DemoConfig
from demo.heraldry import CHARGES, COLOURS, FIELDS, SHAPES, Specification
from demo.hindsight import confusions
from demo.plots import Bar, Mark, bars, curves, strip, text
from demo.report import ATTRIBUTES, GOAL_MINUTES, GOALS, RUNS, SYSTEMS, Shown, label, per_cent
from demo.steps import STEPS

HERE: Final = Path(__file__).parent

REASONS: Final[dict[str, str]] = {
    "no_image": "the card shows no picture",
    "http_404": "the picture is not there",
    "truncated": "the picture came cut short, again and again",
    "not_an_image": "something else was served as a picture",
    "broken": "the picture cannot be decoded",
    "duplicate": "the very same picture is already there",
    "near_duplicate": "looks the same as one that is already there",
    "too_small": "smaller than the smallest side asked for",
    "extreme_aspect": "a line rather than a logo",
    "blank": "one colour all over",
    "invisible_on_white": "nothing shows on white",
    "kind_wordmark": "lettering only, which the config leaves out",
    "no_caption": "neither the source nor the captioner had words",
    "robots": "robots.txt asks not to fetch it",
}
TITLES: Final = {"captioner": "Captioner", "clip": "CLIP", "prior": "Prior", "decoder_64": "Decoder"}
EMBLEM: Final = (
    '<svg viewBox="0 0 40 46" aria-hidden="true"><path d="M2 2h36v20c0 12-8 18-18 22C10 40 2 34 2 22z" fill="#e3b341"/>'
    '<path d="M6 6h14v33C11 35 6 30 6 22z" fill="#f6efe0"/><path d="M20 6h14v16c0 8-5 13-14 17z" fill="#b3202e"/></svg>'
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
    pixels = config.place.dir / "data"
    sections = {
        "Scores": _scores(metrics),
        "Drawings": _drawings(shown, config.report.shown),
        "By value": _by_value(shown),
        "Data": _data(metrics),
        "Learning": _learning(logged),
        "Retrieval": _retrieval(metrics, retrieval, pixels),
        "Minutes": _minutes(metrics),
        "Further": _further(config, metrics),
    }
    links = "".join(f'<li><a href="#{_slug(name)}">{name}</a></li>' for name in sections)
    body = "".join(
        f'<section id="{_slug(name)}" aria-labelledby="{_slug(name)}-title">{html}</section>'
        for name, html in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n<title>Crest: from a site of logos to drawn logos</title>\n"
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{_header(metrics, shown)}\n<nav aria-label='Sections'><ul class='inner'>{links}</ul></nav>\n"
        f'<main class="inner">\n{body}\n</main>\n</body>\n</html>\n'
    )


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _title(name: str, heading: str, lead: str) -> str:
    return f'<h2 id="{_slug(name)}-title">{text(heading)}</h2><p class="lead">{lead}</p>'


def image(path: Path, alt: str, css: str = "") -> str:
    """An <img> with the PNG file inside."""
    data = base64.b64encode(path.read_bytes()).decode()
    return _img(data, alt, css)


def _img(data: str, alt: str, css: str = "") -> str:
    return (
        f'<img src="data:image/png;base64,{data}" alt="{text(alt)}" width="64" height="64"'
        f"{f' class={css!r}' if css else ''}>"
    )


def _header(metrics: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    lines = "".join(
        f'<p class="verdict">{_bold(metrics[f"verdict.{number}"])}</p>'
        for number in (1, 2, 3)
    )
    frieze = "".join(f"<li>{image(one.pictures['tuned'], '')}</li>" for one in shown[:12])
    return (
        f'<header><div class="inner"><h1 class="brand">{EMBLEM}<span>Crest: from a site of logos to drawn logos<br>'
        f"<small>the first twelve drawings of the tuned model stand below; it had never seen their combinations</small>"
        f'</span></h1>{lines}<ul class="frieze" aria-label="Twelve drawings of the tuned model">{frieze}</ul></div>'
        '<div class="rule"></div></header>'
    )


def _bold(sentence: str) -> str:
    return re.sub(r"(\d[\d.]* (?:%|minutes|GB))(?! interval)", r"<b>\1</b>", text(sentence))


def _scores(metrics: Mapping[str, Any]) -> str:
    notes = {
        "exact": "all five attributes right",
        "shape": "of 6 outlines",
        "field": "of 5 patterns",
        "field_colour": "of 10 colours; both and in order",
        "charge": "of 12 charges",
        "charge_colour": "of 10 colours",
        "r_precision_at_1": f"own prompt first of {round(metrics['r_precision_at_1.distractors']) + 1}",
        "clip_score": "100 × cosine, reference CLIP",
    }
    tiles = "".join(_tile(metrics, name, note) for name, note in notes.items())
    return (
        _title(
            "Scores",
            "Is what was asked for what was drawn?",
            f"{metrics['prompts']} prompts ask for combinations that are in no training data. Each drawing is compared with "
            "every crest that can be specified; the nearest one in pixels is what it shows. No model has a say in that.",
        )
        + '<p class="soft"><span class="key tuned">tuned on the scraped league</span>'
        '<span class="key stock">stock weights</span><span class="key goal">goal</span>bars are 95 % intervals over prompts</p>'
        f'<ul class="tiles">{tiles}</ul>'
    )


def _tile(metrics: Mapping[str, Any], name: str, note: str) -> str:
    is_share = name != "clip_score"

    def told(value: float) -> str:
        return per_cent(value) if is_share else f"{value:.1f}"

    marks = [
        Mark(s, *(metrics[f"{s}.{name}{end}"] for end in ("", ".low", ".high"))) for s in reversed(SYSTEMS)
    ]
    goal = GOALS.get(name)
    largest = 1.0 if is_share else max(1.0, *(mark.high for mark in marks)) * 1.1
    words = "; ".join(f"{m.tone} {told(m.value)} ({told(m.low)} to {told(m.high)})" for m in marks)
    aim = f" · goal {per_cent(goal)}" if goal is not None else ""
    return (
        f'<li class="tile"><h3>{text(label(name).capitalize() if is_share and name != "r_precision_at_1" else label(name))}'
        f'</h3><p class="big">{told(marks[0].value)}</p>'
        f'<p class="soft">stock {told(marks[1].value)}{aim}<br>{text(note)}</p>'
        f"{strip(marks, largest=largest, goal=goal, description=words)}</li>"
    )


def _drawings(shown: Sequence[Shown], most: int) -> str:
    cards = "".join(_card(one) for one in shown[:most])
    return (
        _title(
            "Drawings",
            "Asked for, stock, tuned",
            f"The first {min(most, len(shown))} prompts in their order, same seeds for both models, nothing picked by hand. "
            "A cross names what the judge sees instead.",
        )
        + f'<ul class="cards">{cards}</ul>'
    )


def _card(one: Shown) -> str:
    asked = _words(one.specification)
    head = f"<th scope='col'>asked for{image(one.pictures['truth'], f'The truth: {one.text}')}</th>" + "".join(
        f"<th scope='col'>{name}{image(one.pictures[name], f'Drawn by the {name} model')}</th>" for name in SYSTEMS
    )
    seen = {name: _words(one.verdicts[name]["seen"]) for name in SYSTEMS}
    rows = ""
    for name in ATTRIBUTES[1:]:
        cells = "".join(_check(bool(one.verdicts[system][name]), seen[system][name]) for system in SYSTEMS)
        rows += f"<tr><th scope='row'><span class='hidden'>{label(name)}: </span>{text(asked[name])}</th>{cells}</tr>"
    return f"<li class='card'><p>{text(one.text)}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></li>"


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
    return f'<td class="no"><span aria-hidden="true">✗ </span><span class="hidden">wrong: </span>{text(seen)}</td>'


def _by_value(shown: Sequence[Shown]) -> str:
    panels = ""
    for name, values, heading in (
        ("shape", SHAPES, "Shape"),
        ("field", FIELDS, "Field"),
        ("field_colour", COLOURS, "Field colour"),
        ("charge", CHARGES, "Charge"),
        ("charge_colour", COLOURS, "Charge colour"),
    ):
        rows = [bar for value in values if (bar := _bar(shown, name, value)) is not None]
        rows.sort(key=lambda bar: (bar.tuned, bar.stock))
        words = ", ".join(f"{bar.label} {per_cent(bar.tuned)} of {bar.count} (stock {per_cent(bar.stock)})" for bar in rows)
        panels += f'<div class="panel"><h3>{heading}</h3>{bars(rows, description=f"Right by {heading.lower()}: {words}")}</div>'
    truths = {one.id: Specification.from_dict(one.specification) for one in shown}
    judged = [one.verdicts["tuned"] for one in shown]
    mistakes = confusions(judged, truths, "tuned")
    note = f"Most frequent mistakes of the tuned model: {text('; '.join(mistakes))}." if mistakes else "No mistake at all."
    panels += f'<div class="panel"><h3>Where it still errs</h3><p>{note}</p></div>'
    return (
        _title("By value", "Which ones are hard?", "How often an attribute is right when it is asked for, the hardest first.")
        + '<p class="soft"><span class="key tuned">tuned</span><span class="key stock">stock</span></p>'
        f'<div class="panels">{panels}</div>'
    )


def _bar(shown: Sequence[Shown], name: str, value: str) -> Bar | None:
    asked = [one for one in shown if one.specification[name] == value]
    if not asked:
        return None
    stock, tuned = (sum(bool(one.verdicts[s][name]) for one in asked) / len(asked) for s in SYSTEMS)
    return Bar(value, len(asked), stock, tuned)


def _table(caption: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th scope='col'{_numeric(i)}>{cell}</th>" for i, cell in enumerate(head))
    lines = "".join(
        f"<tr><th scope='row'>{row[0]}</th>" + "".join(f"<td{_numeric(1)}>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{text(caption)}'><table class='plain'>"
        f"<caption>{text(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _numeric(column: int) -> str:
    return " class='number'" if column else ""


def _data(metrics: Mapping[str, Any]) -> str:
    packed = sum(metrics[f"counts.{split}"] for split in ("train", "val", "test"))
    funnel = (
        (metrics["counts.cards"], "cards on the site"),
        (metrics["counts.pictures"], "pictures fetched"),
        (metrics["counts.kept"], f"kept, in {metrics['counts.groups']:,} groups"),
        (packed, "packed with words"),
    )
    steps = "".join(f"<li><b>{count:,}</b> {text(words)}</li>" for count, words in funnel)
    dropped = {key.removeprefix("dropped."): count for key, count in metrics.items() if key.startswith("dropped.")}
    rows = [
        (f"<code>{text(name)}</code>", text(_reason(name)), f"{count:,}")
        for name, count in sorted(dropped.items(), key=lambda item: -item[1])
    ]
    splits = ", ".join(f"{metrics[f'counts.{split}']:,} {split}" for split in ("train", "val", "test"))
    words = (
        f"{metrics['counts.captions_source']:,} logos keep the words of the site, of which "
        f"{metrics['counts.captions_ended_at_clause']:,} were cut off there and end at their last clause; "
        f"{metrics['counts.captions_model']:,} had none and were described by the fine-tuned captioner."
    )
    right = ""
    if metrics.get("captioner.captions"):
        right = (
            f" Of the {metrics['captioner.captions']:,} descriptions of crests that it wrote, "
            + ", ".join(
                f"{per_cent(metrics[f'captioner.{name}'])} name the true {label(name)}"
                for name in ("shape", "field_colour", "charge", "charge_colour")
            )
            + f"; {per_cent(metrics['captioner.all'])} name all four."
        )
    table = (
        "<div class='scroll' tabindex='0' role='region' aria-label='What was dropped and why'><table class='plain'>"
        "<caption>What was dropped and why</caption><thead><tr><th scope='col'>reason</th><th scope='col'>meaning</th>"
        "<th scope='col' class='number'>logos</th></tr></thead><tbody>"
        + "".join(
            f"<tr><th scope='row'>{a}</th><td>{b}</td><td class='number'>{c}</td></tr>" for a, b, c in rows
        )
        + "</tbody></table></div>"
    )
    return (
        _title("Data", "How many logos went in, and what was dropped", text(words + right))
        + f"<ol class='funnel'>{steps}</ol><p class='soft'>Split by groups of relatives, so that nothing leaks: {splits}.</p>"
        + table
    )


def _reason(name: str) -> str:
    if name in REASONS:
        return REASONS[name]
    return f"of the kind {name.removeprefix('kind_')}" if name.startswith("kind_") else name.replace("_", " ")


def _learning(logged: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    panels = ""
    for run in RUNS:
        rows = logged[run]
        train = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        val = [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row]
        steps = int(max((row["step"] for row in rows), default=0))
        words = f"{TITLES[run]}: held-out loss {val[0][1]:.3g} before, {val[-1][1]:.3g} after" if val else TITLES[run]
        panels += (
            f'<div class="panel"><h3>{TITLES[run]}</h3>{curves(train, val, steps=steps, description=words)}'
            f'<p class="soft">{text(words.partition(": ")[2])}, {steps} steps</p></div>'
        )
    return (
        _title("Learning", "Learning curves", "Loss by step. Held-out figures are those of the averaged weights.")
        + '<p class="soft"><span class="key train">training batch</span><span class="key val">held out</span></p>'
        f'<div class="panels">{panels}</div>'
    )


def _retrieval(metrics: Mapping[str, Any], retrieval: Mapping[str, Any], data_dir: Path) -> str:
    rows = []
    for split in ("val", "test"):
        if f"retrieval.{split}.samples" not in metrics:
            continue
        for figure, words in (
            ("text_to_image_r_at_1", "caption finds its logo"),
            ("image_to_text_r_at_1", "logo finds its caption"),
            ("text_to_image_r_at_5", "caption finds its logo among the first five"),
        ):
            before, after = (per_cent(metrics[f"retrieval.{split}.{name}.{figure}"]) for name in SYSTEMS)
            rows.append((f"{split}, {metrics[f'retrieval.{split}.samples']:,} logos: {words}", before, after))
    table = _table("Retrieval by the stock CLIP and by the one tuned on the league", ("", "stock", "tuned"), rows)
    return (
        _title(
            "Retrieval",
            "Retrieval before and after",
            "Each held-out caption looks for its logo among all logos of its split. Below, four captions of the test split, "
            "evenly spaced, with the five logos that either CLIP finds nearest; the right one is ringed.",
        )
        + table
        + _queries(retrieval, data_dir)
    )


def _queries(retrieval: Mapping[str, Any], data_dir: Path) -> str:
    if not retrieval.get("queries"):
        return ""
    import io

    from PIL import Image

    from crest.shards import open_pictures

    pictures = open_pictures(data_dir / "shards", "test", 64)
    number = {name: place for place, name in enumerate(pictures.ids)}

    def inline(name: str, is_right: bool) -> str:
        stream = io.BytesIO()
        Image.fromarray(pictures.pixels[number[name]].transpose(1, 2, 0)).save(stream, "PNG", optimize=True)
        data = base64.b64encode(stream.getvalue()).decode()
        return _img(data, "the right logo" if is_right else "another logo", "right" if is_right else "")

    parts = []
    for place, query in enumerate(retrieval["queries"]):
        strips = "".join(
            f'<div class="row"><span>{name}</span>'
            + "".join(inline(found, found == query["id"]) for found in retrieval[name][place])
            + "</div>"
            for name in SYSTEMS
        )
        parts.append(f'<div class="query"><p>{text(query["caption"])}</p><div class="rows">{strips}</div></div>')
    return "".join(parts)


def _minutes(metrics: Mapping[str, Any]) -> str:
    names = [step.name for step in STEPS if f"seconds.{step.name}" in metrics]
    times = {name: float(metrics[f"seconds.{name}"]) for name in names}
    longest = max(times.values(), default=1.0) or 1.0
    rows = "".join(
        f"<tr><th scope='row'>{name}</th><td class='wide'><div class='bar' style='width:{100 * took / longest:.1f}%'>"
        f"</div></td><td class='number'>{took:.0f} s</td></tr>"
        for name, took in times.items()
    )
    return (
        _title(
            "Minutes",
            "Minutes per step",
            f"{metrics['seconds.total'] / 60:.1f} minutes in all, {GOAL_MINUTES:.0f} are allowed; interruptions not "
            f"counted. At most {metrics['memory.peak_mb']:,} MB of memory. Measured on {text(metrics['machine'])}.",
        )
        + "<div class='scroll' tabindex='0' role='region' aria-label='Seconds per step'><table class='plain'>"
        f"<thead class='hidden'><tr><th>step</th><th>share of the longest</th><th>seconds</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _further(config: DemoConfig, metrics: Mapping[str, Any]) -> str:
    kept = ("seed.", "stock.hash.", "tuned.hash.", "versions.", "machine", "threads", "finished")
    rows = [(f"<code>{text(key)}</code>", text(value)) for key, value in metrics.items() if key.startswith(kept)]
    return (
        _title("Further", "Look further", "Pages that this demo wrote, and how to look into the runs.")
        + '<ul class="links"><li><a href="../reports/tuned_against_stock/index.html">the full comparison</a>: every metric '
        "with intervals, prompts at their best and worst, near copies</li>"
        '<li><a href="../survey/index.html">the survey</a>, as a rater sees it</li>'
        '<li><a href="metrics.json">every figure of this page</a> as one flat object</li></ul>'
        "<p>Curves, previews and retrieval grids of all runs:</p>"
        f'<pre tabindex="0">.venv/bin/tensorboard --logdir {text(config.place.dir / "runs")}</pre>'
        "<p>More drawings by the tuned model:</p>"
        f'<pre tabindex="0">.venv/bin/crest "a green shield with a gold crown" --set models.clip={text(config.place.dir)}/runs/clip '
        f"--set models.prior={text(config.place.dir)}/runs/prior --set models.decoder={text(config.place.dir)}/runs/decoder_64</pre>"
        f"<details><summary>Seeds, hashes and machine</summary>{_table('What makes this run', ('', 'value'), rows)}</details>"
    )
