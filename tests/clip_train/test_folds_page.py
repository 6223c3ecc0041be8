"""The page of a cross-validation: says only what the intervals allow, and a browser shows it."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_train.cross_validation import _plain, summed_up
from clip_train.folds_page import render, write_folds_page
from clip_train.retrieval import Ranks

CHROMIUM = Path("/usr/bin/chromium")
BAD, GOOD = [9.0] * 20, [1.0] * 15 + [9.0] * 5


def report(before: list[float], after: list[float], refused: str | None = None) -> dict[str, Any]:
    """Of two folds of 20 logos with these ranks both ways."""
    ones = np.ones(20, np.int64)
    ranks = {
        when: _plain(Ranks(np.array(one), np.array(one), ones, ones, 20 * ones))
        for when, one in (("before", before), ("after", after))
    }
    told = {"mode": "<b>full", "train": 60, "val": 10, "held_out": 20, "ranks": ranks}
    results = [
        {**told, "fold": fold, "refused": refused, "groups": [f"{fold} {number}" for number in range(20)]}
        for fold in (0, 1)
    ]
    folds, judge = SimpleNamespace(k=2, seed=0), SimpleNamespace(best_by="r_at_5", bootstrap=300)
    return summed_up(results, SimpleNamespace(folds=folds, judge=judge))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (BAD, GOOD, "Training helps: the interval of the change leaves out zero"),
        (GOOD, BAD, "Training harms: the interval of the change leaves out zero"),
        (GOOD, GOOD, "cannot be told from these logos"),
    ],
)
def test_the_page_says_what_the_interval_allows(before: list[float], after: list[float], says: str) -> None:
    drawn = render(report(before, after))
    assert says in drawn
    assert "<b>full" not in drawn
    assert "&lt;b&gt;full" in drawn
    assert 'href="fold-1/index.html"' in drawn
    assert drawn.count("<tr>") == 1 + 6 + 1 + 2
    assert "were refused" not in drawn


def test_refused_folds_are_told() -> None:
    drawn = render(report(GOOD, GOOD, refused="drifted"))
    assert "2 of 2 folds were refused, and count with the weights that they started from" in drawn
    assert drawn.count("<small>refused</small>") == 2


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_chromium_shows_it(tmp_path: Path, scheme: str, width: int) -> None:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(
                f"{CHROMIUM}: is missing, and CI must test the pages; apt-get install chromium first."
            )
        pytest.skip(f"{CHROMIUM} is missing; apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    path = write_folds_page(tmp_path, report(BAD, GOOD))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments, timeout=120_000)
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(path.as_uri())
        assert page.title() == "2 folds"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg[role=img] circle").count() == 3
        assert page.locator("tbody tr").count() == 8
        assert wrong == []
        ends = "[...document.querySelectorAll('svg text')].map(t => t.getBBox().x + t.getBBox().width)"
        assert max(page.evaluate(ends)) <= 960  # the drawing's own width: nothing is cut off
        browser.close()
