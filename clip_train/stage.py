"""CLIP's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn

from clip_train.config import ClipTrainConfig
from clip_train.data import ClipBatch, ClipData, number_captions
from clip_train.retrieval import retrieval_metrics
from crest.config import read_spec
from crest.errors import ConfigError, DataError
from crest.models.clip import KIND, ClipModel, ClipSpec, load_clip_model, load_pretrained
from crest.records import Split, hash_of
from crest.world import World

PREPROCESSING = "flatten alpha on white, pad square on its own flat ground, resize antialiased, centre, scale"


class ClipStage:
    """Contrastive fine-tuning of a CLIP on captioned logos.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.3, with every caption of equal text a positive.
    """

    best_by = "r_at_1"

    def __init__(self, config: ClipTrainConfig) -> None:
        self.config = config
        self._model, self._parents = _starting_model(config)
        self._model.keeps_statistics = config.model.scratch is None
        self.data = ClipData(config.data, self._model)
        if len(self.data.val) < 2:
            raise DataError(
                f"{config.data.shards}: the val split holds {len(self.data.val)} logos, expected at least 2; "
                "pack more logos or a larger pack.val_share."
            )

    def model(self) -> nn.Module:
        """The CLIP, filled with its starting weights."""
        return self._model

    def batches(self, split: Split, world: World, start: int) -> Iterator[ClipBatch]:
        """One contrastive batch a step, shared out over the processes."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        if self._model.has_batch_norm and not self._model.keeps_statistics and micro < optim.batch_size:
            raise ConfigError(
                f"model.scratch: has batch norm, with statistics of {micro} of a batch's {optim.batch_size} "
                "pictures here, expected the whole batch in one process and at once; leave out torchrun and "
                "optim.device_batch_size, or take an architecture without batch norm (a ViT)."
            )
        return self.data.batches(self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Symmetric cross entropy over the whole batch of all processes."""
        image_embed, text_embed, logit_scale = model(batch.images, batch.tokens, batch.chunk)
        image_embed, text_embed, same = _gather(image_embed), _gather(text_embed), _gather(batch.same)
        with torch.autocast(image_embed.device.type, enabled=False):
            logits = logit_scale.clamp(max=100).float() * image_embed @ text_embed.T
            positives = (same[:, None] == same[None, :]).float()
            targets = positives / positives.sum(dim=1, keepdim=True)
            loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        hits = (
            logits.argmax(dim=1)[:, None] == torch.arange(len(logits), device=logits.device)[None]
        ).float()
        return loss, {
            "batch_r_at_1": (hits * positives).sum(dim=1).mean(),
            "logit_scale": logit_scale.detach(),
        }

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Retrieval on the held-out split, both ways."""
        assert isinstance(model, ClipModel)
        image_embed, text_embed, same = self._embed_val(model)
        logits = model.clip.logit_scale.exp().clamp(max=100) * image_embed @ text_embed.T
        index = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
        return {
            "loss": float(loss),
            "samples": float(len(logits)),
            **retrieval_metrics(image_embed, text_embed, same),
        }

    def _embed_val(self, model: ClipModel) -> tuple[Tensor, Tensor, Tensor]:
        val, device = self.data.val, model.mean.device
        count = min(len(val), self.config.data.validate_samples)
        images, texts = [], []
        for first in range(0, count, 128):
            last = min(first + 128, count)
            pictures = torch.from_numpy(val.pixels[first:last].astype("float32") / 255).to(device)
            images.append(model.embed_images(pictures))
            texts.append(model.embed_tokens(model.tokenize(val.captions[first:last]))[0])
        same = torch.from_numpy(number_captions(val)[:count]).to(device)
        return torch.cat(images), torch.cat(texts), same

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """A row per caption: its own logo first, then the five that the model finds nearest."""
        assert isinstance(model, ClipModel)
        image_embed, text_embed, _ = self._embed_val(model)
        rows = min(8, len(image_embed))
        nearest = (text_embed[:rows] @ image_embed.T).topk(min(5, len(image_embed)), dim=1).indices.cpu()
        order = [number for row in range(rows) for number in (row, *nearest[row].tolist())]
        return {"retrieval": torch.from_numpy(self.data.val.pixels[order].astype("float32") / 255)}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, ClipModel)
        return {
            "kind": KIND,
            "spec": model.spec.model_dump(mode="json"),
            "preprocessing": PREPROCESSING,
            "parents": {**self._parents, "shards": self.data.train.shards_hash},
        }


def _starting_model(config: ClipTrainConfig) -> tuple[ClipModel, dict[str, str]]:
    model = config.model
    given = [name for name in ("start", "pretrained", "scratch") if getattr(model, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ConfigError(
            f"model: found {found}, expected exactly one of start, pretrained and scratch; keep one."
        )
    if model.start is not None:
        clip, digest, parents = load_clip_model(model.start)
        # every ancestor is named, so that a reference CLIP can be told from all of them
        ancestors = {
            f"ancestor {value}": value for name, value in parents.items() if name.startswith(("start", "anc"))
        }
        return clip, {"start": digest, **ancestors}
    if model.pretrained is not None:
        if model.architecture is None:
            raise ConfigError(
                "model.architecture is missing; pretrained weights need the architecture's name."
            )
        return load_pretrained(model.architecture, model.pretrained), {
            "start": hash_of(model.architecture, model.pretrained)
        }
    torch.manual_seed(config.run.seed)
    return ClipModel(read_spec(ClipSpec, model.scratch or {}, "model.scratch")), {}


def _gather(share: Tensor) -> Tensor:
    """All processes' rows in the order of their ranks; gradients flow back to their owners."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return share
    if not share.is_floating_point():
        parts = [torch.empty_like(share) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, share)
        return torch.cat(parts)
    return torch.cat(torch.distributed.nn.functional.all_gather(share))  # type: ignore[no-untyped-call]
