"""Train the diffusion prior: captions to CLIP image embeddings."""

from __future__ import annotations

import sys

from crest.config import run_command
from prior_train.config import PriorTrainConfig


def check(config: PriorTrainConfig) -> None:
    """Look whether the inputs exist."""
    from crest.records import read_manifest

    read_manifest(config.data.embeddings, "embeddings", "python -m clip_train.embed (make embed)")
    if config.data.shards is not None:
        read_manifest(config.data.shards, "shards", "python -m scraper.pack (make shards)")


def plan(config: PriorTrainConfig) -> None:
    """Print how much memory it takes, and what to change where that does not fit."""
    from prior_train.plan import show_plan

    show_plan(config)


def main(config: PriorTrainConfig) -> None:
    """Train, or go on."""
    from crest.loop import fit
    from crest.world import open_world
    from prior_train.stage import PriorStage
    from prior_train.subjects import made_class_embeddings

    world = open_world(config.run.device, config.run.precision)
    mine, micro = world.share(config.optim.batch_size, config.optim.device_batch_size)
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    if world.is_main:
        made_class_embeddings(config)  # by one process; then all read them
    world.barrier()
    path = fit(
        PriorStage(config), config.run, config.optim, recipe=recipe, world=world, accumulation=mine // micro
    )
    if world.is_main:
        print(f"prior: {path}")


if __name__ == "__main__":
    sys.exit(run_command("prior_train", PriorTrainConfig, main, check=check, plan=plan))
