"""Every config that ships loads, its editor schema is fresh, and the folders hold what make asks for."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from configs.make_schema import CLASSES, CONFIGS, SCHEMAS, config_class, config_files, kind_of, schema_text
from crest.config import load_config
from crest.errors import ConfigError

ROOT = CONFIGS.parent
TARGETS = {
    "scrape": "data",
    "captioner": "captioner",
    "caption": "data",
    "caption-report": "captions",
    "caption-lint": "data",
    "shards": "data",
    "verify": "data",
    "clip": "clip",
    "embed": "embed",
    "publish": "publish",
    "prior": "prior",
    "decoder": "decoder_64",
    "generate": "generate",
    "eval": "eval",
    "survey": "survey",
}


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", config_files(), ids=name_of)
def test_config_loads(path: Path) -> None:
    load_config(config_class(kind_of(path)), path)


@pytest.mark.parametrize("path", config_files(), ids=name_of)
def test_config_names_its_schema(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8")).get("$schema")
    assert schema, f"{path} has no $schema; editors then show no help"
    assert (path.parent / schema).resolve() == SCHEMAS / f"{kind_of(path)}.json"


@pytest.mark.parametrize("kind", CLASSES)
def test_schema_is_fresh(kind: str) -> None:
    path = SCHEMAS / f"{kind}.json"
    assert path.exists(), "run make schema"
    assert path.read_text(encoding="utf-8") == schema_text(kind), "run make schema"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(CLASSES)


def referred(schema: dict[str, Any], field: dict[str, Any]) -> Any:
    """A section's own schema; pydantic leaves out a description that equals the section's."""
    return schema.get("$defs", {}).get(field.get("$ref", "").removeprefix("#/$defs/"), {})


@pytest.mark.parametrize("kind", CLASSES)
def test_every_setting_has_a_line_that_an_editor_shows(kind: str) -> None:
    schema = json.loads(schema_text(kind))
    silent = [
        f"{title}.{name}"
        for title, section in [("", schema), *schema.get("$defs", {}).items()]
        for name, field in section.get("properties", {}).items()
        if "description" not in field and "description" not in referred(schema, field)
    ]
    assert silent == []


def test_config_of_no_kind_or_two_is_refused() -> None:
    for name in ("colours.json", "clip_prior.json"):
        with pytest.raises(ConfigError, match="expected exactly one"):
            kind_of(Path(name))


def test_demo_has_a_config_for_every_target() -> None:
    there = {path.stem for path in (CONFIGS / "demo").glob("*.json")}
    assert there >= set(TARGETS.values())


def dry_make(*words: str) -> list[str]:
    """The commands that make would run for the stages, .venv taken as built."""
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")  # of the `make test` that runs this
    ran = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )
    return [" ".join(line.split()) for line in ran.stdout.splitlines() if " -m " in line]


@pytest.mark.parametrize(("target", "name"), TARGETS.items())
def test_target_takes_a_file_a_folder_or_its_default(target: str, name: str) -> None:
    home = "sportslogohistory" if name == "data" else "demo"
    assert f"--config 'configs/{home}/{name}.json'" in dry_make(target)[0]
    assert f"--config 'configs/brand_logos/{name}.json'" in dry_make(target, "CONFIG=configs/brand_logos/")[0]
    assert "--config 'mine.json'" in dry_make(target, "CONFIG=mine.json")[0]


def test_scrape_and_shards_share_one_config() -> None:
    assert dry_make("scrape", "shards", "CONFIG=mine.json", "SET=pack.seed=1 fetch.delay_s=0") == [
        ".venv/bin/python -m scraper --config 'mine.json' --set 'pack.seed=1' --set 'fetch.delay_s=0'",
        ".venv/bin/python -m scraper.pack --config 'mine.json' --set 'pack.seed=1' --set 'fetch.delay_s=0'",
    ]


@pytest.mark.parametrize("target", ["captioner", "clip", "prior", "decoder"])
def test_training_target_runs_under_torchrun_when_asked(target: str) -> None:
    (command,) = dry_make(target, "NPROC=2")
    assert "-m torch.distributed.run --standalone --nproc_per_node 2 -m " in command
    assert "torch.distributed" not in dry_make(target, "NPROC=1")[0]


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (*TARGETS, "demo", "test", "check", "bench", "gpu-check", "stock", "schema", "clean"):
        assert f"  make {target} " in listed
