"""Write the JSON schema of every kind of config file to configs/schema, for editors: `make schema`.

The one script outside demo that looks into all rooms; it imports their config.py and nothing else of theirs.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from crest.config import FileConfig
from crest.errors import ConfigError
from crest.records import write_text

CONFIGS = Path(__file__).resolve().parent
SCHEMAS = CONFIGS / "schema"

# A config's kind is a word of its file name: decoder_64.json is a decoder's, reference_clip.json a clip's.
CLASSES = {
    "scraper": "scraper.config.ScraperConfig",
    "captioner": "caption_train.config.CaptionTrainConfig",
    "captions": "caption_train.report_config.CaptionReportConfig",
    "clip": "clip_train.config.ClipTrainConfig",
    "embed": "clip_train.config.EmbedConfig",
    "publish": "clip_train.publish_config.PublishConfig",
    "prior": "prior_train.config.PriorTrainConfig",
    "decoder": "decoder_train.config.DecoderTrainConfig",
    "generate": "crest.generate_config.GenerateConfig",
    "eval": "eval.config.EvalConfig",
    "survey": "eval.survey.config.SurveyConfig",
    "demo": "demo.config.DemoConfig",
}
_KINDS = {"data": "scraper", **{kind: kind for kind in CLASSES if kind != "scraper"}}


def kind_of(path: Path) -> str:
    """What kind of config a file is, by the words of its name.

    Raises:
        ConfigError: no word of the name, or several, are a kind.
    """
    kinds = [kind for kind in map(_KINDS.get, path.stem.split("_")) if kind]
    if len(kinds) != 1:
        expected = ", ".join(_KINDS)
        raise ConfigError(
            f"{path}: its name holds {len(kinds)} of {expected}, expected exactly one; rename it."
        )
    return kinds[0]


def config_class(kind: str) -> type[FileConfig]:
    """The class that reads configs of this kind."""
    module, _, name = CLASSES[kind].rpartition(".")
    found: type[FileConfig] = getattr(importlib.import_module(module), name)
    assert issubclass(found, FileConfig)
    return found


def schema_text(kind: str) -> str:
    """The JSON schema of one kind, as it must stand in configs/schema/<kind>.json."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **config_class(kind).model_json_schema(by_alias=True),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def config_files() -> list[Path]:
    """Every config that ships."""
    return sorted(path for path in CONFIGS.rglob("*.json") if SCHEMAS not in path.parents)


def main() -> None:
    """Write every schema and remove those of kinds that are no more."""
    for kind in CLASSES:
        write_text(SCHEMAS / f"{kind}.json", schema_text(kind))
    for path in SCHEMAS.glob("*.json"):
        if path.stem not in CLASSES:
            path.unlink()
    print(f"{SCHEMAS}: {len(CLASSES)} schemas")


if __name__ == "__main__":
    main()
