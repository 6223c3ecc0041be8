"""What can be turned in `python -m eval`: which systems meet, who judges them, and the one primary metric.

Describes only; reads no picture and no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from crest.config import Config, FileConfig

Primary = Literal["clip_score", "r_precision_at_1"]


class SystemConfig(Config):
    """One system: a folder of drawings with its prompt map."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    """How the system is called in the report (letters, digits, - and _)."""
    samples: Path
    """Folder with samples.jsonl and the pictures, as `python -m crest` writes it."""
    clip: str | None = None
    """CLIP that conditioned it (weights folder or stock name); its card names parents that may not score."""


class EvalSection(Config):
    """The comparison."""

    dir: Path
    """Report folder: metrics.json, nearest.jsonl and index.html."""
    reference: str = "stock/reference_clip"
    """CLIP that scores (weights folder or stock name); never one that conditioned a system, nor its kin."""
    systems: tuple[SystemConfig, ...] = Field(min_length=2)
    """Two or more systems, drawn from the same prompts with the same seeds."""
    baseline: str
    """Name of the system that the others are compared with."""
    prompts: Path | None = None
    """Prompt list (.jsonl with `text`, or .txt); when given, exactly these prompts must have been drawn."""
    shards: Path | None = None
    """Shards of real pictures: test for KID and CMMD, train for near copies; null leaves these out."""
    primary: Primary = "clip_score"
    """The one metric that decides, named before anything is drawn."""
    bootstrap: int = Field(default=9999, ge=99)
    """Resamples of the BCa bootstrap and of the sign-flip permutation."""
    seed: int = 0
    """Seed of the resampling, the distractors and the random halves."""
    device: str = "auto"
    """Where the reference CLIP runs: "auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:N"."""
    batch_size: int = Field(default=64, ge=1)
    """Pictures per pass through the reference CLIP."""
    shown: int = Field(default=6, ge=1)
    """Prompts in each of the grids best, median and worst."""

    @model_validator(mode="after")
    def _names_fit(self) -> EvalSection:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            raise ValueError(f"systems with different names (found {', '.join(names)})")
        if self.baseline not in names:
            raise ValueError(
                f"a baseline that is one of the systems {', '.join(names)} (found {self.baseline})"
            )
        return self


class EvalConfig(FileConfig):
    """A whole eval.json."""

    eval: EvalSection
    """The comparison."""
