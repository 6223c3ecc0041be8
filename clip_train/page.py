"""A CLIP run as one page: what was trained and why, before against after, curves, finds, forgetting.

One self-contained file out of whatever the run folder holds, so that a run that still goes on can be looked
at too. Shows the figures of metrics.jsonl, report.json and the card, and computes none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clip_train.config import ClipTrainConfig
from clip_train.page_chapters import (
    before_and_after,
    chance_of,
    dropped,
    finds,
    forgetting,
    learning,
    name_of,
    plain,
    shown,
    span,
)
from clip_train.run_record import Run, read_run
from crest.config import run_command
from crest.page import page, table, text
from crest.records import read_json, write_text

PAGE: Final = "index.html"


def write_page(run_dir: Path) -> Path:
    """Draw a run's page from what its folder holds.

    Args:
        run_dir: of a CLIP run, finished or not.
    Returns:
        `run_dir`/index.html.
    Raises:
        DataError: no such run, or one of its files is broken.
    """
    run = read_run(run_dir)
    write_text(run_dir / PAGE, render(run))
    return run_dir / PAGE


def render(run: Run) -> str:
    """The page as HTML."""
    parts = [
        f"<h1>CLIP run {text(run.name)}</h1>{_verdict(run)}",
        _what(run), before_and_after(run), learning(run), finds(run), forgetting(run), dropped(run),
        _details(run),
    ]  # fmt: skip
    return page(f"CLIP run {run.name}", "\n".join(part for part in parts if part))


def _verdict(run: Run) -> str:
    lines = []
    if not run.is_finished:
        steps, last = run.config.get("run", {}).get("steps"), run.last_step
        told = "nothing is recorded yet" if last is None else f"step {last} was recorded last"
        lines.append(f"Not finished: of {steps} steps, {told}; there are no exported weights yet.")
    before, after, by = run.before, run.after, run.best_by
    if by in before and by in after:
        reached = "The exported weights reach" if run.is_finished else "The averaged weights reach so far"
        if run.refused:
            reached = "The refused weights reach"
        chance = chance_of(by, after, before)
        told = "" if chance is None else f", by chance {shown(by, chance)}"
        name = name_of(by)
        lines.append(f"{reached} a held-out {name} of {span(after, by)}; before, {span(before, by)}{told}.")
        lines.append(_compared(by, run))
    if run.refused:
        lines.insert(0, f"Refused: {run.refused}")
    kinds = ("verdict worse" if run.refused else "verdict", *("",) * len(lines))
    return "".join(
        f'<p class="{kind}">{text(line)}</p>' for kind, line in zip(kinds, lines, strict=False) if line
    )


def _compared(by: str, run: Run) -> str:
    """What the intervals say about the difference; nothing where there are none."""
    gain = run.report.get("gain") or {}
    if f"{by}_low" in gain and f"{by}_high" in gain:
        ends = f"{shown(by, gain[f'{by}_low'], True)} to {shown(by, gain[f'{by}_high'], True)}"
        told = f"On the same pairs the change is {shown(by, gain[by], True)} (95\u00a0% interval {ends}): "
        if gain[f"{by}_low"] > 0 or gain[f"{by}_high"] < 0:
            return told + ("it got better." if gain[by] > 0 else "it got worse.")
        return told + "no change is shown."
    before, after = run.before, run.after
    if not all(f"{by}_{end}" in figures for end in ("low", "high") for figures in (before, after)):
        return ""
    if after[f"{by}_low"] > before[f"{by}_high"] or after[f"{by}_high"] < before[f"{by}_low"]:
        return f"The intervals lie apart: it got {'better' if after[by] > before[by] else 'worse'}."
    return "The intervals overlap: on so many held-out logos no change is shown."


def _what(run: Run) -> str:
    report, card = run.report, run.card
    model, optim = run.config.get("model", {}), report.get("optim") or run.config.get("optim", {})
    start = next((model[key] for key in ("start", "pretrained") if model.get(key)), None)
    mode, why = report.get("mode") or model.get("mode"), report.get("why")
    rows: list[tuple[str, object]] = [
        ("mode", f"{mode}: {why}" if why else mode),
        ("pairs", report.get("pairs", run.shards.get("counts", {}).get("train"))),
        ("held-out pairs", report.get("held_out", run.before.get("samples"))),
        ("architecture", _architecture(model, card)),
        ("start", start or ("random weights" if model.get("scratch") else None)),
        ("loss", model.get("loss")),
        ("learning rate", optim.get("lr") or "what suits the mode"),
        ("batch", optim.get("batch_size") or "the training split"),
        ("exported", _exported(run)),
        ("best", _best(run)),
        ("stopped early", _stopped(report.get("stopped_early_at"))),
        ("computed on", _world(card.get("world", {}))),
        ("weights", str(card["sha256"])[:16] if "sha256" in card else None),
    ]
    told = [(text(name), plain(value)) for name, value in rows if value is not None]
    return "<h2>What was trained</h2>" + table("Settings of this run", ("setting", "value"), told)


def _architecture(model: Mapping[str, Any], card: Mapping[str, Any]) -> str | None:
    spec = card.get("spec") or model.get("scratch") or {}
    name = spec.get("architecture") or model.get("architecture")
    return str(name) if name else "of its own (spec)" if spec.get("custom") else None


def _exported(run: Run) -> str | None:
    if "step" not in run.card or run.refused:
        return None
    share = run.report.get("alpha")
    tuned = "" if share in (None, 1) else f", {share:g} of the way from the start to them"
    return f"weights of step {run.card['step']}{tuned}"


def _best(run: Run) -> str | None:
    best = run.card.get("best", {})
    if best.get("value") is None:
        return None
    return f"{name_of(best['by'])} {shown(best['by'], best['value'])} at step {best.get('step')}"


def _stopped(step: object) -> str | None:
    return None if step is None else f"at step {step}, no better for long enough"


def _world(world: Mapping[str, Any]) -> str | None:
    if not world:
        return None
    count = world.get("processes")
    return f"{world.get('device')}, {world.get('precision')}, {count} process{'' if count == 1 else 'es'}"


def _details(run: Run) -> str:
    parents = [(text(name), text(value)) for name, value in run.card.get("parents", {}).items()]
    told = table("Made from", ("what", "hash"), parents) if parents else ""
    config = json.dumps(run.config, indent=2, ensure_ascii=False)
    return (
        f"<h2>Settings</h2>{told}<details><summary>Resolved config</summary>"
        f'<pre tabindex="0">{text(config)}</pre></details>'
    )


def check(config: ClipTrainConfig) -> None:
    """Look whether there is a run."""
    read_json(config.run.dir / "config.json")


def main(config: ClipTrainConfig) -> None:
    """Draw the page of a config's run."""
    print(f"page: {write_page(config.run.dir)}")


if __name__ == "__main__":
    sys.exit(run_command("clip_train.page", ClipTrainConfig, main, check=check))
