"""What a prior's training will take, for `--dry-run`: the stage's own loss over a network without numbers."""

from __future__ import annotations

import torch

from crest.embeddings import embeddings_parents
from crest.ledger import without_numbers
from crest.memory import Passes, try_passes
from crest.planning import PlannedDevice, plan, unit_rows
from crest.world import Draw
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch
from prior_train.stage import AT_ONCE, PriorStage


class PlannedPriorStage(PriorStage):
    """The stage without its data."""

    def __init__(self, config: PriorTrainConfig) -> None:
        self.config = config
        self.parents = embeddings_parents(config.data.embeddings)
        self.prior, self.family = self._starting_model()
        self._prepare()

    def example(self, count: int) -> PriorBatch:
        """A batch of the right shape."""
        spec = self.prior.spec
        words = None if spec.text_width is None else torch.randn(count, spec.max_text_len, spec.text_width)
        image_embed, text_embed = (unit_rows(count, spec.image_embed_dim) for _ in range(2))
        return PriorBatch(
            image_embed=image_embed, text_embed=text_embed, text_encodings=words, draw=Draw(0, 0, 0, count)
        )


def passes(config: PriorTrainConfig, device: PlannedDevice, samples: int, accumulation: int) -> Passes:
    """What the prior of a config holds."""
    made: list[PlannedPriorStage] = []

    def build() -> torch.nn.Module:
        # classes are drawn when training begins, and before its memory is taken
        made.append(PlannedPriorStage(config.model_copy(update={"preservation": None})))
        return made[0].model()

    network, stage = without_numbers(build), made[0]
    judged = min(AT_ONCE, config.data.validate_samples)
    return try_passes(
        network,
        lambda: stage.example(samples),
        lambda model, batch: stage.loss(model, batch)[0],
        precision=device.precision,
        device_type=device.device_type,
        accumulation=accumulation,
        judged=lambda: stage.example(judged),
    )


def show_plan(config: PriorTrainConfig) -> None:
    """Print it."""
    print(plan(config, passes))
