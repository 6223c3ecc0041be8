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
    from clip_train.page import PAGE
    from clip_train.train import train
    from crest.world import open_world

    world = open_world(config.run.device, config.run.precision)
    path = train(config, world)
    if world.is_main:
        print(f"CLIP: {path}; {config.run.dir / PAGE} shows it")
    world.barrier()


if __name__ == "__main__":
    sys.exit(run_command("clip_train", ClipTrainConfig, main, check=check))
