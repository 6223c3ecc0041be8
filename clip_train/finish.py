"""After training: how far between start and tuned weights to stop, what was forgotten, and the report.

Weights that answer too differently about general things are not promoted: they keep another name, under which
no later step finds them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from clip_train.page import write_page
from clip_train.retrieval import Ranks, gain, rank_metrics
from clip_train.stage import PREVIEW_ROWS, ClipStage, take_bias
from clip_train.wise import Sweep, sweep
from crest.adapters import ADAPTER, adapters, load_adapter
from crest.checkpoint import CARD, WEIGHTS, export_weights, load_weights
from crest.errors import RunError
from crest.models.clip import ClipModel
from crest.records import read_json, write_json
from crest.tracker import read_scalars
from crest.world import World

REPORT: Final = "report.json"
BEST: Final = "best.safetensors"
REFUSED: Final = "refused"


class RefusedError(RunError):
    """The weights of a finished training moved too far from what they knew.

    Args:
        run_dir: of the run.
        why: one sentence.
    """

    def __init__(self, run_dir: Path, why: str) -> None:
        super().__init__(f"{run_dir}: {why}")
        self.why = why


def finish(stage: ClipStage, run_dir: Path, world: World) -> Path:
    """Choose between start and tuned weights, write report.json and the page; does nothing a second time.

    Args:
        stage: of the run, whose training is finished.
        run_dir: of the run.
        world: this process, which is the only one that comes here.
    Returns:
        the page.
    Raises:
        RefusedError: the weights moved too far from what they knew.
    """
    report = run_dir / REPORT
    if report.exists() and (run_dir / WEIGHTS).exists() and not read_json(report).get("refused"):
        return write_page(run_dir)
    settings, model = stage.config.judge, stage.start().eval().to(world.device)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, run_dir / BEST)
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    is_tuned = stage.mode != "scratch"
    before = _judged(stage, model, world)

    def score(tried: ClipModel) -> dict[str, float]:
        moved = stage.drifted(tried) if is_tuned else {}
        return {**_figures(stage, _judged(stage, tried, world), bootstrap=0), **moved}

    alphas = sorted({*settings.wise_ft, 1.0}) if is_tuned and settings.wise_ft else [1.0]
    limit = settings.max_drift if is_tuned else None
    swept = sweep(model, start, tuned, alphas, score, best_by=settings.best_by, max_drift=limit)
    card = {name: value for name, value in read_json(run_dir / CARD).items() if name != "sha256"}
    if swept.refused is not None:
        _set_aside(run_dir)
        write_json(report, _report(stage, before, None, swept, limit, refused=swept.refused))
        write_page(run_dir)
        raise RefusedError(run_dir, swept.refused)
    after, moved = _judged(stage, model, world), stage.drifted(model) if is_tuned else {}
    result = _adapted(stage, run_dir, swept.alpha, world) if (run_dir / f"best.{ADAPTER}").exists() else model
    if stage.is_bias_lent:
        take_bias(result)
    figures = _figures(stage, after, settings.bootstrap)
    export_weights(run_dir, result, {**card, "wise_ft": swept.alpha, "metrics": figures, "drift": moved})
    write_json(report, _report(stage, before, after, swept, limit, probe=moved))
    return write_page(run_dir)


def _judged(stage: ClipStage, model: ClipModel, world: World) -> tuple[Ranks, float]:
    with world.autocast():
        return stage.judged(model)


def _figures(stage: ClipStage, judged: tuple[Ranks, float], bootstrap: int) -> dict[str, float]:
    found, loss = judged
    figures = rank_metrics(found, bootstrap=bootstrap, groups=stage.groups)
    return {"loss": loss, "samples": float(len(found)), **figures}


def _adapted(stage: ClipStage, run_dir: Path, alpha: float, world: World) -> ClipModel:
    """The start with its adapters, scaled by alpha: the same weights as interpolated ones."""
    model = stage.start().eval().to(world.device)
    load_adapter(run_dir / f"best.{ADAPTER}", model)
    for _, adapter in adapters(model):
        adapter.scale *= alpha
    return model


def _set_aside(run_dir: Path) -> None:
    for name in (WEIGHTS, CARD, ADAPTER):
        path = run_dir / name
        if path.exists():
            path.replace(path.with_name(f"{REFUSED}.{name}"))


def _report(
    stage: ClipStage,
    before: tuple[Ranks, float],
    after: tuple[Ranks, float] | None,
    swept: Sweep,
    limit: float | None,
    **more: Any,
) -> dict[str, Any]:
    draws, run = stage.config.judge.bootstrap, stage.config.run
    last = max((int(row["step"]) for row in read_scalars(run.dir)), default=run.steps)
    return {
        "mode": stage.mode,
        "why": stage.why,
        "pairs": len(stage.data.train),
        "held_out": len(stage.data.val),
        "before": _figures(stage, before, draws),
        "after": {} if after is None else _figures(stage, after, draws),
        "gain": {} if after is None else _gain(stage, before[0], after[0]),
        "wise": [asdict(row) for row in swept.rows],
        "optim": stage.optim.model_dump(),
        "alpha": swept.alpha,
        "stopped_early_at": last if last < run.steps else None,
        "max_drift": limit,
        "dropped": _dropped(stage),
        "preview_captions": stage.data.val.captions[:PREVIEW_ROWS],
        **more,
    }


def _dropped(stage: ClipStage) -> dict[str, int]:
    """What did not take part as it is, by reason: words, pairs, damaged samples, and pairs as negatives."""
    data = stage.data
    return {
        "captions_cut": data.cut_captions,
        "held_out_captions_cut": data.cut_held_out,
        "held_out_not_compared": len(data.val) - len(stage.groups),
        **(Counter(data.train.damaged) + Counter(data.val.damaged)),
        **{f"negatives_with_{kind}": count for kind, count in data.positives.counts().items()},
    }


def _gain(stage: ClipStage, before: Ranks, after: Ranks) -> dict[str, float]:
    draws = stage.config.judge.bootstrap
    return gain(before, after, bootstrap=draws, groups=stage.groups) if draws else {}
