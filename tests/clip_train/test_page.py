"""A CLIP run's page: from whatever the folder holds, no figure that is not in it, as Chromium shows it."""

import html.parser
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_train.page import write_page
from crest.errors import DataError
from crest.records import write_json, write_jsonl
from crest.tracker import Tracker

CHROMIUM = Path("/usr/bin/chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic"]  # fmt: skip
CONFIG = {
    "run": {"steps": 40, "dir": "x"},
    "data": {"shards": "nowhere"},
    "model": {"mode": "auto", "start": "stock/clip", "loss": "softmax"},
    "optim": {"lr": 0.000123, "batch_size": 16},
    "judge": {"best_by": "r_at_5"},
}
NASTY = '<img src=x onerror="x">&'


def figures(r_at_5: float, spread: float | None = None) -> dict[str, float]:
    """Held-out figures around one R@5."""
    found = {"samples": 37.0, "chance_r_at_5": 0.1351, "chance_mean_rank": 19.0, "loss": 2.5 - r_at_5}
    found |= {"r_at_5": r_at_5, "text_to_image_r_at_5": r_at_5 + 0.01, "text_to_image_mean_rank": 9.25}
    if spread is not None:
        found |= {"r_at_5_low": r_at_5 - spread, "r_at_5_high": r_at_5 + spread}
    return found


def rows(*validated: tuple[int, dict[str, float]]) -> list[dict[str, float]]:
    held_out = [{"step": step, **{f"val/{name}": v for name, v in own.items()}} for step, own in validated]
    trained = [{"step": step, "train/loss": 3 - 0.01 * step, "train/lr": 1e-4} for step in (10, 20)]
    return [*held_out, *trained]  # type: ignore[list-item]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 40 steps that was stopped, or looked at, after its second validation."""
    folder = tmp_path / "run"
    write_json(folder / "config.json", CONFIG)
    write_jsonl(folder / "metrics.jsonl", rows((0, figures(0.3)), (10, figures(0.4)), (20, figures(0.45))))
    return folder


def finish(folder: Path, **report: Any) -> None:
    """What the end of a run adds; the exported weights are those of step 10."""
    card = {"kind": "clip", "spec": {"architecture": "ViT-B-32"}, "parents": {"shards": "s" * 16}, "step": 10}
    best = {"by": "r_at_5", "value": 0.4, "step": 10}
    world = {"processes": 1, "device": "cpu", "precision": "fp32"}
    write_json(folder / "weights.json", {**card, "best": best, "world": world, "sha256": "ab" * 32})
    if report:
        write_json(folder / "report.json", report)


def words(folder: Path) -> str:
    """The texts of the page, as one line."""
    page = write_page(folder).read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).replace("\u00a0", " ").split())


def test_a_run_that_goes_on_says_so_and_shows_what_there_is(run_dir: Path) -> None:
    told = words(run_dir)
    assert "Not finished: of 40 steps, step 20 was recorded last; there are no exported weights yet." in told
    assert (
        "The averaged weights reach so far a held-out R@5 of 45.0 %; before, 30.0 %, by chance 13.5 %" in told
    )
    assert "so far" in told
    assert "it got" not in told  # no intervals, no verdict


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    told = words(tmp_path)
    assert "nothing is recorded yet" in told
    assert "Nothing was validated yet." in told


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: there is no such file"):
        write_page(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_finished_run_shows_the_weights_that_it_exported(run_dir: Path) -> None:
    finish(run_dir)
    told = words(run_dir)
    assert "The exported weights reach a held-out R@5 of 40.0 %; before, 30.0 %" in told  # step 10, not 20
    assert "Not finished" not in told
    assert "best R@5 40.0 % at step 10" in told
    assert "weights abababababababab" in told


def test_the_report_speaks_of_what_was_exported(run_dir: Path) -> None:
    before, after = figures(0.31, 0.02), figures(0.52, 0.03)
    finish(run_dir, mode="lora", why="few pairs", pairs=1234, before=before, after=after, stopped_early_at=20)
    told = words(run_dir)
    assert (
        "of 52.0 % (95 % interval 49.0 % to 55.0 %); before, 31.0 % (95 % interval 29.0 % to 33.0 %)" in told
    )
    assert "The intervals lie apart: it got better." in told
    assert "lora: few pairs" in told
    assert "pairs 1,234" in told
    assert "at step 20, no better for long enough" in told


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.01, 0.2, "it got better"), (-0.3, -0.1, "it got worse"), (-0.1, 0.2, "no change is shown")],
)
def test_the_change_on_the_same_pairs_decides(run_dir: Path, low: float, high: float, says: str) -> None:
    gain = {"r_at_5": (low + high) / 2, "r_at_5_low": low, "r_at_5_high": high}
    finish(run_dir, before=figures(0.3, 0.2), after=figures(0.4, 0.2), gain=gain)
    told = words(run_dir)
    assert f"{100 * low:+.1f} points to {100 * high:+.1f} points): {says}" in told
    assert "change, same pairs" in told


