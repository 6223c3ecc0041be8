"""The survey page and the report as people meet them, in Chromium, from files, offline."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crest.config import load_config
from eval.__main__ import evaluate
from eval.config import EvalConfig
from eval.survey.answers import read_answers, read_key
from eval.survey.config import SurveyConfig
from eval.survey.export import export, read_manifest_of
from eval.survey.tally import tally
from eval.systems import read_systems

CHROMIUM = Path("/usr/bin/chromium")
ARGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip
PATIENCE_MS = 120_000  # a browser that starts beside a training run takes its time; nothing is asserted on it
Draw = Callable[..., Path]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Any:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(
                f"{CHROMIUM}: is missing, and CI must test the pages; apt-get install chromium first."
            )
        pytest.skip(f"{CHROMIUM} is missing; apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    """One browser for all tests but the one that closes it; every visit has a storage of its own."""
    started = chromium.launch(executable_path=str(CHROMIUM), args=ARGS, timeout=PATIENCE_MS)
    yield started
    started.close()


class Visit:
    """One window; keeps what went wrong and what it asked of the network."""

    def __init__(self, context: Any) -> None:
        self.context = context
        context.set_default_timeout(PATIENCE_MS)
        self.page = context.pages[0] if context.pages else context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path, query: str = "") -> Any:
        self.page.goto(path.as_uri() + query)
        return self.page

    def save(self, folder: Path, button: str) -> Path:
        with self.page.expect_download() as download:
            self.page.click(button)
        path = folder / str(download.value.suggested_filename)
        download.value.save_as(path)
        return path

    def close(self) -> None:
        self.context.close()
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    opened: list[Visit] = []

    def start(**options: Any) -> Visit:
        opened.append(Visit(browser.new_context(**options)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def survey(tmp_path: Path, draw_system: Draw) -> Path:
    systems = [
        {"name": name, "samples": str(draw_system(tmp_path / name, right=right, count=6))}
        for name, right in (("stock", 0.2), ("tuned", 1.0))
    ]
    section = {"dir": str(tmp_path / "survey"), "systems": systems, "baseline": "stock", "raters": 2,
               "answers_per_pair": 2, "contact": '<b>ask</b> "us"', "side_px": 64}  # fmt: skip
    path = tmp_path / "survey.json"
    path.write_text(json.dumps({"survey": section}))
    config = load_config(SurveyConfig, path)
    export(config, read_systems(config.survey.systems, "stock"))
    return config.survey.dir


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_rater_answers_all_of_it_by_keyboard_over_two_sittings(
    chromium: Any, survey: Path, tmp_path: Path
) -> None:
    def sitting() -> Visit:
        profile = str(tmp_path / "profile")
        return Visit(
            chromium.launch_persistent_context(
                profile, executable_path=str(CHROMIUM), args=ARGS, timeout=PATIENCE_MS
            )
        )

    manifest = read_manifest_of(survey / "index.html")
    plan = manifest["plans"][1]
    first = sitting()
    page = first.open(survey / "index.html", "?rater=r-1&plan=1")
    assert page.text_content("#contact") == 'Questions: <b>ask</b> "us"'
    page.click("#start")
    for place, (pair_id, left, _) in enumerate(plan[:3]):
        assert page.text_content("#prompt") == manifest["pairs"][pair_id]
        assert page.text_content("#progress") == f"Pair {place + 1} of {len(plan)}"
        assert left in page.get_attribute("#left", "src")
        page.wait_for_function("document.getElementById('left').naturalWidth === 64")
        assert page.is_disabled("#next")
        for key in ("1", "ArrowDown", "3"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    first.close()

    second = sitting()
    page = second.page
    assert reopened(page, survey / "index.html", "?rater=r-1", "Go on with pair 4") == "Go on with pair 4"
    page.click("#start")
    for _ in plan[3:]:
        for key in ("3", "2", "1"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    page.wait_for_selector("#end:not([hidden])")
    rows = rows_of(second.save(tmp_path, "#download"))
    second.close()
    assert len(rows) == 3 * len(plan)
    by_place = [[row for row in rows if row["order"] == str(n + 1)] for n in range(len(plan))]
    for n, (pair_id, left, right) in enumerate(plan):
        assert {row["pair_id"] for row in by_place[n]} == {pair_id}
        wanted = [left, "tie", right] if n < 3 else [right, "tie", left]
        assert [row["choice"] for row in by_place[n]] == wanted
    key = read_key(survey / "private" / "key.json")
    read = read_answers([tmp_path / "answers-r-1.csv"], key)
    assert read.dropped == {}
    key["exclude"] = {"min_gold_share": 0, "min_ms": 0}
    assert tally(read.kept, key).raters == 1


def test_answers_can_be_changed_but_not_by_a_stray_key(visit: Any, survey: Path, tmp_path: Path) -> None:
    each = visit()
    page = each.open(survey / "index.html", "?rater=r2&plan=0")
    page.click("#start")
    for key in "111":
        page.keyboard.press(key)
    page.keyboard.press("3")  # nothing is open any more
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.side).join()"
    assert page.evaluate(pressed) == "left,left,left"
    page.keyboard.press("Backspace")
    assert page.evaluate(pressed) == "left,left"
    assert page.is_disabled("#next")
    page.click("[data-question=match] [data-side=right]")
    page.click("[data-question=use] [data-side=tie]")
    assert page.evaluate(pressed) == "right,left,tie"
    page.click("#next")
    page.click("#back")
    assert page.evaluate(pressed) == "right,left,tie"
    _, left, right = read_manifest_of(survey / "index.html")["plans"][0][0]
    saved = rows_of(each.save(tmp_path, "#download-now"))
    assert [row["choice"] for row in saved] == [right, left, "tie"]


def reopened(page: Any, path: Path, query: str, wanted: str) -> str:
    """What the start button says; Chromium under load may show a page an old state of its storage once."""
    for _ in range(5):
        page.goto(path.as_uri() + query)
        if page.text_content("#start") == wanted:
            break
        page.wait_for_timeout(300)
    return str(page.text_content("#start"))


def test_two_raters_of_one_browser_do_not_mix(visit: Any, survey: Path) -> None:
    page = visit().open(survey / "index.html", "?rater=one")
    page.click("#start")
    page.keyboard.press("1")
    page.wait_for_timeout(500)  # a page that is left at once may take what it stored along
    page.goto((survey / "index.html").as_uri() + "?rater=two")
    assert page.text_content("#start") == "I agree, start"
    wanted = "Go on with pair 1"
    assert reopened(page, survey / "index.html", "?rater=one", wanted) == wanted


def test_a_tab_left_open_can_not_overwrite_later_answers(visit: Any, survey: Path, tmp_path: Path) -> None:
    each = visit()
    old = each.context.new_page()
    old.goto((survey / "index.html").as_uri() + "?rater=one&plan=0")
    page = each.open(survey / "index.html", "?rater=one&plan=0")
    page.click("#start")
    for key in ("1", "1", "1", "Enter", "3", "3", "3", "Enter"):
        page.keyboard.press(key)
    old.click("#start")
    old.keyboard.press("2")  # this tab knows of no answer yet
    old.close()
    reopened(page, survey / "index.html", "?rater=one", "Go on with pair 1")
    page.click("#start")
    rows = rows_of(each.save(tmp_path, "#download-now"))
    second = read_manifest_of(survey / "index.html")["plans"][0][1]
    assert [row["choice"] for row in rows if row["pair_id"] == second[0]] == [second[2]] * 3


def test_forged_rater_in_the_link_becomes_a_random_one(visit: Any, survey: Path) -> None:
    page = visit().open(survey / "index.html", "?rater=%3Cimg%20src%3Dx%3E&plan=99")
    assert page.text_content("#rater").startswith("rater_")
    assert page.text_content("#pair-count") == str(len(read_manifest_of(survey / "index.html")["plans"][0]))


def test_page_works_where_the_browser_keeps_nothing(visit: Any, survey: Path, tmp_path: Path) -> None:
    each = visit()
    each.context.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('denied', "
        "'SecurityError'); }})"
    )
    page = each.open(survey / "index.html", "?rater=private")
    assert page.is_visible("#storage")
    page.click("#start")
    page.keyboard.press("2")
    assert len(rows_of(each.save(tmp_path, "#download-now"))) == 1


@pytest.mark.parametrize("width", [360, 1000])
def test_page_fits_phone_and_desk_and_can_be_read_aloud(visit: Any, survey: Path, width: int) -> None:
    page = visit(viewport={"width": width, "height": 800}).open(survey / "index.html", "?rater=x&plan=0")
    page.click("#start")
    page.wait_for_function("document.getElementById('right').naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    left, right = page.locator("#left").bounding_box(), page.locator("#right").bounding_box()
    assert (right["y"] > left["y"] + left["height"]) == (width < 600)
    spoken = page.locator("main").aria_snapshot()
    prompt = page.text_content("#prompt").replace('"', '\\"')
    assert f'img "Left option for: {prompt}"' in spoken
    assert 'group "Which would you rather use as the logo?"' in spoken
    assert spoken.count('button "No difference"') == 3
    assert "stock" not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens_from_a_file_in_both_schemes(
    visit: Any, tmp_path: Path, draw_system: Draw, encoder: Any, real_shards: Path, scheme: str
) -> None:
    systems = [
        {"name": name, "samples": str(draw_system(tmp_path / name, right=right, count=14))}
        for name, right in (("stock", 0.3), ("tuned", 1.0))
    ]
    path = tmp_path / "eval.json"
    section = {
        "dir": str(tmp_path / "report"),
        "systems": systems,
        "baseline": "stock",
        "shards": str(real_shards),
    }
    path.write_text(json.dumps({"eval": {**section, "bootstrap": 199}}))
    (said,) = evaluate(load_config(EvalConfig, path), encoder())
    each = visit(color_scheme=scheme, viewport={"width": 390, "height": 800})
    page = each.open(tmp_path / "report" / "index.html")
    assert page.text_content(".verdict") == said
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in paper.strip("rgb()").split(",")) < 384) == (scheme == "dark")
    assert 'table "Difference: system minus stock' in page.locator("main").aria_snapshot()
