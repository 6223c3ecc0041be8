"""docs/paper.md names files and functions that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLACES = sorted(
    set(re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", (ROOT / "docs/paper.md").read_text("utf-8")))
)


def test_the_table_is_read() -> None:
    assert ("crest/diffusion/learned_variance.py", "hybrid_loss") in PLACES


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_every_place_of_the_paper_table_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    if not name:
        return
    scope: ast.Module | ast.stmt = ast.parse((ROOT / file).read_text("utf-8"))
    for part in name.split("."):
        assert isinstance(scope, ast.Module | ast.ClassDef)
        named = (ast.FunctionDef, ast.ClassDef)
        found = [one for one in scope.body if isinstance(one, named) and one.name == part]
        assert found, f"{file} has no {name}"
        scope = found[0]
