"""The prior's answers: what learns, from what, by which measure, how it is judged and shown.

Knows priors as `crest.models.families` describes them, and no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest.adapters import Base, adapt
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.prediction import loss_weight, target, to_x_start
from crest.diffusion.self_conditioning import self_condition
from crest.diffusion.timesteps import even_timesteps, loss_by_band
from crest.embeddings import EmbeddingShard, embeddings_parents, read_embeddings
from crest.errors import ConfigError, DataError, WeightsError
from crest.mixing import weighed
from crest.models.clip import TextFeatures
from crest.models.families import (
    DEFAULT,
    KIND_PRIOR,
    PriorFamily,
    as_module,
    build_prior,
    load_prior_family,
)
from crest.pixels import Pictures, open_pictures
from crest.records import Split
from crest.world import Draw, World
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch, batches, rows
from prior_train.figures import similarities
from prior_train.subjects import SubjectRows, made_class_embeddings

PREVIEW_STEPS = 24
BANDS = 4
"""Quarters of the timesteps for which the held-out loss is told apart."""
AT_ONCE = 64
"""Rows that are validated together, at most."""


class PriorStage:
    """Diffusion in CLIP's image space, conditioned on a caption.

    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2: the network predicts the clean embedding, and
        text is dropped for some samples.
    """

    best_by = "loss"

    def __init__(self, config: PriorTrainConfig) -> None:
        self.config = config
        data = config.data
        self.parents = embeddings_parents(data.embeddings)
        torch.manual_seed(config.run.seed)
        self.prior, self.family = self._starting_model()
        self._prepare()
        reads_text = self.prior.spec.text_width is not None
        self.train = read_embeddings(data.embeddings, "train", encodings=reads_text, views=True)
        made = made_class_embeddings(config)
        self.mixed = None
        if made is not None or data.balance_by is not None:
            self.mixed = SubjectRows(self.train, reads_text, made, config)
        if len(self.val.ids) < 2:
            raise DataError(
                f"{data.embeddings}: holds {len(self.val.ids)} row in {data.validate_split}, expected 2 "
                "or more to tell pictures apart; pack a larger val share and embed again."
            )
        self._pictures = None if data.shards is None else open_pictures(data.shards, data.validate_split, 64)
        self._picture_of = {} if self._pictures is None else _joined(self._pictures, self.val, config)

    def _starting_model(self) -> tuple[PriorFamily, str]:
        model, place = self.config.model, self.config.data.embeddings
        if (model.start is None) == (model.scratch is None):
            raise ConfigError("model: expected exactly one of start and scratch; keep one.")
        if model.start is None:
            scratch = model.scratch or {}
            sizes = self._sizes(scratch.get("text_encodings", True) is not False)
            for name, size in sizes.items():
                if scratch.get(name, size) != size:
                    raise ConfigError(
                        f"model.scratch.{name}: found {scratch[name]}, but {place} has {size}; remove it, or "
                        "name embeddings of that size."
                    )
            return build_prior({**scratch, **sizes}, "model.scratch")
        prior, digest, card = load_prior_family(model.start)
        self._base = Base(KIND_PRIOR, digest, model.start, card)
        trained_with = card.get("parents", {}).get("clip") or card.get("published", {}).get("clip") or "?"
        if trained_with != self.parents["clip"] and not model.accept_other_clip:
            raise WeightsError(
                f"{model.start}: belongs to CLIP {trained_with}, but {place} was made with CLIP "
                f"{self.parents['clip']}; embed with that CLIP, or set model.accept_other_clip where the "
                "second was fine-tuned from the first."
            )
        for name, size in self._sizes(prior.spec.text_width is not None).items():
            if getattr(prior.spec, name) != size:
                raise WeightsError(
                    f"{model.start}: has {name} {getattr(prior.spec, name)}, the embeddings in {place} have "
                    f"{size}; name weights that fit."
                )
        return prior, card.get("family", DEFAULT)

    def _sizes(self, reads_text: bool) -> dict[str, int]:
        """The sizes that the embeddings give a network; what is validated is read for them."""
        data = self.config.data
        self.val = read_embeddings(data.embeddings, data.validate_split, encodings=reads_text)
        width = {"text_width": self.val.text_encodings.shape[2]} if reads_text else {}
        return {"image_embed_dim": self.val.image_embed.shape[1], **width}

    def _prepare(self) -> None:
        """What the config asks of the network before it learns."""
        model, prior = self.config.model, self.prior
        if model.checkpointing:
            prior.save_memory()
        if model.lora is not None:
            if model.start is None:
                raise ConfigError("model.lora: adapters need weights to adapt; name a start, or set null.")
            adapt(as_module(prior), model.lora, prior.lora_targets, self._base)

    def model(self) -> nn.Module:
        """The prior, filled with its starting weights."""
        return as_module(self.prior)

    def batches(self, split: Split, world: World, start: int) -> Iterator[PriorBatch]:
        """Micro-batches of embedding pairs."""
        optim = self.config.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        if self.mixed is not None:
            return self.mixed.batches(self.config.run.seed, optim.batch_size, micro, world, start)
        return batches(self.train, self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: PriorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the prediction, in units of the embedding's own variance."""
        settings, draw = self.config.model, batch.draw
        text_keep = draw.keep(3, settings.text_cond_drop_prob)
        image_keep = draw.keep(4, settings.image_cond_drop_prob)
        guessed = ~draw.keep(10, settings.self_cond_prob) if self.prior.spec.self_cond else None
        t = (draw.uniform(1) * self.prior.noise_schedule.timesteps).long()
        error, cosine = self._error(model, batch, t, text_keep, image_keep, guessed)
        loss, figures = weighed(error, batch.is_class, self.config.preservation, self.config.optim.batch_size)
        return loss, {"cosine": cosine.mean(), **figures}

    def _error(
        self,
        model: nn.Module,
        batch: PriorBatch,
        t: Tensor,
        text_keep: Tensor,
        image_keep: Tensor,
        guessed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Each sample's weighted error (B,), and the cosine (B,) between implied and true x_start.

        Args:
            guessed: (B,) bool, which samples are shown a first guess; None where there is no such thing.
        """
        kind, schedule, settings = self.prior.spec.prediction, self.prior.noise_schedule, self.config.model
        x_start = self.prior.encode_embeds(batch.image_embed)
        noise = batch.draw.normal(2, x_start.shape[1])
        x_t = add_noise(schedule, x_start, noise, t)
        alpha, sigma = schedule.alpha(t, 2), schedule.sigma(t, 2)
        told = (batch.text_embed, batch.text_encodings, text_keep, image_keep)
        shown: dict[str, Any] = {}
        if guessed is not None:
            # of the same conditions: what was dropped must not come back through the guess
            shown["self_cond"] = self_condition(
                lambda: to_x_start(kind, model(x_t, t, *told), x_t, alpha, sigma), guessed
            )
        predicted = model(x_t, t, *told, **shown)
        error = (predicted - target(kind, x_start, noise, alpha, sigma)).square().mean(dim=1)
        weight = loss_weight(
            kind,
            schedule.log_snr(t),
            settings.min_snr_gamma,
            p2_gamma=settings.p2_gamma,
            p2_k=settings.p2_k,
        )
        implied = to_x_start(kind, predicted.detach(), x_t, alpha, sigma)
        return error * weight, F.cosine_similarity(implied, x_start)

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights learn at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Held-out loss, and how near its draws come to the true picture, the text and other pictures.

        Noise and timesteps are the same each time, every row is judged in every band of timesteps, and no
        condition is dropped: two validations differ by the weights alone.
        """
        assert isinstance(model, PriorFamily)
        count, timesteps = self._validated(), self.prior.noise_schedule.timesteps
        errors, cosines, times, drawn = [], [], [], []
        for band in range(BANDS):
            for first, size in _pieces(count):
                batch = self._val_rows(first, size, band, world.device)
                t = even_timesteps(band * count + first, size, BANDS * count, timesteps, world.device)
                keep = torch.ones(size, dtype=torch.bool, device=world.device)
                guessed = keep if self.prior.spec.self_cond else None
                error, cosine = self._error(as_module(model), batch, t, keep, keep, guessed)
                errors.append(error)
                cosines.append(cosine)
                times.append(t)
        for first, size in _pieces(count):
            drawn.append(self._drawn(model, self._val_rows(first, size, 0, world.device), first))
        error = torch.cat(errors).float()
        return {
            "loss": float(error.mean()),
            **loss_by_band(error, torch.cat(times), timesteps, BANDS),
            "denoised_cosine": float(torch.cat(cosines).mean()),
            **similarities(
                torch.cat(drawn),
                self.val.image_embed[:count].to(world.device),
                self.val.text_embed[:count].to(world.device),
            ),
        }

    def _validated(self) -> int:
        return min(len(self.val.ids), self.config.data.validate_samples)

    def _val_rows(self, first: int, size: int, band: int, device: torch.device) -> PriorBatch:
        draw = Draw(0x7A11, band, first, size, device)
        return rows(self.val, torch.arange(first, first + size), draw, device)

    def _drawn(self, model: PriorFamily, batch: PriorBatch, first: int) -> Tensor:
        """One draw a row, on seeds that are the rows' numbers."""
        words = batch.text_encodings
        text = TextFeatures(batch.text_embed, batch.text_embed.new_zeros(len(batch.text_embed), 0, 0))
        if words is not None:
            text = TextFeatures(batch.text_embed, words)
        seeds = range(first, first + len(batch.text_embed))
        return model.sample(text, seeds=seeds, cond_scale=1.0, steps=PREVIEW_STEPS, candidates=1)

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """A row per caption: its own logo, then the five real logos nearest to what the prior drew."""
        if self._pictures is None:
            return {}
        assert isinstance(model, PriorFamily)
        device = next(as_module(model).parameters()).device
        count = self._validated()
        drawn = self._drawn(model, self._val_rows(0, min(8, count), 0, device), 0)
        similarity = drawn @ self.val.image_embed[:count].to(device).T
        nearest = similarity.topk(min(5, count), dim=1).indices.tolist()
        order = [self._picture_of[number] for row, near in enumerate(nearest) for number in (row, *near)]
        return {"nearest": torch.from_numpy(self._pictures.pixels[order].astype("float32") / 255)}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, PriorFamily)
        settings, spec = self.config.model, model.spec.model_dump(mode="json")
        spec |= {
            name: probability > 0
            for name, probability in (
                ("saw_dropped_conditions", settings.text_cond_drop_prob),
                ("saw_dropped_images", settings.image_cond_drop_prob),
            )
            if name in spec
        }
        return {"kind": KIND_PRIOR, "family": self.family, "spec": spec, "parents": self.parents}


def _pieces(count: int) -> list[tuple[int, int]]:
    """First row and size of what is validated together."""
    return [(first, min(AT_ONCE, count - first)) for first in range(0, count, AT_ONCE)]


def _joined(pictures: Pictures, val: EmbeddingShard, config: PriorTrainConfig) -> dict[int, int]:
    """Number of an embedding -> number of its picture.

    Raises:
        DataError: a picture is missing.
    """
    place_of = {name: place for place, name in enumerate(pictures.ids)}
    missing = [name for name in val.ids if name not in place_of]
    if missing:
        raise DataError(
            f"{config.data.shards}: lacks {len(missing)} of the logos in {config.data.embeddings} "
            f"({missing[0]} …); name the shards that were embedded."
        )
    return {number: place_of[name] for number, name in enumerate(val.ids)}
