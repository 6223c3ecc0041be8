"""What can be turned in the survey: who meets, how many raters, which rules were fixed beforehand.

Describes only. The exclusion rules are copied into key.json at export, so that they can't move afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from crest.config import Config, FileConfig
from eval.config import SystemConfig

Question = Literal["match", "quality", "use"]

CONSENT = (
    "You will see descriptions of logos, each with two drawings, and say which one you prefer. It takes "
    "about ten minutes. Taking part is voluntary: you can stop at any time by closing the page. Only your "
    "choices, the time that each took and a random number in place of your name are kept. Nothing is sent "
    "from this page: the answers stay in your browser until you save the file and hand it on."
)


class SurveySection(Config):
    """The survey."""

    dir: Path
    """Survey folder: index.html and images/ go public, private/ never does; tally.html is written here."""
    systems: tuple[SystemConfig, ...] = Field(min_length=2, max_length=2)
    """Two systems, drawn from the same prompts with the same seeds."""
    baseline: str
    """Name of the system that the other one is compared with."""
    prompts: Path | None = None
    """Prompt list; when given, exactly these prompts must have been drawn."""
    shards: Path | None = None
    """Shards whose test pictures serve the gold checks; null takes drawings of the systems."""
    title: str = "Which logo would you choose?"
    """Heading of the page."""
    consent: str = CONSENT
    """What raters agree to before they start."""
    contact: str = ""
    """Where raters can ask; shown under the consent text when set."""
    primary: Question = "use"
    """The one question that decides, named before anybody answers."""
    pairs: int = Field(default=100, ge=2)
    """Prompts to ask about at most, chosen by seed; the first drawing of each is shown."""
    raters: int = Field(default=20, ge=1)
    """Raters to plan for; each gets a plan of its own with its own order and sides."""
    answers_per_pair: int = Field(default=5, ge=1)
    """Raters who see each pair."""
    most_per_rater: int = Field(default=40, ge=1)
    """Pairs that one rater may be asked for at most, checks included."""
    gold_share: float = Field(default=0.08, ge=0, le=0.5)
    """Share of a rater's pairs that have a right answer: a whole logo against a destroyed one."""
    repeat_share: float = Field(default=0.05, ge=0, le=0.5)
    """Share of a rater's pairs that are asked again with sides swapped."""
    side_px: int = Field(default=256, ge=32, le=1024)
    """Side of every picture of the public bundle."""
    seed: int = 0
    """Seed of the plans (ids are always fresh randomness)."""

    @model_validator(mode="after")
    def _fits(self) -> SurveySection:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            raise ValueError(f"systems with different names (found {', '.join(names)})")
        if self.baseline not in names:
            raise ValueError(
                f"a baseline that is one of the systems {', '.join(names)} (found {self.baseline})"
            )
        if self.answers_per_pair > self.raters:
            raise ValueError(f"answers_per_pair of at most {self.raters}, the number of raters")
        return self


class ExcludeSection(Config):
    """Whose answers the filtered figures leave out; the unfiltered ones stand beside them."""

    min_gold_share: float = Field(default=0.5, ge=0, le=1)
    """Raters with a smaller share of right gold answers are left out."""
    min_ms: float = Field(default=600, ge=0)
    """Raters whose median time for a pair, in milliseconds, is below it are left out."""


class TallySection(Config):
    """What the tally reads."""

    answers: tuple[Path, ...] = ()
    """Answer files, or folders of .csv files; when empty, answers.csv in the survey folder."""


class SurveyConfig(FileConfig):
    """A whole survey.json, read by export and tally alike."""

    survey: SurveySection
    """The survey."""
    exclude: ExcludeSection = ExcludeSection()
    """Rules fixed beforehand."""
    tally: TallySection = TallySection()
    """What the tally reads."""
