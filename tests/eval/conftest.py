"""A small world for the evaluation: two systems that draw discs, real discs, and a weightless encoder."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from crest.colours import COLOURS, colour_words
from eval.evidence import Evidence, Gallery

NAMES = sorted(COLOURS)


class FakeEncoder:
    """Sees the colour of the middle and of the corner, and reads the first two colour words of a text."""

    def __init__(self, digest: str = "reference0000000", parents: Mapping[str, str] | None = None) -> None:
        self.hash, self.parents = digest, dict(parents or {})

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        middle = images.shape[-1] // 2
        return self._unit(images[:, :, middle, middle], images[:, :, 1, 1])

    def encode_text(self, texts: Sequence[str]) -> Any:
        words = [[*colour_words(text), "white", "white"][:2] for text in texts]
        colours = torch.tensor([[COLOURS.get(word, (0, 0, 0)) for word in pair] for pair in words]) / 255
        return SimpleNamespace(text_embed=self._unit(colours[:, 0], colours[:, 1]))

    @staticmethod
    def _unit(middle: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
        constant = torch.full((len(middle), 1), 0.3)
        return torch.nn.functional.normalize(
            torch.cat([middle - 0.5, corner - 0.5, constant], 1).float(), dim=1
        )


def disc(colour: str, ground: str, size: int = 20, side_px: int = 32) -> Image.Image:
    picture = Image.new("RGB", (side_px, side_px), COLOURS[ground])
    near = (side_px - size) // 2
    ImageDraw.Draw(picture).ellipse((near, near, side_px - near, side_px - near), fill=COLOURS[colour])
    return picture


def prompts(count: int) -> list[tuple[str, str, str]]:
    """(colour, ground, text), all different for fewer than 90."""
    pairs = [(a, b) for a in NAMES for b in NAMES if a != b]
    order = np.random.default_rng(7).permutation(len(pairs))
    return [
        (*pairs[n], f'A {pairs[n][0]} disc on {pairs[n][1]}, "club" <{i}>.')
        for i, n in enumerate(order[:count])
    ]


@pytest.fixture
def encoder() -> type[FakeEncoder]:
    return FakeEncoder


@pytest.fixture
def draw_system() -> Callable[..., Path]:
    """Write a samples folder: `right` is the share of pictures in the colour that was asked for."""

    def draw(
        folder: Path,
        *,
        right: float = 1.0,
        count: int = 12,
        seeds: int = 1,
        clip: str = "clip000000000000",
        noise: int = 0,
    ) -> Path:
        folder.mkdir(parents=True)
        rng = np.random.default_rng([int(right * 100), noise])
        rows = []
        for index, (colour, ground, text) in enumerate(prompts(count)):
            for seed in range(seeds):
                drawn = colour if rng.random() < right else NAMES[(NAMES.index(colour) + 3) % len(NAMES)]
                name = f"{index:05d}-{seed}.png"
                disc(drawn, ground, 16 + 2 * seed).save(folder / name)
                rows.append(
                    {
                        "prompt_id": f"p{index:03d}",
                        "prompt": text,
                        "seed": seed,
                        "index": index,
                        "file": name,
                        "clip": clip,
                    }
                )
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return draw


@pytest.fixture
def real_shards(tmp_path: Path) -> Path:
    """Shards of real discs: 40 to train on, 24 to test on, of other sizes than the drawn ones."""
    from crest.shards import Sample, png_bytes, write_shards

    def samples(split: int, count: int) -> list[Sample]:
        made = []
        for number in range(count):
            colour, ground, text = prompts(80)[(number * 7 + split) % 80]
            content = png_bytes(disc(colour, ground, 12 + (number + split) % 9, side_px=48))
            made.append(Sample(hashlib.sha256(content + bytes([number])).hexdigest()[:16], content, text, {}))
        return made

    write_shards(
        tmp_path / "data" / "shards",
        {"train": samples(0, 40), "test": samples(3, 24)},
        samples_per_shard=100,
        parents={},
    )
    return tmp_path / "data" / "shards"


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence from arrays: 10 prompts with 2 pictures each unless told otherwise, and real pictures."""

    def make(
        systems: Mapping[str, np.ndarray] | None = None, texts: Sequence[str] | None = None, *,
        real: int = 30, pixels: np.ndarray | None = None, width: int = 16,
    ) -> Evidence:  # fmt: skip
        rng = np.random.default_rng(0)

        def unit(*shape: int) -> np.ndarray:
            rows = rng.normal(size=shape) + 0.5
            return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

        def gallery(name: str, embed: np.ndarray, shown: np.ndarray | None = None) -> Gallery:
            shown = (
                rng.integers(0, 256, size=(len(embed), 3, 16, 16), dtype=np.uint8) if shown is None else shown
            )
            return Gallery(tuple(f"{name}-{n}" for n in range(len(embed))), shown, embed)

        texts = texts or [f"a {NAMES[n]} disc on {NAMES[(n + 3) % 10]}" for n in range(10)]
        systems = systems or {"stock": unit(2 * len(texts), width), "tuned": unit(2 * len(texts), width)}
        each = len(next(iter(systems.values()))) // len(texts)
        return Evidence(
            prompts=tuple(texts),
            text_embed=unit(len(texts), width),
            prompt_of=np.repeat(np.arange(len(texts)), each),
            systems={name: gallery(name, embed, pixels) for name, embed in systems.items()},
            real=gallery("real", unit(real, width)) if real else None,
            train=gallery("train", unit(2 * real, width)) if real else None,
        )

    return make
