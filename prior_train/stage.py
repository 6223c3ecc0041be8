"""The prior's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest.config import read_spec
from crest.diffusion.noise_schedule import add_noise
from crest.embeddings import EmbeddingShard, embeddings_parents, read_embeddings
from crest.errors import ConfigError, WeightsError
from crest.models.clip import TextFeatures
from crest.models.prior import KIND, Prior, PriorSpec, load_prior, sample_image_embed
from crest.pixels import open_pictures
from crest.records import Split
from crest.world import Draw, World
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch, batches, rows

PREVIEW_STEPS = 24


class PriorStage:
    """Diffusion in CLIP's image space, conditioned on a caption.

    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2: the network predicts the clean embedding.
    """

    best_by = "loss"

    def __init__(self, config: PriorTrainConfig) -> None:
        self.config = config
        self.train = read_embeddings(config.data.embeddings, "train")
        self.val = read_embeddings(config.data.embeddings, "val")
        self.parents = embeddings_parents(config.data.embeddings)

    def model(self) -> nn.Module:
        """The prior, filled with its starting weights."""
        model = self.config.model
        if (model.start is None) == (model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        sizes = {
            "image_embed_dim": self.train.image_embed.shape[1],
            "text_width": self.train.text_encodings.shape[2],
        }
        if model.start is not None:
            prior, _, card = load_prior(model.start)
            trained_with = card.get("parents", {}).get("clip", "?")
            if trained_with != self.parents["clip"] and not model.accept_other_clip:
                raise WeightsError(
                    f"{model.start}: belongs to CLIP {trained_with}, but {self.config.data.embeddings} was "
                    f"made with CLIP {self.parents['clip']}; embed with that CLIP, or set "
                    "model.accept_other_clip where the second was fine-tuned from the first."
                )
            for name, size in sizes.items():
                if getattr(prior.spec, name) != size:
                    raise WeightsError(
                        f"{model.start}: has {name} {getattr(prior.spec, name)}, the embeddings have {size}; "
                        "name weights that fit."
                    )
            return prior
        torch.manual_seed(self.config.run.seed)
        return Prior(read_spec(PriorSpec, {**(model.scratch or {}), **sizes}, "model.scratch"))

    def batches(self, split: Split, world: World, start: int) -> Iterator[PriorBatch]:
        """Micro-batches of embedding pairs."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        return batches(self.train, self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: PriorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted clean embedding, in units of its own variance."""
        keep = batch.draw.keep(3, self.config.model.cond_drop_prob)
        error, cosine = self._error(model, batch, keep)
        return error.mean(), {"cosine": cosine.mean()}

    def _error(self, model: nn.Module, batch: PriorBatch, text_keep: Tensor) -> tuple[Tensor, Tensor]:
        plain = model.module if hasattr(model, "module") else model
        assert isinstance(plain, Prior)
        x_start = batch.image_embed * plain.scale  # a copy: the library would scale the caller's own tensor
        t = (batch.draw.uniform(1) * plain.spec.timesteps).long()
        x_t = add_noise(plain.noise_schedule, x_start, batch.draw.normal(2, x_start.shape[1]), t)
        keep_image = torch.ones_like(text_keep)
        predicted = model(x_t, t, batch.text_embed, batch.text_encodings, text_keep, keep_image)
        error = (predicted - x_start).square().mean(dim=1)
        return error, F.cosine_similarity(predicted, x_start).detach()

    def _val(self, device: torch.device) -> tuple[PriorBatch, EmbeddingShard]:
        count = min(len(self.val.ids), self.config.data.validate_samples)
        # fixed noise and timesteps: two validations differ by the weights alone
        return rows(self.val, torch.arange(count), Draw(0x7A11, 0, 0, count, device), device), self.val

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, and how near its draws come to the true picture, the text and another picture."""
        assert isinstance(model, Prior)
        batch, _ = self._val(world.device)
        keep = torch.ones(len(batch.image_embed), dtype=torch.bool, device=world.device)
        error, cosine = self._error(model, batch, keep)
        drawn = self._drawn(model, batch)
        similarity = drawn @ batch.image_embed.T
        index = torch.arange(len(drawn), device=drawn.device)
        return {
            "loss": float(error.mean()),
            "denoised_cosine": float(cosine.mean()),
            "drawn_to_image": float(similarity.diagonal().mean()),
            "drawn_to_other_image": float(similarity.roll(1, dims=1).diagonal().mean()),
            "drawn_to_text": float((drawn * batch.text_embed).sum(dim=1).mean()),
            "text_to_image": float((batch.image_embed * batch.text_embed).sum(dim=1).mean()),
            "drawn_r_at_1": float((similarity.argmax(dim=1) == index).float().mean()),
        }

    def _drawn(self, model: Prior, batch: PriorBatch) -> Tensor:
        text = TextFeatures(batch.text_embed, batch.text_encodings)
        return sample_image_embed(
            model, text, seeds=range(len(batch.text_embed)), cond_scale=1.0, steps=PREVIEW_STEPS, candidates=1
        )

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """A row per caption: its own logo, then the five real logos nearest to what the prior drew."""
        if self.config.data.shards is None:
            return {}
        assert isinstance(model, Prior)
        device = next(model.parameters()).device
        pictures = open_pictures(self.config.data.shards, "val", 64)
        batch, _ = self._val(device)
        similarity = self._drawn(model, batch) @ batch.image_embed.T
        nearest = similarity[:8].topk(min(5, similarity.shape[1]), dim=1).indices.cpu()
        order = [number for row in range(len(nearest)) for number in (row, *nearest[row].tolist())]
        return {"nearest": torch.from_numpy(pictures.pixels[order].astype("float32") / 255)}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, Prior)
        spec = model.spec.model_copy(update={"saw_dropped_conditions": self.config.model.cond_drop_prob > 0})
        return {"kind": KIND, "spec": spec.model_dump(mode="json"), "parents": self.parents}
