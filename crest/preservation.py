"""What the unmodified models draw of a class, made once and kept, so that training on subjects forgets less.

The class-specific prior preservation loss of DreamBooth asks for pictures that the model itself drew before
its first step (Ruiz et al. 2022, arXiv 2208.12242, section 3.2). They lie beside the embeddings of a run as
shards and embeddings of their own, under a name made of all that they depend on, and are read as any other.
Refuses to draw with models of another CLIP.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from crest.adapter_files import parse, stack_hash
from crest.checkpoint import locate_weights, short_hash
from crest.embeddings import (
    EmbeddingShard,
    embeddings_parents,
    finish_embeddings,
    is_embedding_shard,
    write_embedding_shard,
)
from crest.errors import ConfigError, WeightsError
from crest.generate import Prompt, generate, read_prompts
from crest.generate_config import DrawConfig, GenerateConfig, ModelsConfig
from crest.models.clip import ClipEncoder, load_clip
from crest.models.families import as_module, load_prior_family
from crest.pixels import open_pictures
from crest.preservation_config import PreservationConfig
from crest.records import content_id, hash_of, read_jsonl, write_json
from crest.shards import Sample, write_shards
from crest.world import mix_seed, pick_device

PIECE: Final = 64
"""Samples that are embedded together, and lie in one file."""


@dataclass(frozen=True)
class ClassPictures:
    """Where the pictures of the classes lie."""

    shards: Path
    embeddings: Path


def class_prompts(config: PreservationConfig) -> list[str]:
    """One prompt a class picture: the given ones in turn.

    Raises:
        ConfigError: none is given. DataError: the file holds none.
    """
    if isinstance(config.prompts, Path):
        given = [prompt.text for prompt in read_prompts(config.prompts)]
    else:
        given = list(config.prompts)
    if not given or not all(text.strip() for text in given):
        raise ConfigError(
            f"preservation.prompts: found {len(given)} prompts, some of them empty, expected one class "
            "prompt or more; write what is to stay known."
        )
    return [given[number % len(given)] for number in range(config.pictures)]


def class_pictures(config: PreservationConfig, embeddings: Path, start: str, device: str) -> ClassPictures:
    """The class pictures that a decoder's run learns beside its own, drawn now where they are not there yet.

    Args:
        config: of what, by which models.
        embeddings: of the run; the class pictures are kept beside them.
        start: the decoder that the run starts from.
        device: that draws.
    Raises:
        WeightsError: models of different CLIPs, or a CLIP that did not make `embeddings`.
    """
    texts = class_prompts(config)
    decoders = config.decoders or (start,)
    models = ModelsConfig(
        clip=config.clip,
        prior=config.prior or "stock/prior",
        decoder=decoders[0],
        upsamplers=decoders[1:],
        device=device,
    )
    parents = embeddings_parents(embeddings)
    weights = {place: _weights_hash(place, "decoder") for place in decoders}
    key = hash_of(
        "class pictures",
        parents["clip"],
        config.clip,
        _weights_hash(models.prior, "prior"),
        weights,
        texts,
        config.model_dump(
            include={"seed", "steps", "cond_scale", "prior_steps", "prior_cond_scale", "candidates"}
        ),
    )
    folder = embeddings.parent / "class_pictures" / key
    made = ClassPictures(folder / "shards", folder / "embeddings")
    if (made.embeddings / "manifest.json").exists():
        _say(folder, len(texts), "pictures", "kept")
        return made
    draw = DrawConfig(
        out=folder / "samples",
        seed=config.seed,
        steps=config.steps,
        upsampler_steps=config.steps,
        cond_scale=config.cond_scale,
        prior_steps=config.prior_steps,
        prior_cond_scale=config.prior_cond_scale,
        candidates=config.candidates,
    )
    prompts = [Prompt(f"{number:06d}", text) for number, text in enumerate(texts)]
    generate(GenerateConfig(models=models, draw=draw), prompts)  # its models are freed when it returns
    _pack(draw.out, made.shards, weights)
    _embed(_embedding_clip(config, parents["clip"], device), made)
    write_json(folder / "prompts.json", texts)
    _say(folder, len(texts), "pictures", f"drawn; {draw.out / 'grid.png'} shows them")
    return made


def class_embeddings(config: PreservationConfig, embeddings: Path, start: str, device: str) -> Path:
    """The same for a prior's run: class prompts with what the unmodified prior makes of them.

    Args:
        start: the prior that the run starts from.
    Returns:
        a folder of embeddings, without pictures.
    Raises:
        WeightsError: a CLIP that did not make `embeddings`.
    """
    texts, place = class_prompts(config), config.prior or start
    parents = embeddings_parents(embeddings)
    settings = config.model_dump(include={"seed", "prior_steps", "prior_cond_scale", "candidates"})
    key = hash_of(
        "class embeddings", parents["clip"], config.clip, _weights_hash(place, "prior"), texts, settings
    )
    folder = embeddings.parent / "class_embeddings" / key
    if (folder / "manifest.json").exists():
        _say(folder, len(texts), "embeddings", "kept")
        return folder
    by, told = load_clip(config.clip, pick_device(device)), None
    if by.hash != parents["clip"]:
        told = _embedding_clip(config, parents["clip"], device)
    prior, _, card = load_prior_family(place)
    if card.get("parents", {}).get("clip", by.hash) != by.hash:
        raise WeightsError(
            f"{place}: was trained with CLIP {card['parents']['clip']}, but preservation.clip {config.clip} "
            f"is {by.hash}; name the CLIP that it was trained with."
        )
    as_module(prior).to(by.device).eval()
    ids = [hash_of(number, text) for number, text in enumerate(texts)]
    for first in range(0, len(texts), PIECE):
        path, piece = folder / f"train-{first // PIECE:06d}.safetensors", slice(first, first + PIECE)
        if is_embedding_shard(path, ids[piece]):
            continue
        read = by.encode_text(texts[piece], length=prior.spec.max_text_len)
        with torch.no_grad():
            drawn = prior.sample(
                read,
                seeds=[mix_seed(config.seed, first + row) for row in range(len(ids[piece]))],
                cond_scale=config.prior_cond_scale,
                steps=config.prior_steps,
                candidates=config.candidates,
            )
        text = (told or by).encode_text(texts[piece])
        shard = EmbeddingShard(ids[piece], drawn.cpu(), text.text_embed.cpu(), text.text_encodings.cpu())
        write_embedding_shard(path, shard)
    finish_embeddings(folder, {"train": len(texts)}, {"clip": parents["clip"], "shards": hash_of(texts)})
    _say(folder, len(texts), "embeddings", "drawn")
    return folder


def _weights_hash(place: str, kind: str) -> str:
    return stack_hash(short_hash(locate_weights(place, kind)), parse(place).adapters)


def _embedding_clip(config: PreservationConfig, wanted: str, device: str) -> ClipEncoder:
    place = config.embed_clip or config.clip
    clip = load_clip(place, pick_device(device))
    if clip.hash != wanted:
        raise WeightsError(
            f"preservation.embed_clip: {place} is CLIP {clip.hash}, but data.embeddings were made with "
            f"{wanted}; name that CLIP."
        )
    return clip


def _pack(samples: Path, shards: Path, weights: dict[str, str]) -> None:
    """Drawn pictures as shards of one split."""
    drawn = [
        Sample(
            content_id(row["file"].encode()),
            (samples / str(row["file"])).read_bytes(),
            str(row["prompt"]),
            {"group": "class", "seed": row["seed"]},
        )
        for row in read_jsonl(samples / "samples.jsonl")
    ]
    write_shards(shards, {"train": drawn}, samples_per_shard=1000, parents=weights)


def _embed(clip: ClipEncoder, made: ClassPictures) -> None:
    pictures = open_pictures(made.shards, "train", clip.model.side_px)
    for first in range(0, len(pictures), PIECE):
        path = made.embeddings / f"train-{first // PIECE:06d}.safetensors"
        numbers = range(first, min(first + PIECE, len(pictures)))
        ids = [pictures.ids[number] for number in numbers]
        if is_embedding_shard(path, ids):
            continue
        images: Tensor = torch.from_numpy(pictures.floats(_array(numbers)))
        text = clip.encode_text([pictures.captions[number] for number in numbers])
        embed = clip.encode_image(images)
        shard = EmbeddingShard(ids, embed.cpu(), text.text_embed.cpu(), text.text_encodings.cpu())
        write_embedding_shard(path, shard)
    parents = {"clip": clip.hash, "shards": pictures.shards_hash}
    finish_embeddings(made.embeddings, {"train": len(pictures)}, parents)


def _array(numbers: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(numbers, dtype=np.int64)


def _say(folder: Path, count: int, what: str, how: str) -> None:
    print(f"{folder}: {count} class {what} {how}", file=sys.stderr)
