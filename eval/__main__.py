"""Compare systems: numbers with intervals, a verdict and one self-contained page.

    python -m eval --config configs/demo/eval.json

Reads what `python -m crest` drew and, where given, shards of real pictures; writes metrics.json,
nearest.jsonl and index.html. Trains nothing and draws nothing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from crest.config import resolved_json, run_command
from eval.config import EvalConfig

if TYPE_CHECKING:
    from eval.evidence import Encoder


def check(config: EvalConfig) -> None:
    """Look whether the systems can be compared, by this reference, and whether all is there."""
    from crest.records import read_manifest
    from eval.kinship import read_descent, refuse_kin
    from eval.systems import read_systems

    section = config.eval
    systems = read_systems(section.systems, section.baseline, section.prompts)
    clips = {system.name: system.clip for system in section.systems}
    refuse_kin(read_descent(section.reference), section.reference, systems, clips)
    if section.shards is not None:
        read_manifest(section.shards, "shards", "python -m scraper.pack")


def main(config: EvalConfig) -> None:
    """Load the reference CLIP, then evaluate."""
    from crest.models.clip import load_clip
    from crest.world import pick_device

    sentences = evaluate(config, load_clip(config.eval.reference, pick_device(config.eval.device)))
    print(*sentences, sep="\n")
    print(f"the report is {config.eval.dir / 'index.html'}")


def evaluate(config: EvalConfig, reference: Encoder) -> tuple[str, ...]:
    """Judge the systems of a config by a reference CLIP and write the report.

    Returns:
        the verdict, one sentence for each system but the baseline.
    Raises:
        WeightsError: the reference is the CLIP that conditioned a system, or its parent or child.
        DataError: the systems can't be compared.
    """
    from crest.records import hash_of, write_json, write_jsonl, write_text
    from eval.evidence import gather
    from eval.judge import flat_metrics, judge
    from eval.kinship import Descent, refuse_kin
    from eval.metrics import all_metrics
    from eval.report import render
    from eval.systems import read_systems

    started = time.monotonic()
    section = config.eval
    systems = read_systems(section.systems, section.baseline, section.prompts)
    clips = {system.name: system.clip for system in section.systems}
    refuse_kin(Descent.of(reference.hash, reference.parents), section.reference, systems, clips)
    evidence = gather(
        systems, reference, shards=section.shards, batch_size=section.batch_size, seed=section.seed
    )
    judgement = judge(evidence, all_metrics(), primary=section.primary, resamples=section.bootstrap)
    hashes = {f"samples.{system.name}": system.hash for system in systems}
    flat = flat_metrics(judgement, evidence) | {
        "reference": section.reference,
        "reference_hash": reference.hash,
        **hashes,
        "config_hash": hash_of(resolved_json(config)),
        "seconds": round(time.monotonic() - started, 2),
    }
    pairs = [dict(row) for finding in judgement.findings for row in finding.outcome.pairs]
    page = render(judgement, evidence, systems, flat, pairs, resolved_json(config), section.shown)
    write_jsonl(section.dir / "nearest.jsonl", pairs)
    write_text(section.dir / "index.html", page)
    write_json(section.dir / "metrics.json", flat)  # last: its presence means done
    return judgement.verdicts


if __name__ == "__main__":
    sys.exit(run_command("eval", EvalConfig, main, check=check))
