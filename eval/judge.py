"""Run every metric, compare every system with the baseline, and say the verdict.

Corrects for looking more than once. Treats all metrics alike: figures a prompt are compared pairwise, set
figures bring their own differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crest.errors import DataError
from eval.evidence import Evidence, Floats
from eval.metrics import Metric, Outcome
from eval.statistics import Comparison, Interval, compare, holm, mean_interval, verdict, wilson


@dataclass(frozen=True)
class Finding:
    """What one metric says about all systems."""

    metric: Metric
    outcome: Outcome
    values: Mapping[str, Interval]
    """system -> its figure with the 95 % interval"""
    comparisons: Mapping[str, Comparison]
    """system -> difference from the baseline"""
    holm: Mapping[str, float] = field(default_factory=dict)
    """system -> p adjusted over all secondary comparisons; the primary metric has none"""


@dataclass(frozen=True)
class Judgement:
    """All findings and what follows."""

    primary: str
    baseline: str
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str]
    """metric -> why it was not measured"""
    verdicts: tuple[str, ...]
    """one sentence for each system but the baseline"""

    @property
    def primary_finding(self) -> Finding:
        """The finding that decides."""
        return next(finding for finding in self.findings if finding.metric.name == self.primary)


def judge(evidence: Evidence, metrics: Sequence[Metric], *, primary: str, resamples: int) -> Judgement:
    """Measure and compare.

    Args:
        primary: name of the one metric that decides; its p is not adjusted.
        resamples: of the bootstrap and of the sign-flip permutation.
    Raises:
        DataError: the primary metric can't be measured on these prompts.
    """
    from tqdm import tqdm

    findings, skipped = [], {}
    for metric in tqdm(metrics, desc="measure", unit="metric", disable=None):
        reason = metric.unfit(evidence)
        if reason is None:
            findings.append(_find(metric, metric.measure(evidence), evidence, resamples))
        else:
            skipped[metric.name] = reason
    if primary in skipped:
        raise DataError(
            f"eval.primary: {primary} can't be measured here ({skipped[primary]}); name the other metric "
            "before drawing, or draw prompts that it can judge."
        )
    findings = _adjust(findings, primary)
    decisive = next(finding for finding in findings if finding.metric.name == primary)
    sentences = tuple(
        verdict(
            decisive.metric.title, name, evidence.baseline,
            (decisive.values[name].value, decisive.values[evidence.baseline].value), comparison,
            higher_is_better=decisive.metric.better == "higher", is_share=decisive.metric.is_share,
        )
        for name, comparison in decisive.comparisons.items()
    )  # fmt: skip
    return Judgement(primary, evidence.baseline, tuple(findings), skipped, sentences)


def _find(metric: Metric, outcome: Outcome, evidence: Evidence, resamples: int) -> Finding:
    seed = evidence.seed
    if not outcome.scores:
        values = {name: estimate.interval for name, estimate in outcome.estimates.items()}
        comparisons = {
            name: Comparison(estimate.interval, _p(metric, estimate.p), len(evidence.prompts))
            for name, estimate in outcome.differences.items()
        }
        return Finding(metric, outcome, values, comparisons)
    known = ~np.isnan(np.stack(list(outcome.scores.values()))).any(axis=0)
    scores: dict[str, Floats] = {name: figures[known] for name, figures in outcome.scores.items()}
    values = {name: _mean(metric, figures, resamples, seed) for name, figures in scores.items()}
    comparisons = {}
    for name, figures in scores.items():
        if name != evidence.baseline:
            found = compare(
                figures, scores[evidence.baseline], resamples=resamples, seed=seed,
                higher_is_better=metric.better != "lower",
            )  # fmt: skip
            if metric.is_share and found.spread == 0.0 and found.difference.value == 0.0:
                most = wilson(0.0, found.units).high  # no prompt differs, which is not "none ever will"
                found = replace(found, difference=Interval(0.0, -most, most))
            comparisons[name] = replace(found, p=_p(metric, found.p))
    return Finding(metric, outcome, values, comparisons)


def _mean(metric: Metric, figures: Floats, resamples: int, seed: int) -> Interval:
    if metric.is_share and float(np.ptp(figures)) == 0.0 and figures[0] in (0.0, 1.0):
        return wilson(float(figures.sum()), len(figures))  # "0 of 40" is not "0 for sure"
    return mean_interval(figures, resamples=resamples, seed=seed)


def _p(metric: Metric, p: float | None) -> float | None:
    return None if metric.better == "neither" else p


def _adjust(findings: list[Finding], primary: str) -> list[Finding]:
    """Holm over every secondary comparison that was tested."""
    tested = [
        (place, name, comparison.p)
        for place, finding in enumerate(findings)
        if finding.metric.name != primary
        for name, comparison in finding.comparisons.items()
        if comparison.p is not None
    ]
    adjusted: dict[int, dict[str, float]] = {}
    for (place, name, _), p in zip(tested, holm([p for _, _, p in tested]), strict=True):
        adjusted.setdefault(place, {})[name] = p
    return [replace(finding, holm=adjusted.get(place, {})) for place, finding in enumerate(findings)]


def flat_metrics(judgement: Judgement, evidence: Evidence) -> dict[str, Any]:
    """The judgement as one flat object for metrics.json."""
    flat: dict[str, Any] = {
        "verdict": " ".join(judgement.verdicts),
        "primary": judgement.primary,
        "baseline": judgement.baseline,
        "prompts": len(evidence.prompts),
        "pictures": len(evidence.prompt_of),
    }
    for finding in judgement.findings:
        metric = finding.metric.name
        for system, interval in finding.values.items():
            key = f"{system}.{metric}"
            flat |= {key: interval.value, f"{key}.low": interval.low, f"{key}.high": interval.high}
        for system, comparison in finding.comparisons.items():
            key = f"{system}.{metric}.difference"
            found: dict[str, Any] = {
                "": comparison.difference.value,
                ".low": comparison.difference.low,
                ".high": comparison.difference.high,
                ".p": comparison.p,
                ".p_holm": finding.holm.get(system),
                ".effect_size": comparison.effect_size,
                ".win_share": comparison.win_share,
                ".prompts": comparison.units,
            }
            flat |= {key + end: value for end, value in found.items() if value is not None}
        flat |= {f"{metric}.{name}": value for name, value in finding.outcome.figures.items()}
    flat |= {f"skipped.{name}": reason for name, reason in judgement.skipped.items()}
    return flat
