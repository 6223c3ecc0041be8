"""Numbers that look random and are the same everywhere: weights, inputs and noise of the golden tensors.

A counter, hashed with whole numbers (SplitMix64), so that golden files hold answers and no weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from crest.diffusion.sampling import noise_after

COUNT = 2
"""Pictures or embeddings in each tensor."""
SEEDS = (5, 6)
"""Of the draws."""


def uniform(name: str, *shape: int) -> Tensor:
    """Numbers in [-1, 1) of a shape, float32, that belong to a name."""
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    # 24 bits: each is a float32 without rounding
    values = (state >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(values.reshape(shape))


def noise(name: str, *shape: int) -> Tensor:
    """Numbers of mean 0 and variance 1 that stand for a draw from the normal distribution."""
    return uniform(name, *shape) * 3**0.5


def weight(name: str, like: Tensor) -> Tensor:
    """A weight of published layout: what it is called says what size its numbers have."""
    shape, last = tuple(like.shape), name.rsplit(".", 1)[-1]
    numbers = uniform(name, *shape)
    if "relative_attention_bias" in name:
        return numbers * 0.02  # times 128 in the old arithmetic
    if last == "g" or (last == "weight" and len(shape) == 1):
        return 1 + numbers * 0.3
    if last == "bias":
        return numbers * 0.2
    if last == "weight" and "to_time_embeds" not in name:
        # mild answers of a U-Net, because a chain of steps multiplies what rounding leaves
        size = 0.3 if name.startswith("unets.") and name.split(".")[2] == "to_out" else 1.0
        return numbers * size * (3 / like[0].numel()) ** 0.5
    return numbers * 3**0.5


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A random state dict in place of another; noise schedules and rotary frequencies stay what they are."""
    fixed = ("noise_scheduler", "rotary_emb")
    return {
        name: tensor if any(part in name for part in fixed) else weight(name, tensor)
        for name, tensor in state.items()
    }


def numbered(prefix: str) -> Callable[[tuple[int, ...]], Tensor]:
    """A source of noise: its n-th draw is named after `prefix` and n."""
    count = iter(range(1 << 30))
    return lambda shape: noise(f"{prefix}.{next(count)}", *shape)


def seeded() -> Callable[[tuple[int, ...]], Tensor]:
    """The noise that Crest draws with for SEEDS: what it starts from, then what follows from that."""
    later: list[Callable[[], Tensor]] = []

    def draw(shape: tuple[int, ...]) -> Tensor:
        if not later:
            rows = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
            later.append(noise_after(torch.stack(rows)))
            return torch.stack(rows)
        return later[0]()

    return draw


@contextmanager
def drawn_from(source: Callable[[tuple[int, ...]], Tensor]) -> Iterator[None]:
    """torch.randn and torch.randn_like take their numbers from a source."""

    plain = torch.randn

    def randn(*shape: Any, generator: Any = None, **rest: Any) -> Tensor:
        if generator is not None:
            return plain(*shape, generator=generator, **rest)
        return source(tuple(shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape))

    def randn_like(like: Tensor, **_: Any) -> Tensor:
        return source(tuple(like.shape))

    with mock.patch.object(torch, "randn", randn), mock.patch.object(torch, "randn_like", randn_like):
        yield


def prior_inputs() -> dict[str, Tensor]:
    """What a small prior is asked; the second caption is shorter than the first."""
    words = uniform("prior.words", COUNT, 9, 32)
    words[1, 5:] = 0
    unit = torch.nn.functional.normalize
    return {
        "x_t": noise("prior.x_t", COUNT, 32),
        "t": torch.tensor([700, 41]),
        "text_embed": unit(uniform("prior.text", COUNT, 32), dim=-1),
        "text_encodings": words,
        "image_embed": unit(uniform("prior.image", COUNT, 32), dim=-1),
        "noise": noise("prior.noise", COUNT, 32),
    }


def decoder_inputs(side_px: int, text: bool, lowres: bool) -> dict[str, Tensor]:
    """What a small decoder is asked."""
    words = uniform("decoder.words", COUNT, 11, 20)
    words[1, 4:] = 0
    shape = (COUNT, 3, side_px, side_px)
    asked = {
        "x_t": noise("decoder.x_t", *shape),
        "t": torch.tensor([612, 41]),
        "image_embed": torch.nn.functional.normalize(uniform("decoder.image", COUNT, 32), dim=-1),
        "images": uniform("decoder.pixels", *shape) / 2 + 0.5,
        "noise": noise("decoder.noise", *shape),
    }
    if text:
        asked["text_encodings"] = words
    if lowres:
        asked["lowres"] = uniform("decoder.lowres", COUNT, 3, side_px // 2, side_px // 2) / 2 + 0.5
    return asked
