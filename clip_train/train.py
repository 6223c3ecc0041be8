"""One training from config to report: what `python -m clip_train` does once and each fold does again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from clip_train.config import ClipTrainConfig
from clip_train.finish import finish
from clip_train.memory import check_memory
from clip_train.stage import ClipStage
from crest.loop import fit
from crest.pixels import Pictures
from crest.world import World


def train(
    config: ClipTrainConfig,
    world: World,
    *,
    pictures: tuple[Pictures, Pictures] | None = None,
    activations: Path | None = None,
    **recipe: Any,
) -> Path:
    """Train, or go on; then choose what is kept, and report. Processes part here: only the first reports.

    Args:
        config: of the run.
        world: this process and the others.
        pictures: train and val pictures, where they are not the shards' own splits.
        activations: folder for those that a mode keeps; by default the one beside the shards.
        recipe: what makes this run what it is, beyond its config.
    Returns:
        the exported weights.
    Raises:
        RefusedError: weights that moved too far from what they knew; the report says so too.
        DeviceError: a batch that does not fit.
    """
    stage = ClipStage(config, world, pictures, activations)
    check_memory(stage.model().to(world.device), next(stage.batches("train", world, 0)), world)
    if world.is_main:
        print(f"{config.run.dir}: {stage.told()}", file=sys.stderr)
    told = config.model_dump(mode="json", exclude={"schema_"}) | recipe
    weights = fit(stage, config.run, stage.optim, recipe=told, world=world, export_best=True)
    if world.is_main:
        finish(stage, config.run.dir, world)
    return weights