def test_intervals_that_overlap_show_no_change(run_dir: Path) -> None:
    finish(run_dir, before=figures(0.3, 0.2), after=figures(0.4, 0.2))
    assert "The intervals overlap: on so many held-out logos no change is shown." in words(run_dir)


def test_a_refusal_comes_first_and_nothing_is_called_exported(run_dir: Path) -> None:
    finish(run_dir, refused=f"drift 0.4 exceeds judge.max_drift 0.2 {NASTY}", before=figures(0.3), after={})
    (run_dir / "weights.json").rename(run_dir / "refused.weights.json")
    page = write_page(run_dir).read_text(encoding="utf-8")
    assert '<h1>CLIP run run</h1><p class="verdict worse">Refused: drift 0.4 exceeds' in page
    assert NASTY not in page
    told = words(run_dir)
    assert "The refused weights reach a held-out R@5 of 40.0 %" in told
    assert "xported" not in told
    assert "Not finished" not in told


def test_every_row_has_its_chance_level_and_the_better_figure_is_bold(run_dir: Path) -> None:
    finish(run_dir, before=figures(0.31), after=figures(0.52))
    page = write_page(run_dir).read_text(encoding="utf-8").replace("\u00a0", " ")
    line = re.search(r'<th scope="row">R@5, caption finds its logo</th>(.*?)</tr>', page)
    assert line
    cells = re.findall(r'<td class="number">(.*?)</td>', line[1])
    assert cells == ["32.0 %", "<b>53.0 %</b>", "13.5 %"]
    assert '<th scope="row">mean rank, caption finds its logo</th><td class="number">9.2</td>' in page
    line = re.search(r'<th scope="row">held-out loss</th>(.*?)</tr>', page)
    assert line
    assert "<b>1.98</b>" in line[1]  # lower is better


def test_figures_that_this_page_does_not_know_are_shown_by_name(run_dir: Path) -> None:
    finish(run_dir, before={**figures(0.3), "novel": 0.125}, after={**figures(0.4), "novel": 0.25})
    assert "novel 0.125 0.25 –" in words(run_dir)


def test_forgetting_and_interpolation_are_told_with_the_exported_share(run_dir: Path) -> None:
    wise = [{"alpha": a, "r_at_5": 0.3 + 0.1 * a, "drift": 0.2 * a} for a in (1.0, 0.0, 0.5)]
    finish(run_dir, wise=wise, alpha=0.5, probe={"drift": 0.0625, "image_cosine": 0.875})
    told = words(run_dir)
    assert "drift 0.0625" in told
    assert "image cosine 0.875" in told
    assert "0 30.0 % 0 0.5 exported 35.0 % 0.1 1 40.0 % 0.2" in told


def test_tuned_weights_alone_are_no_interpolation(run_dir: Path) -> None:
    finish(run_dir, wise=[{"alpha": 1.0, "metrics": {"r_at_5": 0.4}}], alpha=1.0)
    told = words(run_dir)
    assert "What it forgot" not in told
    assert "exported weights of step 10 best" in told
    wise = [{"alpha": a, "metrics": {"r_at_5": 0.4, "drift": a}} for a in (0.25, 1.0)]
    finish(run_dir, wise=wise, alpha=0.25)
    told = words(run_dir)
    assert "exported weights of step 10, 0.25 of the way from the start to them" in told
    assert "0.25 exported 40.0 % 0.25 1 40.0 % 1" in told


def test_what_was_left_out_is_counted_by_reason(run_dir: Path, tmp_path: Path) -> None:
    write_json(
        tmp_path / "shards" / "manifest.json", {"dropped": {"no_caption": 1200}, "counts": {"train": 77}}
    )
    write_json(run_dir / "config.json", {**CONFIG, "data": {"shards": str(tmp_path / "shards")}})
    finish(run_dir, dropped={"captions_cut": 3})
    told = words(run_dir)
    assert "captions cut 3 training" in told
    assert "no caption 1,200 pack" in told
    assert "pairs 77" in told


def test_a_figure_that_is_not_finite_breaks_no_plot(run_dir: Path) -> None:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    (run_dir / "metrics.jsonl").write_text(
        lines + '{"step": 30, "train/loss": NaN, "val/r_at_5": Infinity}\n', encoding="utf-8"
    )
    page = write_page(run_dir).read_text(encoding="utf-8")
    assert not re.search(r'points="[^"]*(nan|inf)', page)


def test_the_newest_grid_is_on_the_page(run_dir: Path) -> None:
    tracker = Tracker(run_dir, 20)
    tracker.images(20, {"retrieval": torch.rand(1, 3, 8, 1500)})
    tracker.close()
    finish(run_dir, preview_captions=[f"a red lion {NASTY}"])
    page = write_page(run_dir).read_text(encoding="utf-8")
    assert 'alt="retrieval at step 20" width="1100"' in page
    assert "a red lion &lt;img" in page


