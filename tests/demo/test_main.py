"""`python -m demo` from a site to the page, on weights so small that it takes a minute, and interrupted."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crest.records import read_json
from demo.steps import STEPS

ROOT = Path(__file__).resolve().parents[2]
FEW_STEPS = ["run.steps=2", "optim.batch_size=4"]
CHANGES = {
    "captioner": FEW_STEPS,
    "clip": FEW_STEPS,
    "prior": FEW_STEPS,
    "decoder_64": [*FEW_STEPS, "model.preview_steps=2", "model.sketch_steps=1"],
    "generate_stock": ["draw.steps=2", "draw.prior_steps=2"],
    "generate": ["draw.steps=2", "draw.prior_steps=2"],
    "eval": ["eval.bootstrap=99"],
}


def write_tiny_stock(folder: Path) -> None:
    found = importlib.util.spec_from_file_location("tiny_stock", Path(__file__).with_name("tiny_stock.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    module.write_tiny_stock(folder)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The tiny demo's command line, with further settings."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_stock(folder / "stock")

    def words(*more: str) -> list[str]:
        settings = [
            f"place.dir={folder / 'out'}",
            f"place.stock={folder / 'stock'}",
            "world.leagues=1",
            "world.clubs_per_league=14",
            "prompts.count=4",
            "report.bootstrap=99",
            *(f"place.changes.{name}={json.dumps(changes)}" for name, changes in CHANGES.items()),
            *more,
        ]
        return [sys.executable, "-m", "demo", *(word for setting in settings for word in ("--set", setting))]

    return words


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def out(words: list[str]) -> Path:
    setting = next(word for word in words if word.startswith("place.dir="))
    return Path(setting.partition("=")[2])


@pytest.mark.slow
def test_demo_goes_on_after_an_interruption_and_ends_with_the_page(command: Callable[..., list[str]]) -> None:
    folder = out(command())
    with subprocess.Popen(
        command(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/13]"):
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                break
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted in captioner; run make demo again to go on"
    ran = run(command())
    assert ran.returncode == 0, ran.stderr
    assert "going on; 1 of 13 steps were finished before" in ran.stdout
    assert "[1/13]" not in ran.stdout
    assert f"the page is {folder / 'report' / 'index.html'}" in ran.stdout
    metrics = read_json(folder / "report" / "metrics.json")
    assert metrics["prompts"] == 4
    assert all(metrics[f"seconds.{step.name}"] > 0 for step in STEPS)
    assert metrics["seconds.total"] == pytest.approx(
        sum(metrics[f"seconds.{step.name}"] for step in STEPS), abs=0.1
    )
    assert (
        metrics["dropped.http_404"] == metrics["dropped.truncated"] == metrics["dropped.html_not_image"] == 1
    )
    for name in ("survey/index.html", "reports/tuned_against_stock/index.html", "report/demo.png"):
        assert (folder / name).exists()


@pytest.mark.slow
def test_finished_demo_says_so_within_five_seconds(command: Callable[..., list[str]]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run(command())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # other jobs do not count
    assert ran.returncode == 0, ran.stderr
    assert "the demo is finished" in ran.stdout
    assert "The tuned model draws" in ran.stdout
    assert took_s < 3


@pytest.mark.slow
def test_changed_setting_starts_afresh_from_its_step_only(command: Callable[..., list[str]]) -> None:
    ran = run(command("prompts.count=5"))
    assert ran.returncode == 0, ran.stderr
    assert "prompts changed since generate ran; starting afresh: generate, eval, survey, report" in ran.stdout
    assert [line[1:3].rstrip("/") for line in ran.stdout.splitlines() if "…" in line and line[0] == "["] == [
        "10",
        "11",
        "12",
        "13",
    ]
    assert read_json(out(command()) / "report" / "metrics.json")["prompts"] == 5


def test_dry_run_checks_the_steps_configs_and_runs_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "demo", "--dry-run", "--set", f"place.dir={tmp_path / 'out'}"]
    typo = run([*words, "--set", f"place.stock={tmp_path}"])
    assert typo.returncode == 1
    assert "the stock weights are not there" in typo.stderr
    assert '"leagues": 12' in typo.stdout
    assert not (tmp_path / "out").exists()


def test_typo_in_the_config_of_a_late_step_is_told_before_anything_runs(tmp_path: Path) -> None:
    for name in ("clip", "prior", "decoder_64", "captioner", "reference_clip"):
        (tmp_path / "stock" / name).mkdir(parents=True)
        (tmp_path / "stock" / name / "weights.safetensors").write_bytes(b"")
    settings = (
        f"place.dir={tmp_path / 'out'}",
        f"place.stock={tmp_path / 'stock'}",
        'place.changes.decoder_64=["optim.warmup_step=1"]',
    )
    words = [sys.executable, "-m", "demo", *(word for setting in settings for word in ("--set", setting))]
    ran = run(words)
    assert ran.returncode == 1
    assert "optim.warmup_step is not a setting; did you mean optim.warmup_steps?" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_captioners_that_the_page_does_not_know_are_told_before_anything_runs(tmp_path: Path) -> None:
    systems = '[{"name": "stock", "weights": "stock/captioner"}]'
    changes = json.dumps([f"report.systems={systems}"])
    words = ["--set", f"place.dir={tmp_path / 'out'}", "--set", f"place.changes.captions={changes}"]
    ran = run([sys.executable, "-m", "demo", *words])
    assert ran.returncode == 1
    assert "report.systems are stock, expected stock and tuned among them" in ran.stderr
    assert not (tmp_path / "out").exists()
