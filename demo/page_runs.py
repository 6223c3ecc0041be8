"""Chapters of the demo's page about its making: data, learning, retrieval, minutes, where to look further."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crest.page import scroll, text
from demo.config import SYSTEMS, DemoConfig
from demo.hindsight import SIDE_PX
from demo.markup import inline_image, table, title
from demo.plots import curves
from demo.report import GOAL_MINUTES, RUNS, label, per_cent
from demo.steps import STEPS

REASONS: Final[dict[str, str]] = {
    "no_image": "the card shows no picture",
    "http_404": "the picture is not there",
    "truncated": "the picture came cut short, again and again",
    "html_not_image": "a web page was served as a picture",
    "not_an_image": "something else was served as a picture",
    "broken": "the picture cannot be decoded",
    "duplicate": "the very same picture is already there",
    "near_duplicate": "looks the same as one that is already there",
    "mirrored_duplicate": "the mirror image of one that is already there",
    "too_small": "smaller than the smallest side asked for",
    "blank": "one colour all over",
    "invisible_on_white": "nothing shows on white",
    "kind_wordmark": "lettering only, which the config leaves out",
    "no_caption": "neither the source nor the captioner had words",
    "robots": "robots.txt asks not to fetch it",
}
TITLES: Final = {"captioner": "Captioner", "clip": "CLIP", "prior": "Prior", "decoder_64": "Decoder"}


def data(metrics: Mapping[str, Any]) -> str:
    """How many logos went in, and what was dropped and why."""
    splits = {split: int(metrics[f"counts.{split}"]) for split in ("train", "val", "test")}
    funnel = (
        (metrics["counts.cards"], "cards on the site"),
        (metrics["counts.pictures"], "pictures fetched"),
        (metrics["counts.kept"], f"kept, in {metrics['counts.groups']:,} groups"),
        (sum(splits.values()), "packed with words"),
    )
    steps = "".join(f"<li><b>{count:,}</b> {text(words)}</li>" for count, words in funnel)
    dropped = {key[8:]: count for key, count in metrics.items() if key.startswith("dropped.")}
    rows = [
        (f"<code>{text(name)}</code>", text(_reason(name)), f"{count:,}")
        for name, count in sorted(dropped.items(), key=lambda item: -item[1])
    ]
    told = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    return (
        title("Data", "How many logos went in, and what was dropped", text(_words(metrics)))
        + f"<ol class='funnel'>{steps}</ol>"
        + f"<p class='soft'>Split by groups of relatives, so that nothing leaks: {told}.</p>"
        + table("What was dropped and why", ("reason", "meaning", "logos"), rows, words=2)
    )


def _held_out_words(metrics: Mapping[str, Any]) -> str:
    """How right the captioner is before and after fine-tuning, on clubs that it did not learn from."""
    told = [
        f"the {called} captioner names the true charge of {per_cent(metrics[f'{name}.charge'])} and has a "
        f"colour-word F1 of {per_cent(metrics[f'{name}.colour_word_f1'])}"
        for called, name in (
            ("stock", "captioner.held_out.stock"),
            ("fine-tuned", "captioner.held_out.tuned"),
        )
    ]
    return f"On {metrics['captioner.held_out.samples']:,} crests of held-out clubs {', '.join(told)}."


def _words(metrics: Mapping[str, Any]) -> str:
    """Where the captions come from, and how right the captioner's are."""
    words = (
        f"{metrics['counts.captions_human']:,} logos keep the words of the site "
        f"({metrics['counts.captions_completed']:,} texts that a card cut were completed from a team's "
        f"page, {metrics['counts.captions_ended_at_clause']:,} end at their last clause); "
        f"{metrics['counts.captions_model']:,} had none and were described by the fine-tuned captioner."
    )
    if metrics.get("captioner.held_out.samples"):
        words += f" {_held_out_words(metrics)}"
    if not metrics.get("captioner.captions"):
        return words
    shares = [
        f"{per_cent(metrics[f'captioner.{name}'])} name the true {label(name)}"
        for name in ("shape", "field_colour", "charge", "charge_colour")
    ]
    return (
        f"{words} Of the {metrics['captioner.captions']:,} crests that it described, {', '.join(shares)}; "
        f"{per_cent(metrics['captioner.all'])} name all four."
    )


def _reason(name: str) -> str:
    if name in REASONS:
        return REASONS[name]
    return f"of the kind {name.removeprefix('kind_')}" if name.startswith("kind_") else name.replace("_", " ")


