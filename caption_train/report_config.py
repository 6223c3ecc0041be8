"""What can be turned in the report that compares captioners."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from crest.config import Config, FileConfig


class ReportDataConfig(Config):
    """Which logos the captioners are shown: held-out ones with words by people."""

    records: Path
    """Data folder of the scraper (records.jsonl and pictures), or a folder of shards."""
    val_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of groups held out where `records` is a data folder; the same as in the captioner's training."""
    max_logos: int | None = Field(default=None, ge=2)
    """Held-out logos at most, drawn by the hash of their ids; null: all."""


class SystemConfig(Config):
    """One captioner under comparison: exactly one of `weights` and `captions`."""

    name: str = Field(min_length=1)
    """As the report calls it."""
    weights: str | None = None
    """A run folder, "stock/captioner", or the local folder or hub name of a published captioner."""
    captions: Path | None = None
    """A captions.jsonl that holds the captioner's words already (a vision API's, for instance)."""
    revision: str | None = None
    """Commit or tag of a hub name."""
    route: Literal["auto", "plain", "prompt", "chat"] = "auto"
    """How a published captioner is asked."""
    prompt: str | None = None
    """What one that takes words is asked; null: a question about logos."""
    beams: int = Field(default=1, ge=1, le=16)
    """1: greedy decoding; more: beam search."""
    max_tokens: int = Field(default=60, ge=1)
    """Longest answer."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> SystemConfig:
        if (self.weights is None) == (self.captions is None):
            raise ValueError('exactly one of "weights" and "captions"')
        return self


class ReportConfig(Config):
    """What is compared, and where it is told."""

    dir: Path
    """Folder of report.json, report.html and answers.jsonl."""
    systems: tuple[SystemConfig, ...] = Field(min_length=1)
    """The captioners, in the order of the table."""
    shown: int = Field(default=24, ge=0)
    """Logos on the page with what everybody says of them."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of groups behind each interval."""
    seed: int = 0
    """Seed of the resamples."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures described at once."""
    device: str = "auto"
    """"auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:N"."""

    @model_validator(mode="after")
    def _names_differ(self) -> ReportConfig:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names) or CHANCE in names:
            raise ValueError(f'systems whose names differ, and none called "{CHANCE}"')
        return self


CHANCE = "another logo's words"
"""The row that says what is reached without looking: the caption that people wrote of some other logo."""


class CaptionReportConfig(FileConfig):
    """The comparison of captioners."""

    data: ReportDataConfig
    """Which logos."""
    report: ReportConfig
    """Which captioners."""
