"""Train one U-Net of the decoder: CLIP image embeddings to pixels."""

from __future__ import annotations

import sys

from crest.config import run_command
from decoder_train.config import DecoderTrainConfig


def check(config: DecoderTrainConfig) -> None:
    """Look whether the inputs exist."""
    from crest.records import read_manifest

    read_manifest(config.data.shards, "shards", "python -m scraper.pack (make shards)")
    read_manifest(config.data.embeddings, "embeddings", "python -m clip_train.embed (make embed)")


def plan(config: DecoderTrainConfig) -> None:
    """Print how much memory it takes, and what to change where that does not fit."""
    from decoder_train.plan import show_plan

    show_plan(config)


def main(config: DecoderTrainConfig) -> None:
    """Train, or go on."""
    from crest.loop import fit
    from crest.world import open_world
    from decoder_train.stage import DecoderStage
    from decoder_train.subjects import made_class_pictures

    world = open_world(config.run.device, config.run.precision)
    mine, micro = world.share(config.optim.batch_size, config.optim.device_batch_size)
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    if world.is_main:
        made_class_pictures(config)  # by one process; then all read them
    world.barrier()
    path = fit(
        DecoderStage(config),
        config.run,
        config.optim,
        recipe=recipe,
        world=world,
        accumulation=mine // micro,
        export_best=config.stop is not None,
    )
    if world.is_main:
        print(f"decoder: {path}")


if __name__ == "__main__":
    sys.exit(run_command("decoder_train", DecoderTrainConfig, main, check=check, plan=plan))
