"""Publish a finished CLIP run on a hub: weights that plain OpenCLIP loads, its tokenizer and a model card."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from clip_train.publish_config import PublishConfig
from crest.config import run_command
from crest.errors import ConfigError, RunError

PUBLISHED: Final = "published"
README: Final = "README.md"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check(config: PublishConfig) -> None:
    """Look whether there is something to publish, and a token to publish it with."""
    from crest.checkpoint import locate_weights, read_card
    from crest.hub import token

    if not _NAME.fullmatch(config.hub.repository):
        raise ConfigError(
            f'hub.repository: found "{config.hub.repository}", expected "owner/name"; name one of your own.'
        )
    refused = config.data.run / "refused.weights.json"
    if refused.exists() and not (config.data.run / "weights.json").exists():
        raise RunError(
            f"{config.data.run}: its weights were refused (see report.json), expected promoted ones; train "
            "again with a gentler recipe."
        )
    read_card(locate_weights(config.data.run, "clip"), "clip")
    if config.hub.upload:
        token()


def main(config: PublishConfig) -> None:
    """Write the folder, and upload it."""
    from crest import hub
    from crest.models.clip_architecture import OPEN_CLIP_CONFIG

    folder = write_folder(config)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.1f} MB; look at {README} before others do")
    if not config.hub.upload:
        return
    address = hub.publish(
        folder,
        config.hub.repository,
        private=config.hub.private,
        message=f"CLIP {config.data.run.name}",
        marks=[OPEN_CLIP_CONFIG],
    )
    print(f"published: {address}")


def write_folder(config: PublishConfig) -> Path:
    """Put together what is uploaded.

    Returns:
        a folder with the weights as OpenCLIP names them, open_clip_config.json, the tokenizer's files, what
        adapters learned by itself, and README.md.
    Raises:
        DataError: the shards are others than those of the run.
    """
    from clip_train.model_card import model_card, read_facts
    from clip_train.run_record import read_run
    from crest.adapters import ADAPTER
    from crest.models.clip import load_clip_model
    from crest.models.clip_files import hub_name_of, write_open_clip
    from crest.records import read_json, write_text

    run_dir, repository = config.data.run, config.hub.repository
    run = read_run(run_dir)
    shards = config.data.shards or Path(str(run.config.get("data", {}).get("shards", "")))
    facts = None
    if (shards / "manifest.json").exists():
        run = dataclasses.replace(run, shards=read_json(shards / "manifest.json"))
        facts = read_facts(shards, run)
    model, _, _ = load_clip_model(run_dir)
    folder = config.data.out or run_dir / PUBLISHED
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_open_clip(part, model, home=repository, name=repository.rpartition("/")[2])
    if (run_dir / ADAPTER).exists():
        shutil.copyfile(run_dir / ADAPTER, part / ADAPTER)
    start: dict[str, Any] = run.card.get("recipe", {}).get("model", {})
    base = hub_name_of(start.get("start"), start.get("architecture"), start.get("pretrained"))
    text = model_card(run, facts, config.hub, base=base, tokenizer=_about_tokenizer(model, repository))
    write_text(part / README, text)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _about_tokenizer(model: Any, repository: str) -> str:
    from crest.models.clip_tokenizers import MERGES, HubTokenizer

    if model.spec.bpe_merges is not None:
        return (
            f"Its vocabulary is a short one, which OpenCLIP must be told: `tokenizer = open_clip.tokenizer."
            f'SimpleTokenizer(bpe_path=huggingface_hub.hf_hub_download("{repository}", "{MERGES}"), '
            f"context_length={model.context_length})`.\n\n"
        )
    if isinstance(model.tokenizer, HubTokenizer):
        return "OpenCLIP 2.32 reads this kind of tokenizer with transformers before version 5 only.\n\n"
    return ""


if __name__ == "__main__":
    sys.exit(run_command("clip_train.publish", PublishConfig, main, check=check))
