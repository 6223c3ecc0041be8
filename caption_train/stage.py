"""The captioner's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caption_train.config import CaptionTrainConfig
from caption_train.data import CaptionBatch, batches, read_captioned
from caption_train.words import frequent_words, word_scores
from crest.adapters import inject
from crest.config import read_spec
from crest.errors import ConfigError
from crest.models.captioner import (
    CaptionerModel,
    CaptionerSpec,
    WritingModel,
    learn_vocabulary,
    load_captioner_model,
)
from crest.models.published_captioner import load_published_model, publish, published_folder
from crest.records import Split
from crest.world import World

CHUNK = 64
"""Held-out logos that are described at once."""
THINGS_WEIGHT = 0.5
"""Of the loss of things; without it the eyes learn colours, and no charges for long."""


class CaptionStage:
    """Next-token prediction of a logo's description (ViT-GPT2: a ViT looks, a GPT-2 writes)."""

    best_by = "loss"

    def __init__(self, config: CaptionTrainConfig) -> None:
        self.config = config
        if (config.model.start is None) == (config.model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        if config.model.lora_rank is not None and config.model.start is None:
            raise ConfigError("model.lora_rank: adapters need weights to adapt; name a start, or set null.")
        self._parents: dict[str, str] = {}
        self._model: WritingModel
        if config.model.start is not None:
            self._model, self._parents["start"] = load_start(config.model.start)
            side_px = self._model.side_px
        else:
            sketch = {**(config.model.scratch or {}), "tokens": [], "merges": []}
            side_px = read_spec(CaptionerSpec, sketch, "model.scratch").side_px
        self.train, self.val, self._parents["data"] = read_captioned(config.data, side_px)
        torch.manual_seed(config.run.seed)
        if config.model.start is None:
            vocabulary = learn_vocabulary(self.train.captions, config.model.vocabulary_size)
            if (config.model.scratch or {}).get("stem_channels") is not None:
                vocabulary["things"] = sorted(frequent_words(self.train.captions))
            self._model = CaptionerModel(
                read_spec(CaptionerSpec, {**(config.model.scratch or {}), **vocabulary}, "model.scratch")
            )
        if config.model.lora_rank is not None:
            inject(self._model, config.model.lora_rank, config.model.lora_alpha, self._model.matrices())
        self._objects = frequent_words(self.train.captions)

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
        """Cross entropy of the next token, and of the things that the eyes alone must name."""
        logits, things = model(batch.images, batch.labels)
        flat = logits.float().flatten(0, 1), batch.labels.flatten()
        written = F.cross_entropy(*flat, ignore_index=-100, reduction="sum") / batch.tokens
        if things is None:
            return written, {}
        named = -(F.log_softmax(things.float(), dim=1) * batch.things).sum() / len(batch.things)
        return written + THINGS_WEIGHT * named, {"written": written.detach(), "named": named.detach()}

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, and how far what it writes names the colours and things of the human captions."""
        assert isinstance(model, WritingModel)
        count = min(len(self.val.captions), self.config.data.validate_samples)
        captions, loss, tokens, written = self.val.captions[:count], 0.0, 0.0, list[str]()
        for first in range(0, count, CHUNK):
            images = torch.from_numpy(
                self.val.pixels[first : first + CHUNK][: count - first] / np.float32(255)
            )
            images = images.to(world.device)
            labels = model.tokenize(captions[first : first + CHUNK]).to(world.device)
            logits, _ = model(images, labels)
            flat = logits.float().flatten(0, 1), labels.flatten()
            loss += float(F.cross_entropy(*flat, ignore_index=-100, reduction="sum"))
            tokens += float((labels != -100).sum())
            written += model.write(images)
        return {"loss": loss / tokens, **word_scores(written, captions, self._objects)}

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing to draw: a captioner shows words."""
        return {}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, WritingModel)
        return {"kind": model.kind, "spec": model.described(), "parents": self._parents}

    def publish(self) -> Path | None:
        """Write a finished run that started from a published folder as such a folder; else None."""
        folder = published_folder(self.config.model.start) if self.config.model.start else None
        return publish(self.config.run.dir, folder) if folder is not None else None


def load_start(place: str) -> tuple[WritingModel, str]:
    """What a run starts from: Crest's own captioner, or a published one's folder; with its hash."""
    folder = published_folder(place)
    return load_published_model(folder) if folder is not None else load_captioner_model(place)
