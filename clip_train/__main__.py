"""Fine-tune an OpenCLIP model on captioned logos."""

from __future__ import annotations

import sys

from clip_train.config import ClipTrainConfig
from crest.config import run_command


def check(config: ClipTrainConfig) -> None:
    """Look whether the inputs exist."""
    from crest.records import read_manifest
    from crest.tars import MADE_BY

    read_manifest(config.data.shards, "shards", MADE_BY)


def main(config: ClipTrainConfig) -> None:
    """Train, or go on."""
    from clip_train.stage import ClipStage
    from crest.loop import fit
    from crest.world import open_world

    world = open_world(config.run.device, config.run.precision)
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    path = fit(ClipStage(config), config.run, config.optim, recipe=recipe, world=world, export_best=True)
    if world.is_main:
        print(f"CLIP: {path}")


if __name__ == "__main__":
    sys.exit(run_command("clip_train", ClipTrainConfig, main, check=check))