def learning(logged: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The loss of each run, in training and held out.

    Args:
        logged: run -> rows of its metrics.jsonl.
    """
    panels = ""
    for run in RUNS:
        train = [(row["step"], row["train/loss"]) for row in logged[run] if "train/loss" in row]
        val = [(row["step"], row["val/loss"]) for row in logged[run] if "val/loss" in row]
        steps = int(max((row["step"] for row in logged[run]), default=0))
        words = f"held-out loss {val[0][1]:.3g} before, {val[-1][1]:.3g} after {steps} steps" if val else ""
        plot = curves(train, val, steps=steps, description=f"{TITLES[run]}: {words}")
        panels += f'<div class="panel"><h3>{TITLES[run]}</h3>{plot}<p class="soft">{text(words)}</p></div>'
    lead = "Loss by step. Held-out figures are those of the averaged weights."
    return (
        title("Learning", "Learning curves", lead)
        + '<p class="soft"><span class="key train">training batch</span>'
        '<span class="key val">held out</span></p>' + f'<div class="panels four">{panels}</div>'
    )


def retrieval_chapter(metrics: Mapping[str, Any], retrieval: Mapping[str, Any], shards: Path) -> str:
    """What the stock CLIP and the tuned one find.

    Args:
        metrics: as metrics.json holds them.
        retrieval: judge/retrieval.json.
        shards: where the pictures lie that were found.
    """
    figures = {
        "text_to_image_r_at_1": "caption finds its logo",
        "image_to_text_r_at_1": "logo finds its caption",
        "text_to_image_r_at_5": "caption finds its logo among the first five",
    }
    rows = []
    for split in ("val", "test"):
        count = metrics.get(f"retrieval.{split}.samples")
        for figure, words in figures.items() if count else ():
            shares = (per_cent(metrics[f"retrieval.{split}.{name}.{figure}"]) for name in SYSTEMS)
            rows.append((f"{split}, {count:,} logos: {words}", *shares))
    return (
        title(
            "Retrieval",
            "Retrieval before and after",
            "Each held-out caption looks for its logo among all logos of its split. Below, four captions "
            "of the test split, evenly spaced, with the five logos that either CLIP finds nearest; the right "
            "one has a ring.",
        )
        + table("Retrieval by the stock CLIP and by the one tuned on the league", ("", *SYSTEMS), rows)
        + f'<div class="queries">{_queries(retrieval, shards)}</div>'
    )


def _queries(retrieval: Mapping[str, Any], shards: Path) -> str:
    if not retrieval.get("queries"):
        return ""
    from PIL import Image

    from crest.pixels import open_pictures

    pictures = open_pictures(shards, "test", SIDE_PX)
    number = {name: place for place, name in enumerate(pictures.ids)}

    def inline(name: str, is_right: bool) -> str:
        stream = io.BytesIO()
        Image.fromarray(pictures.pixels[number[name]].transpose(1, 2, 0)).save(stream, "PNG", optimize=True)
        encoded = base64.b64encode(stream.getvalue()).decode()
        return inline_image(encoded, *(("the right logo", "right") if is_right else ("another logo", "")))

    parts = []
    for place, query in enumerate(retrieval["queries"]):
        strips = ""
        for name in SYSTEMS:
            found = "".join(inline(one, one == query["id"]) for one in retrieval[name][place])
            strips += f'<div class="row"><span>{name}</span>{found}</div>'
        parts.append(
            f'<div class="query"><p>{text(query["caption"])}</p><div class="rows">{strips}</div></div>'
        )
    return "".join(parts)


def minutes(metrics: Mapping[str, Any]) -> str:
    """Seconds of every step."""
    names = [step.name for step in STEPS if f"seconds.{step.name}" in metrics]
    times = {name: float(metrics[f"seconds.{name}"]) for name in names}
    longest = max(times.values(), default=1.0) or 1.0
    rows = ""
    for name, took in times.items():
        bar = f"<div class='bar' style='width:{100 * took / longest:.1f}%'></div>"
        told = f"{took:.{1 if took < 9.95 else 0}f} s"
        cells = f"<td class='wide'>{bar}</td><td class='number'>{told}</td>"
        rows += f"<tr><th scope='row'>{name}</th>{cells}</tr>"
    return title(
        "Minutes",
        "Minutes per step",
        f"{metrics['seconds.total'] / 60:.1f} minutes in all, {GOAL_MINUTES:.0f} are allowed; at most "
        f"{metrics['memory.peak_mb']:,} MB of memory. Measured on {text(metrics['machine'])}.",
    ) + scroll(f"<table class='plain'><tbody>{rows}</tbody></table>", "Seconds per step")


def further(config: DemoConfig, metrics: Mapping[str, Any]) -> str:
    """Links, commands, seeds and hashes."""
    runs = config.place.dir / "runs"
    tuned = {"clip": "clip", "prior": "prior", "decoder": "decoder_64"}
    models = " ".join(f"--set models.{name}={runs / run}" for name, run in tuned.items())
    kept = ("seed.", "stock.hash.", "tuned.hash.", "versions.", "machine", "threads", "finished")
    rows = [(f"<code>{text(key)}</code>", text(metrics[key])) for key in metrics if key.startswith(kept)]
    return (
        title("Further", "Look further", "Pages that this demo wrote, and how to look into the runs.")
        + '<ul class="links">'
        '<li><a href="../reports/tuned_against_stock/index.html">the full comparison</a>: every '
        "metric with intervals, prompts at their best and worst, near copies</li>"
        '<li><a href="../survey/index.html">the survey</a>, as a rater sees it</li>'
        '<li><a href="../data/dropped.html">the pictures that were dropped</a>, and why</li>'
        '<li><a href="../captions/report.html">the captioners</a> beside the words of the site</li>'
        '<li><a href="metrics.json">every figure of this page</a> as one flat object</li></ul>'
        "<p>Curves, previews and retrieval grids of all runs:</p>"
        f'<pre tabindex="0">.venv/bin/tensorboard --logdir {text(runs)}</pre>'
        "<p>More drawings by the tuned model:</p>"
        f'<pre tabindex="0">.venv/bin/crest "a green shield with a gold crown" {text(models)}</pre>'
        "<details><summary>Seeds, hashes and machine</summary>"
        f"{table('What makes this run', ('', 'value'), rows, words=2)}</details>"
    )
