"""The demo's result: one flat metrics.json, the one page, and the picture for the README.

Reads what the steps wrote and measures nothing but intervals. metrics.json comes last: it means done.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from crest.records import read_json, read_jsonl, write_bytes, write_json, write_text
from demo.config import SYSTEMS, DemoConfig
from demo.steps import Journal

ATTRIBUTES: Final = ("exact", "shape", "field", "field_colour", "charge", "charge_colour")
RUNS: Final = ("captioner", "clip", "prior", "decoder_64")
GOALS: Final[dict[str, float]] = {
    "exact": 0.6,
    "shape": 0.85,
    "field_colour": 0.85,
    "charge": 0.85,
    "charge_colour": 0.85,
    "r_precision_at_1": 0.5,
}
"""What the tuned model is to reach, shares in [0, 1]."""
GOAL_MINUTES: Final = 8.0
GOAL_MB: Final = 6000
SIGNIFICANCE: Final = 0.05
"""Largest p at which the verdict calls a difference one."""
PICTURE_LIMIT: Final = 400_000
"""Most bytes of the README's picture."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One prompt with what was to be drawn and what was drawn."""

    id: str
    text: str
    specification: Mapping[str, str | None]
    pictures: Mapping[str, Path]
    """"truth", "stock" and "tuned" """
    verdicts: Mapping[str, Mapping[str, Any]]
    """"stock" and "tuned" -> row of judge/verdicts.jsonl"""


def write_report(config: DemoConfig, journal: Journal) -> None:
    """Write report/demo.png, report/index.html and report/metrics.json."""
    from demo.page import page_html

    folder = config.place.dir
    metrics = gather(config, journal)
    shown = read_shown(folder)
    out = folder / "report"
    write_bytes(out / "demo.png", grid_picture(shown[:10]))
    curves = {name: list(read_jsonl(folder / "runs" / name / "metrics.jsonl")) for name in RUNS}
    retrieval = read_json(folder / "judge" / "retrieval.json")
    write_text(out / "index.html", page_html(config, metrics, shown, curves, retrieval))
    write_json(out / "metrics.json", metrics)


