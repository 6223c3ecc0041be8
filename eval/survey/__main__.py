"""Export a blind survey page of two systems' logos.

    python -m eval.survey --config configs/demo/survey.json

Writes index.html and images/ to be published, and private/ (the key and one link a rater) to be kept.
"""

from __future__ import annotations

import sys

from crest.config import run_command
from eval.survey.config import SurveyConfig


def check(config: SurveyConfig) -> None:
    """Look whether the systems can be compared and whether the shards are there."""
    from crest.records import read_manifest
    from eval.systems import read_systems

    section = config.survey
    read_systems(section.systems, section.baseline, section.prompts)
    if section.shards is not None:
        read_manifest(section.shards, "shards", "python -m scraper.pack")


def main(config: SurveyConfig) -> None:
    """Export and say what to publish."""
    from eval.survey.export import export
    from eval.systems import read_systems

    section = config.survey
    made = export(config, read_systems(section.systems, section.baseline, section.prompts))
    longest = max(len(showings) for showings in made.manifest["plans"])
    real = sum(pair["kind"] == "real" for pair in made.key["pairs"].values())
    print(
        f"{real} prompts, {section.raters} raters, {section.answers_per_pair} answers each: "
        f"{real * section.answers_per_pair} answers, at most {longest} pairs a rater"
    )
    print(f"publish {section.dir / 'index.html'} and {section.dir / 'images'}")
    print(f"keep {section.dir / 'private'} to yourself: it says which picture is whose")


if __name__ == "__main__":
    sys.exit(run_command("eval.survey", SurveyConfig, main, check=check))
