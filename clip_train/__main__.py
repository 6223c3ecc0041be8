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
    """Train, or go on; then choose what is kept, and report."""
    from clip_train.finish import finish
    from clip_train.memory import check_memory
    from clip_train.stage import ClipStage
    from crest.loop import fit
    from crest.world import open_world

    world = open_world(config.run.device, config.run.precision)
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    stage = ClipStage(config, world)
    first = next(stage.batches("train", world, 0))
    check_memory(stage.model().to(world.device), first, world)
    if world.is_main:
        print(f"{config.run.dir}: {stage.told()}", file=sys.stderr)
    path = fit(stage, config.run, stage.optim, recipe=recipe, world=world, export_best=True)
    if world.is_main:
        page = finish(stage, config.run.dir, world)
        print(f"CLIP: {path}; {page} shows it")
    world.barrier()


if __name__ == "__main__":
    sys.exit(run_command("clip_train", ClipTrainConfig, main, check=check))
