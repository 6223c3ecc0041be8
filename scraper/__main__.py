"""Fetch logos and their words from a site or from this machine, screen them, and write records."""

from __future__ import annotations

from crest.config import run_command
from scraper.config import ScraperConfig

SWITCHES = {"--retry-failed": "fetch.retry_failed=true"}


def main(config: ScraperConfig) -> None:
    """Crawl or gather, then screen."""
    from scraper.collect import collect

    collect(config)


def check(config: ScraperConfig) -> None:
    """Look whether the input is there."""
    from scraper.collect import check_source

    check_source(config)


if __name__ == "__main__":
    raise SystemExit(run_command("scraper", ScraperConfig, main, check=check, switches=SWITCHES))
