"""`python -m <room> --help` answers at once, because what is heavy is imported only when there is work."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "crest",
    "scraper",
    "scraper.caption",
    "scraper.lint",
    "scraper.pack",
    "caption_train",
    "caption_train.report",
    "clip_train",
    "clip_train.embed",
    "clip_train.folds",
    "clip_train.publish",
    "prior_train",
    "decoder_train",
    "eval",
    "eval.survey",
    "eval.survey.tally",
    "demo",
    "demo.stock",
    "benchmarks",
)
WITHOUT_CONFIG = ("benchmarks", "demo.stock")
LIMIT_S = 0.5
HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "open_clip",
    "dalle2_pytorch",
    "scipy",
    "accelerate",
    "webdataset",
)

ASK_FOR_HELP = """
import json, runpy, sys
room, heavy = sys.argv[1], sys.argv[2:]
sys.argv = [room, "--help"]
try:
    runpy.run_module(room, run_name="__main__", alter_sys=True)
except SystemExit as status:
    print(json.dumps({"status": status.code or 0, "heavy": [name for name in heavy if name in sys.modules]}))
"""


def cpu_seconds(*words: str, says: str = "") -> float:
    """User and system time of a Python, which is the time on the wall of a machine that does nothing else."""
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=printed)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        assert printed.read().startswith(says)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_within_half_a_second(command: str) -> None:
    took_s: list[float] = []
    while len(took_s) < 3 and min(took_s, default=LIMIT_S + 1) > LIMIT_S:
        took_s.append(cpu_seconds("-m", command, "--help", says="usage: "))
    # On a machine too busy to tell, a command may take twice what pydantic alone takes there and then.
    limit_s = LIMIT_S if min(took_s) <= LIMIT_S else 2 * cpu_seconds("-c", "import pydantic.main")
    assert min(took_s) <= max(LIMIT_S, limit_s), f"python -m {command} --help took {min(took_s):.2f} s"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, command, *HEAVY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout.splitlines()[-1]) == {"status": 0, "heavy": []}


def test_heavy_import_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "slow_room.py").write_text("import sys, scipy\nsys.exit(0)\n")
    ran = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, "slow_room", *HEAVY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout.splitlines()[-1])["heavy"] == ["scipy"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in WITHOUT_CONFIG])
def test_missing_config_is_one_sentence_and_a_failure(command: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", command, "--config", str(tmp_path / "none.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert "none.json: there is no such config file" in ran.stderr
