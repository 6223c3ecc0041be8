"""Logos and captions -> contrastive batches, cached; activations instead of pictures where a tower is cut.

A batch is a pure function of seed, step and position. Captions longer than the context are cut at a word, and
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clip_train.activations import kept_rows
from clip_train.config import ClipDataConfig, EmbedDataConfig
from clip_train.positives import Positives, positives
from crest.adapters import base_hash
from crest.augment import cached_px, random_crop, random_resized_crop, shift
from crest.errors import DataError
from crest.models.clip import ClipModel
from crest.models.clip_towers import DONE, Cuts, image_tower, text_tower
from crest.pixels import Pictures, batch_numbers, open_pictures
from crest.records import hash_of
from crest.world import Draw, World

ACTIVATIONS: Final = "activations"
"""The folder of what locked layers made, beside the shards or in a fold's own."""
_NOISE: Final = 2
_VIEW: Final = 3
"""Purposes of draws, beside those of crest/augment.py."""


@dataclass(frozen=True)
class ClipBatch:
    """This process's share of one contrastive batch."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], or what the image tower is entered with behind its cut"""
    tokens: Tensor
    """(B, L)"""
    numbers: Tensor
    """(B,) int64; of the samples"""
    chunk: int
    """samples in memory at once"""
    states: Tensor | None = None
    """(B, ...) what the text tower is entered with behind its cut"""
    ids: tuple[str, ...] = ()
    """of the B pictures, for errors that name them"""


