"""The captioner's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caption_train.config import CaptionTrainConfig
from caption_train.data import CaptionBatch, batches, read_captioned
from crest.colours import colour_words
from crest.config import read_spec
from crest.errors import ConfigError
from crest.models.captioner import KIND, CaptionerModel, CaptionerSpec, learn_vocabulary, load_captioner_model
from crest.records import Split
from crest.world import World


class CaptionStage:
    """Next-token prediction of a logo's description (ViT-GPT2: a ViT looks, a GPT-2 writes)."""

    best_by = "loss"

    def __init__(self, config: CaptionTrainConfig) -> None:
        self.config = config
        if (config.model.start is None) == (config.model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        self._parents: dict[str, str] = {}
        if config.model.start is not None:
            self._model, self._parents["start"] = load_captioner_model(config.model.start)
            side_px = self._model.spec.side_px
        else:
            sketch = {**(config.model.scratch or {}), "tokens": [], "merges": []}
            side_px = read_spec(CaptionerSpec, sketch, "model.scratch").side_px
        self.train, self.val, self._parents["data"] = read_captioned(config.data, side_px)
        if config.model.start is None:
            vocabulary = learn_vocabulary(self.train.captions, config.model.vocabulary_size)
            torch.manual_seed(config.run.seed)
            self._model = CaptionerModel(
                read_spec(CaptionerSpec, {**(config.model.scratch or {}), **vocabulary}, "model.scratch")
            )

    def model(self) -> nn.Module:
        """The captioner, filled with its starting weights."""
        return self._model

    def batches(self, split: Split, world: World, start: int) -> Iterator[CaptionBatch]:
        """Micro-batches of captioned logos."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        sizes = (optim.batch_size, micro)
        return batches(
            self.train, self._model, self.config.data.shift_px, self.config.run.seed, sizes, world, start
        )

    def loss(self, model: nn.Module, batch: CaptionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the next token."""
        logits = model(batch.images, batch.labels)
        flat = logits.float().flatten(0, 1), batch.labels.flatten()
        return F.cross_entropy(*flat, ignore_index=-100, reduction="sum") / batch.tokens, {}

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, and how many of a description's colour words the captioner finds."""
        assert isinstance(model, CaptionerModel)
        count = min(len(self.val.captions), self.config.data.validate_samples)
        images = torch.from_numpy(self.val.pixels[:count].astype("float32") / 255).to(world.device)
        captions = self.val.captions[:count]
        labels = model.tokenize(captions).to(world.device)
        loss, _ = self.loss(model, CaptionBatch(images, labels, float((labels != -100).sum())))
        found = wanted = 0
        for written, true in zip(model.write(images[:32]), captions[:32], strict=True):
            colours = set(colour_words(true))
            wanted += len(colours)
            found += len(colours & set(colour_words(written)))
        return {"loss": float(loss), "colour_words_found": found / max(1, wanted)}

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing to draw: a captioner shows words."""
        return {}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, CaptionerModel)
        return {"kind": KIND, "spec": model.spec.model_dump(mode="json"), "parents": self._parents}
