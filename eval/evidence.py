"""What the metrics look at: every picture and prompt once through the reference CLIP, beside the pixels.

Pictures are encoded here and nowhere else, so that a metric costs arithmetic only. Decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crest.images import read_image, square, to_array, to_float
from eval.systems import System

Floats = NDArray[np.float64]


class Encoder(Protocol):
    """The part of crest.models.clip.ClipEncoder that the evaluation uses."""

    hash: str
    parents: dict[str, str]

    def encode_image(self, images: Any) -> Any:
        """images (B, 3, H, W) in [0, 1] -> image_embed (B, D), float32, unit length."""

    def encode_text(self, texts: Sequence[str]) -> Any:
        """B texts -> an object with text_embed (B, D), float32, unit length."""


@dataclass(frozen=True)
class Gallery:
    """Pictures with their embeddings."""

    ids: tuple[str, ...]
    """file names of drawings, ids of real pictures"""
    pixels: NDArray[np.uint8]
    """(N, 3, H, W), all galleries of one evaluation at the same size"""
    image_embed: Floats
    """(N, D), unit length, by the reference CLIP"""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Evidence:
    """All that a metric may look at."""

    prompts: tuple[str, ...]
    """P texts"""
    text_embed: Floats
    """(P, D), unit length"""
    prompt_of: NDArray[np.int64]
    """(N,) number of the prompt that picture n of every system was drawn from"""
    systems: Mapping[str, Gallery]
    """name -> N drawings in the order of `prompt_of`; the baseline comes first"""
    real: Gallery | None = None
    """real pictures that no system was trained on (test split)"""
    train: Gallery | None = None
    """real pictures that the systems may have been trained on"""
    seed: int = 0

    @property
    def baseline(self) -> str:
        """The system that the others are compared with."""
        return next(iter(self.systems))

    def per_prompt(self, values: Floats) -> Floats:
        """Mean of a figure a picture (N,) within each prompt: (P,); NaN pictures are left out."""
        known = ~np.isnan(values)
        count = np.bincount(self.prompt_of[known], minlength=len(self.prompts))
        total = np.bincount(self.prompt_of[known], weights=values[known], minlength=len(self.prompts))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def encode(reference: Encoder, pixels: NDArray[np.uint8], batch_size: int, what: str) -> Floats:
    """Encode pictures in batches.

    Args:
        pixels: (N, 3, H, W).
        what: shown beside the progress bar.
    Returns:
        image_embed (N, D), unit length, float64 for the sums that follow.
    """
    import torch
    from tqdm import tqdm

    parts = []
    for first in tqdm(range(0, len(pixels), batch_size), desc=f"encode {what}", unit="batch", disable=None):
        images = torch.from_numpy(to_float(np.asarray(pixels[first : first + batch_size])))
        parts.append(reference.encode_image(images).cpu().numpy().astype(np.float64))
    return np.concatenate(parts)


def encode_texts(reference: Encoder, texts: Sequence[str], batch_size: int) -> Floats:
    """Encode texts in batches: text_embed (P, D), unit length."""
    parts = [
        reference.encode_text(list(texts[first : first + batch_size])).text_embed.cpu().numpy()
        for first in range(0, len(texts), batch_size)
    ]
    return np.concatenate(parts).astype(np.float64)


def gather(
    systems: Sequence[System], reference: Encoder, *, shards: Path | None, batch_size: int, seed: int
) -> Evidence:
    """Read and encode everything.

    Real pictures come at the size of the drawings: KID and CMMD would otherwise see the resolution.

    Args:
        systems: the baseline first, all with the same drawings.
        shards: real pictures, or none.
    """
    side_px = _common_side(systems)
    prompt_ids = systems[0].prompt_ids
    number = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
    texts = {drawing.prompt_id: drawing.prompt for drawing in systems[0].drawings}
    prompts = tuple(texts[prompt_id] for prompt_id in prompt_ids)
    galleries = {}
    for system in systems:
        pixels = np.stack([to_array(square(read_image(d.path), side_px)) for d in system.drawings])
        names = tuple(drawing.path.name for drawing in system.drawings)
        galleries[system.name] = Gallery(names, pixels, encode(reference, pixels, batch_size, system.name))
    real, train = None, None
    if shards is not None:
        real, train = (_real(shards, split, side_px, reference, batch_size) for split in ("test", "train"))
    return Evidence(
        prompts=prompts,
        text_embed=encode_texts(reference, prompts, batch_size),
        prompt_of=np.array([number[drawing.prompt_id] for drawing in systems[0].drawings], dtype=np.int64),
        systems=galleries,
        real=real,
        train=train,
        seed=seed,
    )


def _common_side(systems: Sequence[System]) -> int:
    """The smallest longer side of any system's pictures: nobody is scored on pixels that he did not draw."""
    from PIL import Image

    sides = []
    for system in systems:
        path = system.drawings[0].path
        with (
            contextlib.suppress(OSError),
            Image.open(path) as picture,
        ):  # a broken one is named when it is read
            sides.append(max(picture.size))
    return min(sides, default=64)


def _real(shards: Path, split: Any, side_px: int, reference: Encoder, batch_size: int) -> Gallery | None:
    from crest.pixels import open_pictures

    pictures = open_pictures(shards, split, side_px)
    if not len(pictures):
        return None
    return Gallery(
        tuple(pictures.ids), pictures.pixels, encode(reference, pictures.pixels, batch_size, f"real {split}")
    )