class ClipData:
    """The splits of one shards folder at a model's picture size, captions tokenised once.

    Args:
        config: of the data.
        model: whose size, tokenizer and cuts count.
        pictures: train and val pictures, where they are not those of the shards' own splits.
    Raises:
        DataError: no pair to compare with, or pictures that both train and validate.
    """

    def __init__(
        self,
        config: ClipDataConfig,
        model: ClipModel,
        pictures: tuple[Pictures, Pictures] | None = None,
    ) -> None:
        self.config = config
        self._model, self._side_px = model, model.side_px
        damaged = config.max_damaged_share
        if pictures is None:
            self.train = open_pictures(config.shards, "train", self.kept_px(config, model), damaged)
            self.val = open_pictures(config.shards, "val", model.side_px, damaged)
        else:
            self.train, self.val = pictures
        _check(config, self.train, self.val)
        captions, self.cut_captions = model.fit_texts(self.train.captions)
        self._tokens = model.tokenizer(captions)
        self._crop = model.crop
        self.positives = self._alike(self.train)
        captions, self.cut_held_out = model.fit_texts(self.val.captions)
        self._val_tokens = model.tokenizer(captions)
        self._images: list[Tensor] = []
        self._states: Tensor | None = None
        self._val_images: Tensor | None = None
        self._val_states: Tensor | None = None

    @staticmethod
    def kept_px(config: ClipDataConfig, model: ClipModel) -> int:
        """Side of the pictures that training ones are cut out of."""
        return model.side_px if config.augment == "shift" else cached_px(model.side_px)

    def _alike(self, pictures: Pictures) -> Positives:
        config = self.config
        return positives(pictures, captions_alike=config.captions_alike, pictures_alike=config.pictures_alike)

    def held_out_answers(self) -> Tensor:
        """(N, N) bool: which held-out pictures are right answers for which captions, of those compared."""
        numbers = np.arange(min(len(self.val), self.config.validate_samples))
        return self._alike(self.val).matrix(numbers, numbers)

    def keep_activations(self, seed: int, world: World, folder: Path | None = None) -> None:
        """Compute what lies below the model's cuts, once; batches and held-out pairs then are that.

        Args:
            seed: of the views.
            world: its first process computes, the others read.
            folder: where they are kept; by default beside the shards, for every run to find.
        """
        model, cuts = self._model, self._model.cuts
        if cuts == Cuts():
            return
        if not world.is_main:  # the first process computes, the others read
            world.barrier()
        was_training = model.training
        model.eval().to(world.device)
        locked = hash_of(base_hash(model), world.precision, vars(cuts))
        folder = folder or self.config.shards.parent / ACTIVATIONS
        if cuts.image is not None:
            for view in range(self.config.views):
                shown = self._shown(seed, view)
                key = hash_of(locked, _name(self.train), self._variety(seed) if view else "plain")
                path = folder / f"image-{key}-{view:03d}.bin"
                what = f"keep pictures (view {view + 1} of {self.config.views})"
                self._images.append(self._kept_images(path, len(self.train), shown, what, world))

            def plain(first: int, last: int) -> Tensor:
                return torch.from_numpy(self.val.floats(np.arange(first, last)))

            path = folder / f"image-{hash_of(locked, _name(self.val))}-val.bin"
            self._val_images = self._kept_images(path, len(self.val), plain, "keep held-out pictures", world)
        if cuts.text is not None:
            for pictures, tokens, name in (
                (self.train, self._tokens, "train"),
                (self.val, self._val_tokens, "val"),
            ):
                path = folder / f"text-{hash_of(locked, pictures.captions)}-{name}.bin"
                kept = self._kept_texts(path, self._crop(tokens), world)
                self._states, self._val_states = (
                    (kept, self._val_states) if name == "train" else (self._states, kept)
                )
        model.train(was_training)
        if world.is_main:
            world.barrier()

    def _variety(self, seed: int) -> list[Any]:
        return [seed, self.config.model_dump(include={"augment", "shift_px", "noise"})]

    def _shown(self, seed: int, view: int) -> Callable[[int, int], Tensor]:
        """Training pictures of one view, by first and last number."""

        def shown(first: int, last: int) -> Tensor:
            numbers = np.arange(first, last)
            if view:
                return self.pictures(numbers, Draw(seed, -view, first, last - first))
            return self._plain(numbers)

        return shown

    def _kept_images(
        self, path: Path, count: int, shown: Callable[[int, int], Tensor], what: str, world: World
    ) -> Tensor:
        model, cut = self._model, self._model.cuts.image
        assert cut is not None

        @torch.no_grad()
        def below(first: int, last: int) -> Tensor:
            pictures = shown(first, last).to(world.device)
            with world.autocast():
                if cut == DONE:
                    return model.embed_images(pictures)
                return image_tower(model.clip).lower((pictures - model.mean) / model.std, cut)

        return kept_rows(path, count, below, what=what)

    def _kept_texts(self, path: Path, tokens: Tensor, world: World) -> Tensor:
        tower, cut = text_tower(self._model.clip), self._model.cuts.text
        assert cut is not None

        @torch.no_grad()
        def below(first: int, last: int) -> Tensor:
            with world.autocast():
                return tower.lower(tokens[first:last].to(world.device), cut)

        return kept_rows(path, len(tokens), below, what="keep captions")

    def _plain(self, numbers: NDArray[np.int64]) -> Tensor:
        """Pictures as they are, larger ones brought to the model's size: nothing is cut off."""
        self.train.refuse_damaged()
        levels = torch.from_numpy(self.train.pixels[numbers])
        if levels.shape[-1] != self._side_px:
            levels = F.interpolate(levels, (self._side_px, self._side_px), mode="bilinear", antialias=True)
        return levels.float() / 255

    def held_out(self, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Held-out pairs as the towers are entered: pictures, tokens, and states of a cut text tower."""
        tokens = self._crop(self._val_tokens[first:last])
        states = None if self._val_states is None else self._val_states[first:last]
        if states is not None and states.ndim == 3:
            states = states[:, : tokens.shape[1]]
        if self._val_images is None:
            images = torch.from_numpy(self.val.floats(np.arange(first, last)))
        else:
            images = self._val_images[first:last]
        return images.to(device), tokens.to(device), None if states is None else states.to(device)

    def batches(
        self, seed: int, batch_size: int, micro: int, world: World, start: int
    ) -> Iterator[ClipBatch]:
        """Endless batches from step `start`, a pure function of seed, step and position."""
        mine = batch_size // world.size
        step = start
        while True:
            numbers = batch_numbers(seed, len(self.train), batch_size, step)
            tokens = self._crop(self._tokens[torch.from_numpy(numbers)])  # one length on every process
            own = slice(world.rank * mine, (world.rank + 1) * mine)
            draw = Draw(seed, step, world.rank * mine, mine)
            states = None if self._states is None else self._states[torch.from_numpy(numbers[own])]
            if states is not None and states.ndim == 3:
                states = states[:, : tokens.shape[1]]
            yield ClipBatch(
                self._entered(numbers[own], draw).to(world.device),
                tokens[own].to(world.device),
                torch.from_numpy(numbers[own]).to(world.device),
                micro,
                None if states is None else states.to(world.device),
                tuple(self.train.ids[number] for number in numbers[own]),
            )
            step += 1

    def _entered(self, numbers: NDArray[np.int64], draw: Draw) -> Tensor:
        """What the image tower is entered with."""
        if not self._images:
            return self.pictures(numbers, draw)
        if len(self._images) == 1:
            return self._images[0][torch.from_numpy(numbers)]
        views = (draw.uniform(_VIEW).cpu() * len(self._images)).long().tolist()
        return torch.stack(
            [self._images[view][row] for view, row in zip(views, numbers.tolist(), strict=True)]
        )

    def pictures(self, numbers: NDArray[np.int64], draw: Draw) -> Tensor:
        """Training pictures as they are shown, (B, 3, H, W) in [0, 1]."""
        return augmented(self.train, numbers, draw, self._side_px, self.config)


def _name(pictures: Pictures) -> str:
    """What tells one set of pictures from another."""
    return hash_of(pictures.shards_hash, pictures.ids, pictures.pixels.shape)


def _check(config: ClipDataConfig, train: Pictures, val: Pictures) -> None:
    for split, pictures in (("train", train), ("val", val)):
        if len(pictures) < 2:
            raise DataError(
                f"{config.shards}: the {split} split holds {len(pictures)} logos, expected at least 2; pack "
                "more logos or a larger pack.val_share."
            )
    same = set(train.ids) & set(val.ids)
    shared = set(train.groups) & set(val.groups)
    if same or shared:
        what = f"{len(same)} pictures" if same else f"{len(shared)} groups, such as {min(shared)!r},"
        raise DataError(
            f"{config.shards}: {what} lie both in train and in val, so learning by heart would look like "
            "learning; run python -m scraper.pack (make shards) again."
        )


def augmented(
    pictures: Pictures,
    numbers: NDArray[np.int64],
    draw: Draw,
    side_px: int,
    settings: ClipDataConfig | EmbedDataConfig,
) -> Tensor:
    """Pictures of these numbers as training shows them, (B, 3, side_px, side_px) in [0, 1].

    Args:
        pictures: at `side_px` to be moved, at `cached_px(side_px)` to be cut.
        numbers: (B,) which of them.
        draw: of B samples.
        side_px: of what comes out.
        settings: how they vary.
    """
    if settings.augment == "shift":
        images = shift(torch.from_numpy(pictures.floats(numbers)), draw, settings.shift_px)
    else:
        cut = random_crop if settings.augment == "crop" else random_resized_crop
        images = cut(pictures.pixels, numbers, draw, side_px)
    return add_noise(images, draw, settings.noise)


def add_noise(images: Tensor, draw: Draw, noise: float) -> Tensor:
    """Pictures (B, 3, H, W) with normal noise of this deviation, still in [0, 1]."""
    if noise:
        images = (images + noise * draw.normal(_NOISE, *images.shape[1:])).clamp(0, 1)
    return images