def numbers_of(value: Any) -> Iterator[float]:
    """Every number of a JSON value, those of its texts too."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers_of(key)
            yield from numbers_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers_of(one)
    elif isinstance(value, str):
        yield from map(float, re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, (int, float)):
        yield float(value)


def test_no_figure_of_a_table_is_missing_from_the_files(run_dir: Path) -> None:
    finish(run_dir, before=figures(0.31, 0.02), after=figures(0.52, 0.03), probe={"drift": 0.0625}, pairs=51)
    files = [run_dir / name for name in ("config.json", "weights.json", "report.json")]
    known = set(numbers_of([json.loads(path.read_text(encoding="utf-8")) for path in files]))
    known |= {round(100 * value, 1) for value in known} | {round(value, 1) for value in known}
    known |= {float(f"{value:.4g}") for value in known} | {5.0, 9.2}  # of R@5; 9.25 to one decimal
    page = write_page(run_dir).read_text(encoding="utf-8")
    cells = " ".join(re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page))
    found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", re.sub(r"<[^>]*>", " ", cells))
    assert found
    assert [number for number in found if float(number) not in known] == []


class Balance(html.parser.HTMLParser):
    """Notes tags that are not closed, pictures that say nothing and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if not str(values.get("src", "data:")).startswith("data:") or "href" in values:
            self.wrong.append(f"{tag} that asks for something")
        if tag == "img" and not values.get("alt"):
            self.wrong.append("img without alt")
        if tag == "svg" and not values.get("aria-label") and "aria-hidden" not in values:
            self.wrong.append("svg that says nothing")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")


@pytest.fixture
def whole(run_dir: Path) -> Path:
    """A finished run with everything that a page can show."""
    tracker = Tracker(run_dir, 20)
    tracker.images(20, {"retrieval": torch.rand(1, 3, 64, 384)})
    tracker.close()
    wise = [{"alpha": a, "r_at_5": 0.3 + 0.1 * a, "drift": 0.2 * a} for a in (0.0, 0.5, 1.0)]
    finish(
        run_dir, mode="lora", why=f"few pairs {NASTY}", pairs=51, before=figures(0.31, 0.02), wise=wise,
        after=figures(0.52, 0.03), gain=figures(0.2, 0.1), alpha=0.5, probe={"drift": 0.1, NASTY: 1},
        dropped={NASTY: 2}, preview_captions=[NASTY], stopped_early_at=None,
    )  # fmt: skip
    return run_dir


def test_the_page_is_whole_and_asks_for_nothing(whole: Path) -> None:
    page = write_page(whole).read_text(encoding="utf-8")
    reader = Balance()
    reader.feed(page)
    assert (reader.wrong, reader.open) == ([], [])
    assert NASTY not in page
    assert not re.search(r"https?://|<script|@import|url\(", page)


def test_the_command_draws_the_page_of_a_configs_run(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"data": {"shards": "nowhere"}, "model": {"start": "stock/clip"}, "optim": CONFIG["optim"]}
    assert run_page({**config, "run": {"dir": str(run_dir), "steps": 40}}, tmp_path) == 0
    assert f"page: {run_dir / 'index.html'}" in capsys.readouterr().out
    assert "CLIP run run" in (run_dir / "index.html").read_text(encoding="utf-8")
    assert run_page({**config, "run": {"dir": str(tmp_path / "none"), "steps": 40}}, tmp_path) != 0
    assert "config.json: there is no such file" in capsys.readouterr().err


def run_page(config: dict[str, Any], folder: Path) -> int:
    from clip_train import page
    from clip_train.config import ClipTrainConfig
    from crest.config import run_command

    path = folder / "clip.json"
    path.write_text(json.dumps(config, default=str), encoding="utf-8")
    argv = ["--config", str(path)]
    return run_command("clip_train.page", ClipTrainConfig, page.main, check=page.check, argv=argv)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(
                f"{CHROMIUM}: is missing, and CI must test the pages; apt-get install chromium first."
            )
        pytest.skip(f"{CHROMIUM} is missing; apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS, timeout=120_000)
        yield started
        started.close()


@pytest.mark.browser
def test_chromium_shows_it_in_light_and_dark_and_on_a_phone(browser: Any, whole: Path) -> None:
    grounds = []
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 375)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        page, wrong, asked = context.new_page(), [], []
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.on(
            "console", lambda said, wrong=wrong: wrong.append(said.text) if said.type == "error" else None
        )
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(write_page(whole).as_uri())
        assert page.title() == "CLIP run run"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(img => img.complete && img.naturalWidth > 0)")
        assert page.locator("svg[role=img]").count() >= 4
        assert all(
            box["width"] > 100 for box in (one.bounding_box() for one in page.locator("svg[role=img]").all())
        )
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert wrong == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        context.close()
    assert grounds[0] == grounds[2] != grounds[1]