def gather(config: DemoConfig, journal: Journal) -> Metrics:
    """The flat object of metrics.json; docs/formats.md tells every key."""
    folder = config.place.dir
    judged = list(read_jsonl(folder / "judge" / "verdicts.jsonl"))
    prompts = [row["id"] for row in read_jsonl(folder / "prompts.jsonl")]
    seconds = journal.seconds()
    metrics: Metrics = {
        "prompts": len(prompts),
        "seconds.total": round(sum(seconds.values()), 2),
        **{f"seconds.{name}": value for name, value in seconds.items()},
        "memory.peak_mb": journal.peak_mb(),
    }
    metrics |= attribute_figures(judged, prompts, config.report.bootstrap, config.report.seed)
    evaluated = read_json(folder / "reports" / "tuned_against_stock" / "metrics.json")
    for name in ("r_precision_at_1", "clip_score"):
        metrics |= {key: value for key, value in evaluated.items() if name in key.split(".")}
    hindsight = read_json(folder / "judge" / "metrics.json")
    metrics |= {key: value for key, value in hindsight.items() if key not in metrics}
    metrics |= _counts(folder)
    metrics |= {
        "seed.world": config.world.seed,
        "seed.prompts": config.prompts.seed,
        "seed.report": config.report.seed,
        **_weights(folder),
        **_machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    lines = verdict(metrics)
    return {**{f"verdict.{number}": line for number, line in enumerate(lines, start=1)}, **metrics}


def attribute_figures(
    judged: Sequence[Mapping[str, Any]], prompts: Sequence[str], resamples: int, seed: int
) -> Metrics:
    """`<system>.<attribute>` with 95 % intervals over prompts, and the differences, as shares in [0, 1]."""
    from eval.statistics import compare, mean_interval, wilson

    number = {prompt: place for place, prompt in enumerate(prompts)}
    figures: Metrics = {}
    for name in ATTRIBUTES:
        scores: dict[str, NDArray[np.float64]] = {}
        for system in SYSTEMS:
            mine = [row for row in judged if row["system"] == system]
            place = np.array([number[row["prompt_id"]] for row in mine])
            right = np.array([float(row[name]) for row in mine])
            scores[system] = np.bincount(place, right, len(prompts)) / np.bincount(
                place, minlength=len(prompts)
            )
            is_flat = float(np.ptp(scores[system])) == 0.0
            found = (
                wilson(float(scores[system].sum()), len(prompts))  # "all of 120" is not "all for sure"
                if is_flat
                else mean_interval(scores[system], resamples=resamples, seed=seed)
            )
            key = f"{system}.{name}"
            figures |= {key: found.value, f"{key}.low": found.low, f"{key}.high": found.high}
        found_difference = compare(scores["tuned"], scores["stock"], resamples=resamples, seed=seed)
        key = f"tuned.{name}.difference"
        figures |= {
            key: found_difference.difference.value,
            f"{key}.low": found_difference.difference.low,
            f"{key}.high": found_difference.difference.high,
            f"{key}.p": found_difference.p,
        }
    return figures


def _counts(folder: Path) -> Metrics:
    crawl = read_json(folder / "data" / "crawl.json")
    captions = read_json(folder / "data" / "captions.json")
    shards = read_json(folder / "data" / "shards" / "manifest.json")
    dropped: dict[str, int] = {}
    for part in (crawl["dropped"], shards["dropped"]):  # pack counts again what the captioner left silent
        for reason, count in part.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return {
        **{
            f"counts.{name}": crawl["counts"][name]
            for name in ("pages", "cards", "pictures", "kept", "groups")
        },
        "counts.captions_completed": crawl["counts"]["caption_completed"],
        "counts.captions_human": captions["counts"]["human"],
        "counts.captions_ended_at_clause": captions["counts"]["cut_back"],
        "counts.captions_model": captions["counts"]["model"],
        **{f"counts.{split}": count for split, count in shards["counts"].items()},
        **{f"dropped.{reason}": count for reason, count in dropped.items() if count},
        **{f"page_failures.{reason}": count for reason, count in crawl["page_failures"].items()},
    }


def _weights(folder: Path) -> Metrics:
    hashes: Metrics = {}
    for system in SYSTEMS:
        first = next(iter(read_jsonl(folder / "samples" / system / "samples.jsonl")))
        hashes |= {f"{system}.hash.{name}": first[name] for name in ("clip", "prior", "decoder")}
    return hashes


def _machine() -> Metrics:
    import torch

    from crest.world import machine

    versions = {"versions.python": platform.python_version(), "versions.torch": torch.__version__}
    return {"machine": machine(), "threads": torch.get_num_threads(), **versions}


def per_cent(share: float) -> str:
    """A share in [0, 1] in per cent, as the page writes it; nothing short of all is rounded to 100 %."""
    rounded = f"{100 * share:.1f}".removesuffix(".0")
    return f"{rounded} %"


def unmet(metrics: Mapping[str, Any]) -> list[str]:
    """The goals that were not reached, in words."""
    missed = [
        f"{label(name)} {per_cent(metrics[f'tuned.{name}'])} of {per_cent(goal)}"
        for name, goal in GOALS.items()
        if metrics[f"tuned.{name}"] < goal
    ]
    minutes, peak_mb = metrics["seconds.total"] / 60, metrics["memory.peak_mb"]
    if minutes > GOAL_MINUTES:
        missed.append(f"{minutes:.1f} minutes of {GOAL_MINUTES:.0f}")
    if peak_mb > GOAL_MB:
        missed.append(f"{peak_mb / 1000:.1f} GB of {GOAL_MB / 1000:.0f}")
    return missed


def label(name: str) -> str:
    """How the page calls a figure."""
    return {"r_precision_at_1": "R-precision@1", "clip_score": "CLIPScore"}.get(name, name.replace("_", " "))


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str, str]:
    """The three lines that the demo ends with and the page begins with."""
    n, tuned, stock = metrics["prompts"], metrics["tuned.exact"], metrics["stock.exact"]
    low, high = (100 * metrics[f"tuned.exact.difference.{end}"] for end in ("low", "high"))
    p = metrics["tuned.exact.difference.p"]
    # a few successes more can leave the bootstrap's interval above 0 where the exact test finds nothing
    is_open = low <= 0 <= high or p >= SIGNIFICANCE
    shows = "is not shown to be better" if is_open else "is better" if low > 0 else "is worse"
    rivals = round(metrics["r_precision_at_1.distractors"]) + 1
    precision = {name: per_cent(metrics[f"{name}.r_precision_at_1"]) for name in SYSTEMS}
    missed = unmet(metrics)
    goals = f"Goals missed: {', '.join(missed)}." if missed else "Every goal is reached."
    return (
        f"The tuned model draws {per_cent(tuned)} of {n} held-out crests exactly as asked, the stock model "
        f"{per_cent(stock)}: it {shows} (95 % interval of the difference {low:.0f} to {high:.0f} points, "
        f"p = {p:.2g}).",
        f"A reference CLIP that took no part finds a drawing's own prompt among {rivals} for "
        f"{precision['tuned']} of the tuned drawings, for {precision['stock']} of the stock model's.",
        f"All of it took {metrics['seconds.total'] / 60:.1f} minutes and "
        f"{metrics['memory.peak_mb'] / 1000:.1f} GB of memory. {goals}",
    )


def read_shown(folder: Path) -> list[Shown]:
    """All prompts in their order, with the first picture that each system drew of them."""
    verdicts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in read_jsonl(folder / "judge" / "verdicts.jsonl"):
        verdicts.setdefault((row["prompt_id"], row["system"]), row)
    shown = []
    for row in read_jsonl(folder / "prompts.jsonl"):
        mine = {system: verdicts[row["id"], system] for system in SYSTEMS}
        drawn = {system: folder / "samples" / system / str(mine[system]["file"]) for system in SYSTEMS}
        pictures = {"truth": folder / "truth" / f"{row['id']}.png", **drawn}
        shown.append(Shown(row["id"], row["text"], row["specification"], pictures, mine))
    return shown


def grid_picture(shown: Sequence[Shown], cell_px: int = 80) -> bytes:
    """Truth, stock and tuned below each other, a column a prompt, as a PNG of at most PICTURE_LIMIT bytes."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    gap, gutter = 8, 62
    size = (gutter + len(shown) * (cell_px + gap) + gap, 3 * (cell_px + gap) + gap)
    sheet = Image.new("RGB", size, (247, 244, 236))
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(("truth", *SYSTEMS)):
        y = gap + row * (cell_px + gap)
        pen.text(
            (gap + 2, y + cell_px // 2), name, fill=(26, 32, 48), anchor="lm", font=ImageFont.load_default(15)
        )
        for column, one in enumerate(shown):
            with Image.open(one.pictures[name]) as picture:
                cell = picture.convert("RGB").resize((cell_px, cell_px), Image.Resampling.BICUBIC)
            sheet.paste(cell, (gutter + column * (cell_px + gap), y))
    for colours in (0, 256, 128, 64, 32):
        stream = io.BytesIO()
        (sheet.quantize(colours) if colours else sheet).save(stream, "PNG", optimize=True)
        if stream.tell() <= PICTURE_LIMIT:
            break
    return stream.getvalue()
