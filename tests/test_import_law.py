"""Who may import whom: rooms meet only through files, and each heavy library has one door, a file or a few.

Walks every import of every file by ast, those inside functions too.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("scraper", "caption_train", "clip_train", "prior_train", "decoder_train", "eval")
MAY_IMPORT_ROOMS = ("demo/", "configs/make_schema.py", "benchmarks/", "tests/")
FOREIGN_BANNED = ("utils", "helpers", "common", "misc")
MAX_LINES = 400

DOORS = {
    "webdataset": ("crest/tars.py",),
    "accelerate": ("crest/world.py",),
    "bitsandbytes": ("crest/optimizers.py",),
    "tensorboard": ("crest/tracker.py",),
    "torch.utils.tensorboard": ("crest/tracker.py",),
    "open_clip": (
        "crest/models/clip.py",
        "crest/models/clip_architecture.py",
        "crest/models/clip_files.py",
        "crest/models/clip_tokenizers.py",
        "crest/models/clip_towers.py",
    ),
    "dalle2_pytorch": ("crest/models/prior.py", "crest/models/decoder.py", "crest/models/fast.py"),
    "transformers": (
        "crest/models/captioner.py",
        "crest/models/published_captioner.py",
        "crest/models/hub_captioner.py",
        "crest/models/clip_tokenizers.py",
    ),
    "requests": ("scraper/fetch.py",),
    "urllib3": ("scraper/fetch.py", "scraper/wire.py", "scraper/connections.py"),
    "bs4": ("scraper/sites/",),
    "huggingface_hub": ("crest/hub.py",),
    "resvg_py": ("scraper/svg.py",),
    "ray": ("scraper/executor.py",),
    "pyarrow": ("scraper/sites/url_table.py",),
    "sacrebleu": ("caption_train/report.py",),
    "instaloader": ("scraper/sites/instagram.py",),
}
# Benchmarks measure Crest against the upstream code, tests check a door against the library behind it.
NO_DOORS = ("benchmarks/", "tests/")


def python_files() -> list[str]:
    """Every Python file that git tracks or would track, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return sorted(name for name in set(listed.stdout.split("\n")) if name and (ROOT / name).exists())
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
    return sorted(name for name in found if not name.startswith((".venv/", "out/", "build/")))


def imports(source: str, file: str) -> Iterator[tuple[str, int]]:
    """Yield (absolute dotted name, line) of every import, also import_module("literal")."""
    package = PurePosixPath(file).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def violations(source: str, file: str) -> list[str]:
    """Every sentence that can be said against a file's imports."""
    room = file.partition("/")[0]
    said = []
    for name, line in imports(source, file):
        top = name.partition(".")[0]
        if top in ROOMS and top != room and not file.startswith(MAY_IMPORT_ROOMS):
            said.append(f"{file}:{line}: imports the room {top}; rooms meet only through files")
        if room in ("crest", *ROOMS) and top in ("demo", "benchmarks", "configs", "tests"):
            said.append(f"{file}:{line}: imports {top}; only demo and the tests look at the whole house")
        for library, allowed in DOORS.items():
            if within(name, library) and not file.startswith((*allowed, *NO_DOORS)):
                said.append(f"{file}:{line}: imports {library}; only {', '.join(allowed)} may")
    return said


@pytest.mark.parametrize("file", python_files())
def test_file_keeps_the_import_law(file: str) -> None:
    assert violations((ROOT / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize("file", python_files())
def test_file_is_short_and_named_for_what_it_holds(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{file} has {lines} lines; past {MAX_LINES}, a file is two"
    assert not set(PurePosixPath(file).with_suffix("").parts) & set(FOREIGN_BANNED)


@pytest.mark.parametrize(("library", "door"), [(name, door) for name in DOORS for door in DOORS[name]])
def test_a_door_is_used(library: str, door: str) -> None:
    """A file that may import a library and does not is no door: the list says who knows it, exactly."""
    files = [file for file in python_files() if file.startswith(door)]
    found = (name for file in files for name, _ in imports((ROOT / file).read_text(encoding="utf-8"), file))
    assert any(within(name, library) for name in found)


def test_every_room_is_looked_at() -> None:
    tops = {file.partition("/")[0] for file in python_files()}
    assert tops >= {*ROOMS, "crest", "demo", "benchmarks", "tests", "configs"}


@pytest.mark.parametrize(
    ("file", "source", "says"),
    [
        ("eval/score.py", "import scraper.pack", "imports the room scraper"),
        ("eval/score.py", "from scraper.pack import split", "imports the room scraper"),
        (
            "eval/score.py",
            "def f():\n    from clip_train import stage",
            "score.py:2: imports the room clip_train",
        ),
        ("crest/loop.py", "from prior_train.stage import PriorStage", "imports the room prior_train"),
        ("crest/loop.py", "import importlib\nimportlib.import_module('eval')", "imports the room eval"),
        ("crest/loop.py", "from demo import league", "imports demo"),
        ("eval/score.py", "import open_clip", "imports open_clip; only crest/models/clip.py, "),
        ("crest/models/clip_towers.py", "import transformers", "only crest/models/captioner.py, "),
        ("crest/loop.py", "from torch.utils.tensorboard import SummaryWriter", "only crest/tracker.py may"),
        ("crest/loop.py", "from torch.utils import tensorboard", "only crest/tracker.py may"),
        ("scraper/crawl.py", "import bs4", "only scraper/sites/ may"),
        ("demo/site.py", "import requests.adapters", "only scraper/fetch.py may"),
        ("eval/survey/page.py", "from ...scraper import fetch", "imports the room scraper"),
    ],
)
def test_breach_is_found(file: str, source: str, says: str) -> None:
    assert says in "\n".join(violations(source, file))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("eval/score.py", "from eval.metrics import alignment\nfrom crest import images\nimport torch"),
        ("eval/survey/page.py", "from . import tally\nfrom ..metrics import alignment"),
        ("demo/steps.py", "from scraper.crawl import crawl"),
        ("crest/tars.py", "import webdataset"),
        ("scraper/sites/league.py", "from bs4 import BeautifulSoup"),
        ("crest/models/fast.py", "from dalle2_pytorch.dalle2_pytorch import Attention"),
        ("crest/models/clip_tokenizers.py", "def f():\n    from transformers import AutoTokenizer"),
    ],
)
def test_lawful_import_passes(file: str, source: str) -> None:
    assert violations(source, file) == []
