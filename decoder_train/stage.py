"""The decoder's answers: what learns, from what, by which measure, how it is judged and shown.

Knows decoders as `crest.models.families` describes them, pixels or latents, and no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crest.adapters import Base, adapt
from crest.config import LoraConfig
from crest.diffusion.learned_variance import hybrid_loss, split_prediction, variational_bound
from crest.diffusion.lowres import (
    SAMPLING_NOISE_LEVEL,
    Augmentation,
    augment,
    random_augmentation,
    sampling_augmentation,
)
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.prediction import loss_weight, target, to_x_start
from crest.diffusion.self_conditioning import self_condition
from crest.diffusion.timesteps import even_timesteps, loss_by_band, stratified_timesteps
from crest.embeddings import embeddings_parents, read_embeddings
from crest.errors import ConfigError, WeightsError
from crest.mixing import weighed
from crest.models.decoder_sampling import sample_images
from crest.models.families import (
    DEFAULT,
    KIND_DECODER,
    DecoderFamily,
    Sketched,
    as_module,
    build_decoder,
    load_decoder_family,
)
from crest.preservation import ClassPictures
from crest.records import Split
from crest.world import Draw, World
from decoder_train.config import DecoderTrainConfig
from decoder_train.copies import open_watch
from decoder_train.data import DecoderBatch, DecoderData, refuse_small
from decoder_train.subjects import SubjectData, made_class_pictures

SHOWN_PX = 8 * 256 * 256
"""Pixels of a preview at most, and of what is validated at once: eight pictures of 256 px."""
_T, _NOISE, _IMAGE, _TEXT, _BOTH, _BLUR, _SIGMA, _GUESS, _LEVEL, _GRAIN = 1, 2, 3, 4, 5, 7, 8, 10, 11, 12
"""The purposes of a draw, beside those of the data."""


class DecoderStage:
    """Diffusion from a CLIP image embedding and text encodings to pixels, one U-Net a run.

    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.1 (conditions and their dropping, upsamplers).
    """

    def __init__(self, config: DecoderTrainConfig) -> None:
        self.best_by = "loss"
        self.config = config
        self.parents = embeddings_parents(config.data.embeddings)
        self.decoder, self.family = self._starting_model()
        self._prepare()
        spec, data, crop_px = self.decoder.spec, config.data, config.model.crop_px
        _refuse_crop(self.decoder, crop_px)
        if data.augment is not None and crop_px is not None:
            raise ConfigError(
                "data.augment: expected null with model.crop_px, for crops have no ground to be moved on; "
                "remove one of them."
            )
        if spec.unet_number > 1:
            refuse_small(data.shards, data.validate_split, spec.side_px)

        def split(name: Split, made: ClassPictures | None = None, moves: bool = False) -> DecoderData:
            return DecoderData(
                made.shards if made else data.shards,
                made.embeddings if made else data.embeddings,
                name,
                spec.side_px,
                lowres_side_px=spec.lowres_side_px,
                crop_px=crop_px,
                text=spec.text_width is not None,
                augment=data.augment if moves else None,
            )

        self.train, self.val = split("train", moves=True), split(data.validate_split)
        made = made_class_pictures(config)
        self.mixed = None
        if made is not None or data.balance_by is not None:
            self.mixed = SubjectData(self.train, split("train", made) if made else None, config)
        self.stop_reason, self.patience = "", config.stop.patience if config.stop else 0
        self.copies = open_watch(
            config.stop, self.train.pictures, self.val.pictures, spec.unet_number, config.run.device
        )
        if self.copies is not None:
            self.best_by = "uncopied_loss"

    def _starting_model(self) -> tuple[DecoderFamily, str]:
        model, place = self.config.model, self.config.data.embeddings
        if (model.start is None) == (model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        if model.start is None:
            torch.manual_seed(self.config.run.seed)
            scratch = model.scratch or {}
            sizes = self._sizes(reads_text=scratch.get("text_width", 0) is not None)
            for name, size in sizes.items():
                if scratch.get(name, size) != size:
                    raise ConfigError(
                        f"model.scratch.{name}: found {scratch[name]}, but {place} has {size}; remove it, or "
                        "name embeddings of that size."
                    )
            return build_decoder({**scratch, **sizes}, "model.scratch")
        decoder, digest, card = load_decoder_family(model.start)
        self._base = Base(KIND_DECODER, digest, model.start, card)
        trained_with = card.get("parents", {}).get("clip") or card.get("published", {}).get("clip") or "?"
        if trained_with != self.parents["clip"] and not model.accept_other_clip:
            raise WeightsError(
                f"{model.start}: belongs to CLIP {trained_with}, but {place} was made with CLIP "
                f"{self.parents['clip']}; embed with that CLIP, or set model.accept_other_clip where the "
                "second was fine-tuned from the first."
            )
        for name, size in self._sizes(reads_text=decoder.spec.text_width is not None).items():
            found = getattr(decoder.spec, name)
            if found != size:
                raise WeightsError(
                    f"{model.start}: has {name} {found}, the embeddings in {place} have {size}; name weights "
                    "that fit."
                )
        return decoder, card.get("family", DEFAULT)

    def _sizes(self, *, reads_text: bool) -> dict[str, int]:
        """The sizes that the embeddings give a network."""
        data = self.config.data
        val = read_embeddings(data.embeddings, data.validate_split, encodings=reads_text)
        width = {"text_width": val.text_encodings.shape[2]} if reads_text else {}
        return {"image_embed_dim": val.image_embed.shape[1], **width}

    def _prepare(self) -> None:
        """What the config asks of the network before it learns."""
        model, decoder = self.config.model, self.decoder
        sketched = decoder if isinstance(decoder, Sketched) and decoder.has_sketch else None
        if model.sketch_moves:
            if sketched is None:
                raise ConfigError(
                    "model.sketch_moves: found true for a decoder without a sketch, expected false; "
                    "change it."
                )
            sketched.let_sketch_move()
        if model.sketch_steps and sketched is None:
            raise ConfigError(
                f"model.sketch_steps: found {model.sketch_steps}, expected 0 for a decoder "
                "without a sketch; set it to 0 or model.scratch.sketch_regions above 0."
            )
        if model.lora is not None:
            self._adapt(model.lora)
        if model.freeze_text:
            if decoder.spec.text_width is None:
                raise ConfigError(
                    "model.freeze_text: found true for a decoder that reads no text, expected false; "
                    "change it."
                )
            for weight in decoder.text_parameters():
                weight.requires_grad_(False)
        if model.checkpointing:
            decoder.save_memory()
        if model.compiled:
            as_module(decoder).compile()

    def _adapt(self, lora: LoraConfig) -> None:
        model = self.config.model
        if model.start is None:
            raise ConfigError("model.lora: adapters need weights to adapt; name a start, or set null.")
        if model.sketch_steps:
            raise ConfigError(
                f"model.sketch_steps: found {model.sketch_steps}, expected 0 with adapters, which leave the "
                "sketch as it is; set it to 0 or remove model.lora."
            )
        if model.sketch_moves:
            raise ConfigError(
                "model.sketch_moves: found true, expected false with adapters, which leave the sketch as it "
                "is; set it to false or remove model.lora."
            )
        adapt(as_module(self.decoder), lora, self.decoder.lora_targets, self._base)

    def model(self) -> nn.Module:
        """The decoder, filled with its starting weights."""
        return as_module(self.decoder)

    def batches(self, split: Split, world: World, start: int) -> Iterator[DecoderBatch]:
        """Micro-batches of pictures with their conditions."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        data = self.mixed or self.train
        return data.batches(self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: DecoderBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the prediction, and the bound where the variance is learned."""
        settings, draw = self.config.model, batch.draw
        kept = draw.keep(_BOTH, settings.both_cond_drop_prob)
        image_keep = kept & draw.keep(_IMAGE, settings.image_cond_drop_prob)
        text_keep = kept & draw.keep(_TEXT, settings.text_cond_drop_prob)
        # spread over each draw chunk, so that a batch sees all timesteps alike
        t = stratified_timesteps(draw.first, draw.uniform(_T), self.decoder.noise_schedule.timesteps)
        guessed = ~draw.keep(_GUESS, settings.self_cond_prob) if self.decoder.spec.self_cond else None
        spoilt = None if batch.lowres is None else self._spoilt(draw)
        sketch_alone = draw.step < settings.sketch_steps
        error, bound = self._error(model, batch, t, image_keep, text_keep, guessed, spoilt, sketch_alone)
        loss, figures = weighed(error, batch.is_class, self.config.preservation, self.config.optim.batch_size)
        return loss, figures | ({} if bound is None else {"bound": bound.mean()})

    def _spoilt(self, draw: Draw) -> Augmentation:
        """What an upsampler is to forgive, for each sample."""
        settings = self.config.model
        return random_augmentation(
            draw.uniform(_BLUR),
            draw.uniform(_SIGMA),
            draw.uniform(_LEVEL) if self.decoder.spec.lowres_noise_cond else None,
            blur_prob=settings.lowres_blur_prob,
            blur_sigma=settings.lowres_blur_sigma,
        )

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """All but the sketch, while that learns alone."""
        if step < self.config.model.sketch_steps and isinstance(self.decoder, Sketched):
            return self.decoder.beside_sketch()
        return ()

    def _error(
        self,
        model: nn.Module,
        batch: DecoderBatch,
        t: Tensor,
        image_keep: Tensor,
        text_keep: Tensor,
        guessed: Tensor | None,
        spoilt: Augmentation | None,
        sketch_alone: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Each sample's error (B,), and its bound (B,) where the variance is learned.

        Args:
            guessed: (B,) bool, which samples are shown a first guess; None where there is no such thing.
            spoilt: what is done to an upsampler's small pictures.
        """
        spec, schedule, settings = self.decoder.spec, self.decoder.noise_schedule, self.config.model
        x_start = self.decoder.encode_images(batch.images)
        noise = batch.draw.normal(_NOISE, *x_start.shape[1:])
        x_t = add_noise(schedule, x_start, noise, t)
        alpha, sigma = schedule.alpha(t, 4), schedule.sigma(t, 4)
        told = (batch.image_embed, batch.text_encodings, image_keep, text_keep)
        shown: dict[str, Any] = {"sketch_alone": True} if sketch_alone else {}
        if batch.lowres is not None and spoilt is not None:
            grain = None if spoilt.noise_level is None else batch.draw.normal(_GRAIN, *batch.lowres.shape[1:])
            kernel_px = settings.lowres_blur_kernel_px
            shown["lowres"] = augment(batch.lowres * 2 - 1, spoilt, grain, kernel_px=kernel_px)
            shown["lowres_noise_level"] = spoilt.noise_level
        if guessed is not None and not sketch_alone:

            def guess() -> Tensor:
                first = model(x_t, t, *told, **shown)[:, : x_start.shape[1]]
                return self._bounded(to_x_start(spec.prediction, first, x_t, alpha, sigma))

            shown["self_cond"] = self_condition(guess, guessed)
        output = model(x_t, t, *told, **shown)
        fraction = None
        if spec.learned_variance and not sketch_alone:
            output, fraction = split_prediction(output)
        wanted = target(spec.prediction, x_start, noise, alpha, sigma)
        error = (output - wanted).square().mean(dim=(1, 2, 3))
        error = error * loss_weight(
            spec.prediction,
            schedule.log_snr(t),
            settings.min_snr_gamma,
            p2_gamma=settings.p2_gamma,
            p2_k=settings.p2_k,
        )
        if fraction is None:
            return error, None
        bound = variational_bound(spec.prediction, output, fraction, x_start, x_t, t, schedule)
        return hybrid_loss(error, bound, schedule.timesteps, settings.variance_weight), bound.detach()

    def _bounded(self, x: Tensor) -> Tensor:
        limit = self.decoder.x_limit
        return x if limit is None else x.clamp(-limit, limit)

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, noise and timesteps fixed, nothing dropped; whole and by quarters of time."""
        spec, timesteps = self.decoder.spec, self.decoder.noise_schedule.timesteps
        count = min(len(self.val.pictures), self.config.data.validate_samples)
        at_once = max(1, min(64, SHOWN_PX // self.val.crop_px**2, self.config.optim.device_batch_size or 64))
        level = SAMPLING_NOISE_LEVEL if spec.lowres_noise_cond else None
        errors, times, bounds = [], [], []
        for first in range(0, count, at_once):
            size = min(at_once, count - first)
            draw = Draw(0x7A11, 0, first, size, world.device)
            batch = self.val.rows(torch.arange(first, first + size), draw, world.device)
            t = even_timesteps(first, size, count, timesteps, world.device)
            keep = torch.ones(size, dtype=torch.bool, device=world.device)
            guessed = keep if spec.self_cond else None
            spoilt = None if batch.lowres is None else sampling_augmentation(size, level, world.device)
            error, bound = self._error(model, batch, t, keep, keep, guessed, spoilt)
            errors.append(error)
            times.append(t)
            bounds += [] if bound is None else [bound]
        error = torch.cat(errors)
        return {
            "loss": float(error.mean()),
            **loss_by_band(error, torch.cat(times), timesteps),
            **({"bound": float(torch.cat(bounds).mean())} if bounds else {}),
            **self._copying(model, world, float(error.mean())),
        }

    def _copying(self, model: nn.Module, world: World, loss: float) -> dict[str, float]:
        """How near drawings for held-out conditions come to training pictures; nothing where nobody asked.

        `uncopied_loss`, by which the best weights are chosen, is absent where they copy.
        """
        if self.copies is None or self.config.stop is None:
            return {}
        assert isinstance(model, DecoderFamily)
        count = self.config.stop.drawings
        at_once = max(1, SHOWN_PX // self.val.side_px**2)
        drawn = []
        for first in range(0, count, at_once):
            seeds = range(first, min(first + at_once, count))
            numbers = torch.tensor([seed % len(self.val.pictures) for seed in seeds])
            batch = self.val.whole(numbers, Draw(0, 0, 0, len(seeds), world.device), world.device)
            drawn.append(self._drawn(model, batch, seeds))
        # the mean, so that all processes come to one decision
        figures = world.mean(self.copies.figures(torch.cat(drawn)))
        self.stop_reason = self.copies.reason(figures)
        return figures if self.stop_reason else {**figures, "uncopied_loss": loss}

    def _drawn(self, model: DecoderFamily, batch: DecoderBatch, seeds: Sequence[int]) -> Tensor:
        """What the decoder draws from the true embeddings of whole pictures, one seed each."""
        settings = self.config.model
        return sample_images(
            model,
            batch.image_embed,
            batch.text_encodings,
            seeds=seeds,
            steps=settings.preview_steps,
            cond_scale=settings.preview_cond_scale,
            sampler=settings.preview_sampler,
            lowres=batch.lowres,
        )

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Held-out logos, and what the decoder draws from their true embeddings on fixed seeds."""
        assert isinstance(model, DecoderFamily)
        device = next(model.parameters()).device
        count = max(1, min(8, SHOWN_PX // self.val.side_px**2, len(self.val.pictures)))
        batch = self.val.whole(torch.arange(count), Draw(0, 0, 0, count, device), device)
        drawn = self._drawn(model, batch, range(count))
        shown = {"true_then_drawn": torch.cat((batch.images, drawn))}
        return shown if batch.lowres is None else {**shown, "enlarged": batch.lowres}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, DecoderFamily)
        spec = model.spec.model_dump(mode="json")
        return {"kind": KIND_DECODER, "family": self.family, "spec": spec, "parents": self.parents}


def _refuse_crop(decoder: DecoderFamily, crop_px: int | None) -> None:
    if crop_px is None:
        return
    spec = decoder.spec
    if spec.lowres_side_px is None:
        raise ConfigError(
            f"model.crop_px: found {crop_px}, expected null for unet_number 1, which lays out whole "
            "pictures; only upsamplers learn from crops."
        )
    ratio = spec.side_px // spec.lowres_side_px
    unit = math.lcm(spec.stride_px, ratio)
    if crop_px % unit or crop_px > spec.side_px:
        raise ConfigError(
            f"model.crop_px: found {crop_px}, expected a multiple of {unit} (the network's stride is "
            f"{spec.stride_px}, a small pixel becomes {ratio}) up to {spec.side_px}; change it."
        )
