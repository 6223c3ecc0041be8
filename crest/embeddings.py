"""Embedding shards: what a CLIP made of a split, joined to it by id.

`{split}-000000.safetensors` holds image_embed (N, D), text_embed (N, D) and text_encodings (N, L, K), all
float16 to halve the files (unit vectors lose less than 1e-3 by it; they are made unit length again on
reading). The manifest names the CLIP and the shards that they stem from: a prior and a decoder of different
CLIPs refuse to meet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crest.errors import DataError
from crest.records import (
    SPLITS,
    Manifest,
    Split,
    file_hash,
    hash_of,
    read_manifest,
    write_bytes,
    write_manifest,
)

MADE_BY = "python -m clip_train.embed (make embed)"


@dataclass(frozen=True)
class EmbeddingShard:
    """The embeddings of some samples, row by row."""

    ids: list[str]
    image_embed: Tensor
    """(N, D) float32, unit length"""
    text_embed: Tensor
    """(N, D) float32, unit length"""
    text_encodings: Tensor
    """(N, L, K) float16, zero past the end of the text"""


def write_embedding_shard(path: Path, shard: EmbeddingShard) -> None:
    """Write one shard whole or not at all."""
    tensors = {
        "image_embed": shard.image_embed.half().contiguous(),
        "text_embed": shard.text_embed.half().contiguous(),
        "text_encodings": shard.text_encodings.half().contiguous(),
    }
    write_bytes(path, save(tensors, {"ids": json.dumps(shard.ids)}))


def read_embedding_shard(path: Path) -> EmbeddingShard:
    """Read one shard.

    Raises:
        DataError: the file is cut short.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            ids = json.loads(stream.metadata()["ids"])
            image, text = stream.get_tensor("image_embed").float(), stream.get_tensor("text_embed").float()
            return EmbeddingShard(
                ids,
                F.normalize(image, dim=-1),
                F.normalize(text, dim=-1),
                stream.get_tensor("text_encodings"),
            )
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a whole embedding shard ({error}); run {MADE_BY} again.") from None


def finish_embeddings(folder: Path, counts: Mapping[str, int], parents: Mapping[str, str]) -> Manifest:
    """Write the manifest of an embeddings folder: the last act."""
    paths = sorted(folder.glob("*.safetensors"))
    manifest = Manifest(
        kind="embeddings",
        hash=hash_of({path.name: file_hash(path) for path in paths}),
        counts=dict(counts),
        parents=dict(parents),
        files={path.name: path.stat().st_size for path in paths},
    )
    write_manifest(folder, manifest)
    return manifest


def read_embeddings(folder: Path, split: Split) -> EmbeddingShard:
    """A whole split, joined; text encodings padded to the longest shard.

    Raises:
        DataError: unfinished, cut short, or without this split.
    """
    manifest = read_manifest(folder, "embeddings", MADE_BY)
    shards = [
        read_embedding_shard(folder / name) for name in sorted(manifest.files) if name.startswith(f"{split}-")
    ]
    if not shards:
        have = ", ".join(name for name in SPLITS if manifest.counts.get(name)) or "nothing"
        raise DataError(
            f"{folder}: holds no {split} split (it has {have}); pack shards with a {split} share and embed "
            "again."
        )
    length = max(shard.text_encodings.shape[1] for shard in shards)
    return EmbeddingShard(
        [name for shard in shards for name in shard.ids],
        torch.cat([shard.image_embed for shard in shards]),
        torch.cat([shard.text_embed for shard in shards]),
        torch.cat([F.pad(s.text_encodings, (0, 0, 0, length - s.text_encodings.shape[1])) for s in shards]),
    )


def embeddings_parents(folder: Path) -> dict[str, str]:
    """Hashes of what a finished embeddings folder was made from: "clip" and "shards"."""
    return dict(read_manifest(folder, "embeddings", MADE_BY).parents)
