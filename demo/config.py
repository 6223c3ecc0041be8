"""What can be turned in the demo: its world, its prompts, and where the configs of its steps lie.

Describes only. The steps' own settings stay in their own files; `place.changes` reaches into them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import Field

from crest.config import Config, FileConfig, load_config
from crest.records import read_json

C = TypeVar("C", bound=FileConfig)

HOME: Final = "out/demo"
"""The working folder that the configs in configs/demo name; another `place.dir` takes its place in them."""
SYSTEMS: Final = ("stock", "tuned")
"""What the page sets side by side, by the names that the steps' configs give them."""
STOCK: Final = "stock/"
"""How configs name the shipped weights; another `place.stock` takes its place in them."""


class PlaceConfig(Config):
    """Where the demo works and what its steps read."""

    dir: Path = Path(HOME)
    """Working folder; everything that the demo writes lies in it."""
    configs: Path = Path("configs/demo")
    """Folder with one config a step: data.json, captioner.json, clip.json, ..."""
    stock: str = "stock"
    """Folder of the stock weights; "stock" takes those that ship."""
    changes: dict[str, tuple[str, ...]] = Field(default={})
    """Settings changed in a step's config: its file name without .json -> section.field=value, any number."""


class WorldConfig(Config):
    """The world that the demo's site shows."""

    seed: int = 0
    """Seed of the world: other clubs, colours and captions."""
    leagues: int = Field(default=12, ge=1)
    """Leagues on the site."""
    clubs_per_league: int = Field(default=42, ge=1)
    """Clubs in each league; about five logos a club."""


class PromptsConfig(Config):
    """The held-out prompts that both models draw."""

    count: int = Field(default=120, ge=2)
    """How many; each asks for a combination that is in no training data."""
    seed: int = 0
    """Seed of their choice."""


class ReportConfig(Config):
    """The one page."""

    shown: int = Field(default=24, ge=1)
    """Prompts shown side by side: the first ones, nothing picked by hand."""
    bootstrap: int = Field(default=9999, ge=99)
    """Resamples behind each interval."""
    seed: int = 0
    """Seed of the resampling."""


class DemoConfig(FileConfig):
    """The main job."""

    place: PlaceConfig = PlaceConfig()
    """Where."""
    world: WorldConfig = WorldConfig()
    """Which site."""
    prompts: PromptsConfig = PromptsConfig()
    """Which prompts."""
    report: ReportConfig = ReportConfig()
    """What is shown."""


def step_path(config: DemoConfig, name: str) -> Path:
    """The file of a step's config."""
    return config.place.configs / f"{name}.json"


def step_overrides(config: DemoConfig, name: str) -> list[str]:
    """What the demo changes in a step's config: folders that lie elsewhere, and `place.changes`."""
    overrides = []
    values = read_json(step_path(config, name))
    for section, fields in values.items() if isinstance(values, dict) else ():
        for field, value in fields.items() if isinstance(fields, dict) else ():
            moved = _moved(value, config.place)
            if moved != value:
                overrides.append(f"{section}.{field}={json.dumps(moved)}")
    return [*overrides, *config.place.changes.get(name, ())]


def _moved(value: Any, place: PlaceConfig) -> Any:
    if isinstance(value, dict):
        return {key: _moved(inner, place) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, place) for inner in value]
    if isinstance(value, str):
        if value == HOME or value.startswith(f"{HOME}/"):
            return f"{place.dir}{value.removeprefix(HOME)}"
        if value.startswith(STOCK):
            return f"{place.stock}/{value.removeprefix(STOCK)}"
    return value


def load_step(config: DemoConfig, name: str, config_class: type[C], *more: str) -> C:
    """A step's config as the demo runs it.

    Args:
        name: its file, without .json.
        more: further overrides, the last to be applied.
    """
    path = step_path(config, name)
    if not path.exists():
        return load_config(config_class, path)  # says what is missing
    return load_config(config_class, path, [*step_overrides(config, name), *more])


def stock_named(value: Any) -> set[str]:
    """The stock weights that a config's values name, for instance {"stock/clip"}."""
    if isinstance(value, Mapping):
        return {name for inner in value.values() for name in stock_named(inner)}
    if isinstance(value, (list, tuple)):
        return {name for inner in value for name in stock_named(inner)}
    return {value} if isinstance(value, str) and value.startswith(STOCK) else set()
