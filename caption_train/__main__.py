"""Fine-tune the captioner on the logos that have a description of their own."""

from __future__ import annotations

import sys

from caption_train.config import CaptionTrainConfig
from crest.config import run_command


def check(config: CaptionTrainConfig) -> None:
    """Look whether the inputs exist."""
    from crest.records import read_manifest

    if (config.data.records / "records.jsonl").exists():
        read_manifest(config.data.records, "records", "python -m scraper (make scrape)")
    else:
        read_manifest(config.data.records, "shards", "python -m scraper.pack (make shards)")


def main(config: CaptionTrainConfig) -> None:
    """Train, or go on."""
    from caption_train.stage import CaptionStage
    from crest.loop import fit
    from crest.world import open_world

    world = open_world(config.run.device, config.run.precision)
    mine, micro = world.share(config.optim.batch_size, config.optim.device_batch_size)
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    stage = CaptionStage(config)
    path = fit(
        stage,
        config.run,
        config.optim,
        recipe=recipe,
        world=world,
        accumulation=mine // micro,
        export_best=True,
    )
    if world.is_main:
        print(f"captioner: {stage.publish() or path}")


if __name__ == "__main__":
    sys.exit(run_command("caption_train", CaptionTrainConfig, main, check=check))
