"""The contract that every metric keeps, and the list of those that are measured.

A metric is one file. It reads an Evidence and answers with an Outcome; it never encodes a picture, never
tests a hypothesis about paired prompts (eval.judge does, the same way for all) and never writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from eval.evidence import Evidence, Floats
from eval.statistics import Interval

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Estimate:
    """A figure of a whole set with its interval."""

    interval: Interval
    p: float | None = None
    """two-sided against 0, for differences"""


@dataclass(frozen=True)
class Outcome:
    """What a metric found: either one figure a prompt, or estimates of whole sets."""

    scores: Mapping[str, Floats] = field(default_factory=dict)
    """system -> (P,), NaN where the prompt does not ask for it; systems are then compared prompt by prompt"""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """system -> figure of the whole set, where no figure a prompt exists"""
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    """system -> difference from the baseline, for set figures"""
    figures: Mapping[str, float] = field(default_factory=dict)
    """further numbers for metrics.json: chance levels, noise floors, parts"""
    note: str = ""
    """one line for the report: what to compare the figures with"""
    pairs: tuple[Mapping[str, object], ...] = ()
    """rows for nearest.jsonl"""


class Metric(Protocol):
    """One way to look at the drawings."""

    name: str
    """key in metrics.json"""
    title: str
    """how the report calls it"""
    better: Better
    """which direction is good; "neither" is described and never tested"""
    is_share: bool
    """whether its figures a prompt are shares in [0, 1], shown in per cent"""

    def unfit(self, evidence: Evidence) -> str | None:
        """Why it can't be measured here, or None when it can."""

    def measure(self, evidence: Evidence) -> Outcome:
        """Measure all systems."""


def all_metrics() -> tuple[Metric, ...]:
    """Every metric, in the report's order."""
    from eval.metrics.clip_score import ClipScore
    from eval.metrics.cmmd import Cmmd
    from eval.metrics.colours import Colours
    from eval.metrics.flatness import Flatness
    from eval.metrics.kid import Kid
    from eval.metrics.near_copy import NearCopy
    from eval.metrics.r_precision import RPrecision
    from eval.metrics.vendi import Vendi

    return ClipScore(), RPrecision(), Colours(), Kid(), Cmmd(), Vendi(), NearCopy(), Flatness()
