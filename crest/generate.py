"""Text to logo: CLIP, prior and decoder composed, and a folder of pictures that can be drawn again.

A logo depends on its prompt and its own seed alone, up to the rounding of a batch's arithmetic.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from crest.errors import ConfigError, DataError, WeightsError
from crest.generate_config import DrawConfig, GenerateConfig, ModelsConfig
from crest.images import from_float, grid, read_image, to_array, to_float
from crest.models.clip import ClipEncoder, load_clip
from crest.models.decoder_sampling import sample_images
from crest.models.families import (
    DecoderFamily,
    PriorFamily,
    as_module,
    load_decoder_family,
    load_prior_family,
)
from crest.records import (
    Manifest,
    hash_of,
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
    write_jsonl,
    write_manifest,
)
from crest.shards import png_bytes, read_samples
from crest.world import fast_bf16, mix_seed, pick_device

OVERVIEW = 64
"""Pictures shown together in grid.png, one row a prompt where a prompt has several."""


@dataclass(frozen=True)
class Prompt:
    """What is to be drawn."""

    id: str
    text: str


class Generator:
    """CLIP, prior and the decoders of a cascade that belong together.

    Raises:
        WeightsError: the prior or a decoder stems from another CLIP, or a decoder does not take what the one
            before it draws; both are named.
    """

    def __init__(self, config: ModelsConfig) -> None:
        self.device = pick_device(config.device)
        self.clip: ClipEncoder = load_clip(config.clip, self.device)
        self.prior: PriorFamily
        self.prior, self.prior_hash, card = load_prior_family(config.prior)
        self._refuse_other_clip(config, config.prior, card)
        self.decoders: list[DecoderFamily] = []
        self.decoder_hashes: list[str] = []
        places = [config.decoder, *config.upsamplers]
        for place in places:
            decoder, digest, card = load_decoder_family(place)
            self._refuse_other_clip(config, place, card)
            self.decoders.append(decoder)
            self.decoder_hashes.append(digest)
        _refuse_other_cascade(places, self.decoders)
        for model in (self.prior, *self.decoders):
            as_module(model).to(self.device).eval()

    def _refuse_other_clip(self, config: ModelsConfig, place: str, card: Mapping[str, Any]) -> None:
        found = card.get("parents", {}).get("clip", "?")
        if found != self.clip.hash:
            raise WeightsError(
                f"{place}: was trained with CLIP {found}, but {config.clip} is {self.clip.hash}; name "
                "the CLIP that it was trained with, or train it on embeddings of this one."
            )

    @property
    def hashes(self) -> dict[str, str]:
        """Name of each network -> the hash of its weights."""
        names = ["decoder", *(f"decoder_{number}" for number in range(2, len(self.decoders) + 1))]
        decoders = dict(zip(names, self.decoder_hashes, strict=True))
        return {"clip": self.clip.hash, "prior": self.prior_hash, **decoders}

    def draw(self, texts: Sequence[str], seeds: Sequence[int], settings: DrawConfig) -> Tensor:
        """One picture per text.

        Args:
            texts: B prompts; seeds: one each.
        Returns:
            (B, 3, side, side) float32 in [0, 1].
        """
        arithmetic = (
            torch.autocast(self.device.type, torch.bfloat16)
            if fast_bf16(self.device)
            else contextlib.nullcontext()
        )
        with torch.no_grad(), arithmetic:
            # each network takes its own number of tokens of these
            lengths = [decoder.spec.max_text_len for decoder in self.decoders]
            text = self.clip.encode_text(texts, length=max(self.prior.spec.max_text_len, *lengths))
            image_embed = self.prior.sample(
                text,
                seeds=[mix_seed(seed, 1) for seed in seeds],
                cond_scale=settings.prior_cond_scale,
                steps=settings.prior_steps,
                candidates=settings.candidates,
            )
            pictures: Tensor | None = None
            for number, decoder in enumerate(self.decoders, start=1):
                pictures = sample_images(
                    decoder,
                    image_embed,
                    None if decoder.spec.text_width is None else text.text_encodings,
                    seeds=[mix_seed(seed, 1 + number) for seed in seeds],
                    steps=settings.steps if number == 1 else settings.upsampler_steps,
                    cond_scale=settings.cond_scale if number == 1 else settings.upsampler_cond_scale,
                    sampler=settings.sampler,
                    lowres=pictures,
                    lowres_noise_level=settings.lowres_noise_level,
                )
            assert pictures is not None
            return pictures.cpu()


def _refuse_other_cascade(places: Sequence[str], decoders: Sequence[DecoderFamily]) -> None:
    """Each decoder must be the next of the cascade, and made for the size that the one before draws."""
    for number, (place, decoder) in enumerate(zip(places, decoders, strict=True), start=1):
        spec = decoder.spec
        setting = "models.decoder" if number == 1 else f"models.upsamplers, place {number - 1}"
        if spec.unet_number != number:
            raise WeightsError(
                f"{setting}: {place} is unet_number {spec.unet_number} of a cascade, expected {number}; name "
                "every U-Net from 1 on, in their order."
            )
        if number == 1:
            continue
        before = decoders[number - 2].spec.side_px
        if spec.lowres_side_px != before:
            raise WeightsError(
                f"{setting}: {place} enlarges pictures of {spec.lowres_side_px} px, but {places[number - 2]} "
                f"draws {before} px; name decoders that fit."
            )


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts from a .jsonl file (`text`, optional `id`), a text file, one a line, or a shards folder.

    Of a shards folder the test split's captions are taken, each distinct one once.

    Raises:
        DataError: no prompt in it.
    """
    rows: list[tuple[str | None, str | None]]
    if path.is_dir():
        first_of = {sample.caption: sample.id for sample in reversed(list(read_samples(path, "test")))}
        rows = [(name, text) for text, name in reversed(first_of.items())]
    elif path.suffix == ".jsonl":
        rows = [(row.get("id"), row.get("text")) for row in read_jsonl(path)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file of prompts; write one prompt a line.") from None
        rows = [(None, line.strip()) for line in lines if line.strip()]
    prompts = [
        Prompt(str(name or f"{number:04d}"), str(text)) for number, (name, text) in enumerate(rows) if text
    ]
    if len(prompts) < len(rows) or not prompts:
        raise DataError(
            f"{path}: {len(rows) - len(prompts)} of {len(rows)} rows have no text; expected one prompt a "
            "row and one row at least."
        )
    return prompts


def generate(config: GenerateConfig, prompts: Sequence[Prompt]) -> Path:
    """Draw every prompt into `draw.out`; pictures that are there already are kept.

    Returns:
        the folder, with samples.jsonl (enough to draw each picture again) and manifest.json.
    """
    settings, out = config.draw, config.draw.out
    models = Generator(config.models)
    # settings of what does not draw are left out, so that they can change beside finished pictures
    unused = (
        set()
        if config.models.upsamplers
        else {"upsampler_steps", "upsampler_cond_scale", "lowres_noise_level"}
    )
    recipe = {
        **models.hashes,
        **settings.model_dump(mode="json", exclude={"prompts", "out", "batch_size"} | unused),
        "prompts": [[prompt.id, prompt.text] for prompt in prompts],
    }
    stamp = out / "recipe.json"
    if stamp.exists() and read_json(stamp) != recipe:
        raise ConfigError(
            f"{out}: holds pictures of other models, prompts or settings; name another draw.out or remove it."
        )
    if (out / "manifest.json").exists():
        print(f"{out}: finished before; nothing to do")
        return out
    write_json(stamp, recipe)
    rows = [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "seed": mix_seed(settings.seed, number, k) & 0xFFFFFFFF,
            "index": number * settings.per_prompt + k,
            "file": f"{number:04d}-{k:02d}.png",
            **models.hashes,
            "sampler": settings.sampler,
            "steps": settings.steps,
            "cond_scale": settings.cond_scale,
            "prior_steps": settings.prior_steps,
            "prior_cond_scale": settings.prior_cond_scale,
            "candidates": settings.candidates,
        }
        for number, prompt in enumerate(prompts)
        for k in range(settings.per_prompt)
    ]
    started = time.monotonic()
    todo = [row for row in rows if not (out / str(row["file"])).exists()]
    with tqdm(total=len(rows), desc="draw", unit="logo", disable=None) as progress:
        for first in range(0, len(rows), settings.batch_size):
            batch = rows[first : first + settings.batch_size]
            _draw_missing(models, batch, settings, out)
            progress.update(len(batch))
    write_jsonl(out / "samples.jsonl", rows)
    _write_overview(out, [str(row["file"]) for row in rows[:OVERVIEW]], settings.per_prompt)
    sizes = {str(row["file"]): (out / str(row["file"])).stat().st_size for row in rows}
    write_manifest(
        out,
        Manifest(
            kind="samples",
            hash=hash_of(recipe),
            counts={"prompts": len(prompts), "pictures": len(rows)},
            parents=models.hashes,
            files=sizes,
            details={"seconds": round(time.monotonic() - started, 2), "drawn_now": len(todo)},
        ),
    )
    return out


def _write_overview(out: Path, files: Sequence[str], per_prompt: int) -> None:
    pictures = np.stack([to_float(to_array(read_image(out / name))) for name in files])
    columns = per_prompt if per_prompt > 1 else math.ceil(math.sqrt(len(files)))
    write_bytes(out / "grid.png", png_bytes(from_float(grid(pictures, columns))))


def _draw_missing(models: Generator, rows: Sequence[dict[str, Any]], settings: DrawConfig, out: Path) -> None:
    # a batch with a gap is drawn whole, so that rounding can't tell a folder that was interrupted
    missing = [not (out / str(row["file"])).exists() for row in rows]
    if not any(missing):
        return
    pictures = models.draw([str(row["prompt"]) for row in rows], [int(row["seed"]) for row in rows], settings)
    for row, picture in itertools.compress(zip(rows, pictures, strict=True), missing):
        write_bytes(out / str(row["file"]), png_bytes(from_float(picture.numpy())))
