"""The decoder's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crest.config import read_spec
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.prediction import loss_weight, target
from crest.embeddings import embeddings_parents, read_embeddings
from crest.errors import ConfigError, WeightsError
from crest.models.decoder import KIND, Decoder, DecoderSpec, load_decoder, sample_images
from crest.records import Split
from crest.world import Draw, World
from decoder_train.config import DecoderTrainConfig
from decoder_train.data import DecoderBatch, DecoderData

BANDS = 4
"""Quarters of the timesteps for which the held-out loss is told apart."""


class DecoderStage:
    """Diffusion from a CLIP image embedding and text encodings to pixels, one U-Net a run.

    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.1 (conditions and their dropping).
    """

    best_by = "loss"

    def __init__(self, config: DecoderTrainConfig) -> None:
        self.config = config
        self.parents = embeddings_parents(config.data.embeddings)
        self._model = self._starting_model()
        if config.model.sketch_moves:
            self._model.let_sketch_move()
        if config.model.sketch_steps and self._model.sketch is None:
            raise ConfigError(
                f"model.sketch_steps: found {config.model.sketch_steps}, expected 0 for a decoder "
                "without a sketch; set it to 0 or model.scratch.sketch_regions above 0."
            )
        side_px, data = self._model.spec.side_px, config.data
        self.train = DecoderData(data.shards, data.embeddings, "train", side_px)
        self.val = DecoderData(data.shards, data.embeddings, "val", side_px)

    def _starting_model(self) -> Decoder:
        model, data = self.config.model, self.config.data
        if (model.start is None) == (model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        val = read_embeddings(data.embeddings, "val")
        sizes: dict[str, Any] = {
            "image_embed_dim": val.image_embed.shape[1],
            "text_width": val.text_encodings.shape[2],
        }
        if model.start is None:
            torch.manual_seed(self.config.run.seed)
            scratch = model.scratch or {}
            if "text_width" in scratch and scratch["text_width"] is None:
                sizes["text_width"] = None
            return Decoder(read_spec(DecoderSpec, {**scratch, **sizes}, "model.scratch"))
        decoder, _, card = load_decoder(model.start)
        trained_with = card.get("parents", {}).get("clip", "?")
        if trained_with != self.parents["clip"] and not model.accept_other_clip:
            raise WeightsError(
                f"{model.start}: belongs to CLIP {trained_with}, but {data.embeddings} was made with CLIP "
                f"{self.parents['clip']}; embed with that CLIP, or set model.accept_other_clip where the "
                "second was fine-tuned from the first."
            )
        for name, size in sizes.items():
            found = getattr(decoder.spec, name)
            if found is not None and found != size:
                raise WeightsError(
                    f"{model.start}: has {name} {found}, the embeddings have {size}; name weights that fit."
                )
        return decoder

    def model(self) -> nn.Module:
        """The decoder, filled with its starting weights."""
        return self._model

    def batches(self, split: Split, world: World, start: int) -> Iterator[DecoderBatch]:
        """Micro-batches of pictures with their conditions."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        return self.train.batches(self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: DecoderBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the prediction."""
        settings = self.config.model
        kept = batch.draw.keep(5, settings.both_cond_drop_prob)
        image_keep = kept & batch.draw.keep(3, settings.image_cond_drop_prob)
        text_keep = kept & batch.draw.keep(4, settings.text_cond_drop_prob)
        # spread over each draw chunk, so that a batch sees all timesteps alike
        t = stratified(batch.draw, self._model.spec.timesteps)
        sketch_alone = batch.draw.step < settings.sketch_steps
        return self._error(model, batch, t, image_keep, text_keep, sketch_alone).mean(), {}

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """The U-Net, while the sketch learns alone."""
        return self._model.unet.parameters() if step < self.config.model.sketch_steps else ()

    def _error(
        self,
        model: nn.Module,
        batch: DecoderBatch,
        t: Tensor,
        image_keep: Tensor,
        text_keep: Tensor,
        sketch_alone: bool = False,
    ) -> Tensor:
        spec, schedule = self._model.spec, self._model.noise_schedule
        x_start = batch.images * 2 - 1
        noise = batch.draw.normal(2, *x_start.shape[1:])
        x_t = add_noise(schedule, x_start, noise, t)
        text = None if spec.text_width is None else batch.text_encodings
        told = (batch.image_embed, text, image_keep, text_keep)
        predicted = model(x_t, t, *told, sketch_alone=sketch_alone)
        wanted = target(spec.prediction, x_start, noise, schedule.alpha(t, 4), schedule.sigma(t, 4))
        error = (predicted - wanted).square().mean(dim=(1, 2, 3))
        weight = loss_weight(spec.prediction, schedule.log_snr(t), self.config.model.min_snr_gamma)
        weighted: Tensor = error * weight
        return weighted

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, noise and timesteps fixed, nothing dropped; whole and by quarters of time."""
        count = min(len(self.val.pictures), self.config.data.validate_samples)
        errors = []
        for first in range(0, count, 64):
            size = min(64, count - first)
            draw = Draw(0x7A11, 0, first, size, world.device)
            batch = self.val.rows(torch.arange(first, first + size), draw, world.device)
            t = (torch.arange(first, first + size, device=world.device).float() + 0.5) / count
            keep = torch.ones(size, dtype=torch.bool, device=world.device)
            errors.append(self._error(model, batch, (t * self._model.spec.timesteps).long(), keep, keep))
        error = torch.cat(errors)
        bands = {
            f"loss_t{band + 1}of{BANDS}": float(part.mean())
            for band, part in enumerate(error.tensor_split(BANDS))
            if len(part)
        }
        return {"loss": float(error.mean()), **bands}

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Eight held-out logos, and what the decoder draws from their true embeddings on fixed seeds."""
        assert isinstance(model, Decoder)
        device, settings = next(model.parameters()).device, self.config.model
        count = min(8, len(self.val.pictures))
        batch = self.val.rows(torch.arange(count), Draw(0, 0, 0, count, device), device)
        drawn = sample_images(
            model,
            batch.image_embed,
            None if model.spec.text_width is None else batch.text_encodings,
            seeds=range(count),
            steps=settings.preview_steps,
            cond_scale=settings.preview_cond_scale,
            sampler=settings.preview_sampler,
        )
        return {"true_then_drawn": torch.cat((batch.images, drawn))}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, Decoder)
        return {"kind": KIND, "spec": model.spec.model_dump(mode="json"), "parents": self.parents}


def stratified(draw: Draw, timesteps: int) -> Tensor:
    """Timesteps (B,) int64, each uniform, evenly spread over every eight neighbours of the global batch."""
    place = (draw.first + torch.arange(draw.count, device=draw.device)) % 8
    return ((place + draw.uniform(1)) / 8 * timesteps).long()
