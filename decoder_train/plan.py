"""What a decoder's training will take, for `--dry-run`: the stage's own loss, a network without numbers."""

from __future__ import annotations

import torch

from crest.embeddings import embeddings_parents
from crest.ledger import without_numbers
from crest.memory import Passes, try_passes
from crest.planning import PlannedDevice, plan, unit_rows
from crest.world import Draw
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch
from decoder_train.stage import SHOWN_PX, DecoderStage


class PlannedDecoderStage(DecoderStage):
    """The stage without its data."""

    def __init__(self, config: DecoderTrainConfig) -> None:
        # what is compiled has no other tensors, and compiling takes minutes
        self.config = config.model_copy(update={"model": config.model.model_copy(update={"compiled": False})})
        self.parents = embeddings_parents(config.data.embeddings)
        self.decoder, self.family = self._starting_model()
        self._prepare()

    @property
    def crop_px(self) -> int:
        """Side of what a batch holds of each picture."""
        return self.config.model.crop_px or self.decoder.spec.side_px

    def example(self, count: int) -> DecoderBatch:
        """A batch of the right shape."""
        spec, side_px = self.decoder.spec, self.crop_px
        words = None if spec.text_width is None else torch.randn(count, spec.max_text_len, spec.text_width)
        lowres = None
        if spec.lowres_side_px is not None:
            small_px = side_px * spec.lowres_side_px // spec.side_px
            lowres = torch.rand(count, 3, small_px, small_px)
        return DecoderBatch(
            images=torch.rand(count, 3, side_px, side_px),
            image_embed=unit_rows(count, spec.image_embed_dim),
            text_encodings=words,
            draw=Draw(0, self.config.model.sketch_steps, 0, count),
            lowres=lowres,
        )


def passes(config: DecoderTrainConfig, device: PlannedDevice, samples: int, accumulation: int) -> Passes:
    """What the decoder of a config holds."""
    made: list[PlannedDecoderStage] = []

    def build() -> torch.nn.Module:
        # class pictures are drawn when training begins, and before its memory is taken
        made.append(PlannedDecoderStage(config.model_copy(update={"preservation": None, "stop": None})))
        return made[0].model()

    network, stage = without_numbers(build), made[0]
    judged = max(1, min(64, SHOWN_PX // stage.crop_px**2, config.optim.device_batch_size or 64))
    return try_passes(
        network,
        lambda: stage.example(samples),
        lambda model, batch: stage.loss(model, batch)[0],
        precision=device.precision,
        device_type=device.device_type,
        accumulation=accumulation,
        judged=lambda: stage.example(min(judged, config.data.validate_samples)),
    )


def show_plan(config: DecoderTrainConfig) -> None:
    """Print it."""
    print(plan(config, passes))
