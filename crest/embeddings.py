"""Embedding shards: what a CLIP made of a split, joined to it by id.

`{split}-000000.safetensors` holds image_embed (N, D), text_embed (N, D) and, where they were asked for,
text_encodings (N, L, K) and further_views (N, V - 1, D), all float16 to halve the files (unit vectors lose
less than 1e-3 by it; they are made unit length again on reading). The manifest names the CLIP and the shards
that they stem from: a prior and a decoder of different CLIPs refuse to meet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
from crest.world import Draw

MADE_BY = "python -m clip_train.embed (make embed)"
CUT: Final = "captions_cut"
"""A tensor of one number, and a reason in the manifest; as a second entry of metadata it would come in an
order that changes from file to file, and with it the bytes."""
_VIEW: Final = 9  # the purpose of a draw: which view of a picture, beside those of the stages


@dataclass(frozen=True)
class EmbeddingShard:
    """The embeddings of some samples, row by row."""

    ids: list[str]
    image_embed: Tensor
    """(N, D) float32, unit length; of the pictures as they are, which is view 0"""
    text_embed: Tensor
    """(N, D) float32, unit length"""
    text_encodings: Tensor
    """(N, L, K) float16, zero past the end of the text; (N, 0, 0) where none were written or asked for"""
    further_views: Tensor | None = None
    """(N, V - 1, D) float32, unit length; of the pictures as training varies them, views 1 to V - 1"""
    captions_cut: int = 0
    """captions that were longer than the CLIP's context"""

    @property
    def views(self) -> int:
        """V, the plain picture counted."""
        return 1 if self.further_views is None else 1 + self.further_views.shape[1]


def write_embedding_shard(path: Path, shard: EmbeddingShard) -> str:
    """Write one shard whole or not at all.

    Returns:
        the SHA-256 of the file, for `finish_embeddings`.
    """
    tensors = {"image_embed": shard.image_embed, "text_embed": shard.text_embed}
    if shard.text_encodings.numel():
        tensors["text_encodings"] = shard.text_encodings
    if shard.further_views is not None:
        tensors["further_views"] = shard.further_views
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    halves[CUT] = torch.tensor([shard.captions_cut], dtype=torch.int32)
    content = save(halves, {"ids": json.dumps(shard.ids)})
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_embedding_shard(path: Path, *, encodings: bool = True, views: bool = False) -> EmbeddingShard:
    """Read one shard.

    Args:
        path: of the file.
        encodings: text_encodings too, which are most of its bytes.
        views: further views too.
    Raises:
        DataError: the file is cut short, or was written without text_encodings.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            names, ids = set(stream.keys()), json.loads(stream.metadata()["ids"])
            cut = int(stream.get_tensor(CUT)) if CUT in names else 0
            image, text = (_unit(stream.get_tensor(name)) for name in ("image_embed", "text_embed"))
            if encodings and "text_encodings" not in names:
                raise DataError(
                    f"{path}: holds no text_encodings, which this step reads; embed again with "
                    "model.text_encodings true."
                )
            words = stream.get_tensor("text_encodings") if encodings else torch.empty(len(ids), 0, 0)
            further = (
                _unit(stream.get_tensor("further_views")) if views and "further_views" in names else None
            )
            return EmbeddingShard(ids, image, text, words, further, cut)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a whole embedding shard ({error}); run {MADE_BY} again.") from None


def _unit(halves: Tensor) -> Tensor:
    return F.normalize(halves.float(), dim=-1)


def is_embedding_shard(path: Path, ids: list[str]) -> bool:
    """Whether a file is a whole shard of these samples, in this order; only its header is read."""
    try:
        with safe_open(path, framework="pt") as stream:
            return bool(json.loads(stream.metadata()["ids"]) == ids)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return False


def _captions_cut(path: Path) -> int:
    with safe_open(path, framework="pt") as stream:
        return int(stream.get_tensor(CUT)) if CUT in stream.keys() else 0  # noqa: SIM118


def finish_embeddings(
    folder: Path,
    counts: Mapping[str, int],
    parents: Mapping[str, str],
    *,
    details: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Manifest:
    """Write the manifest of an embeddings folder: the last act.

    Args:
        counts: split -> rows.
        parents: hashes of the CLIP and the shards.
        details: how they were made.
        hashes: file name -> SHA-256, where it is known already.
    """
    paths, known = sorted(folder.glob("*.safetensors")), hashes or {}
    cut = sum(map(_captions_cut, paths))
    manifest = Manifest(
        kind="embeddings",
        hash=hash_of({path.name: known.get(path.name) or file_hash(path) for path in paths}),
        counts=dict(counts),
        dropped={CUT: cut} if cut else {},
        parents=dict(parents),
        files={path.name: path.stat().st_size for path in paths},
        details=dict(details or {}),
    )
    write_manifest(folder, manifest)
    return manifest


def read_embeddings(
    folder: Path, split: Split, *, encodings: bool = True, views: bool = False
) -> EmbeddingShard:
    """A whole split, joined; text encodings padded to the longest shard.

    Args:
        folder: of embeddings.
        split: which of them.
        encodings: text_encodings too.
        views: further views of the pictures too, where the folder has them.
    Raises:
        DataError: unfinished, cut short, without this split, or without text_encodings.
    """
    manifest = read_manifest(folder, "embeddings", MADE_BY)
    shards = [
        read_embedding_shard(folder / name, encodings=encodings, views=views)
        for name in sorted(manifest.files)
        if name.startswith(f"{split}-")
    ]
    if not shards:
        have = ", ".join(name for name in SPLITS if manifest.counts.get(name)) or "nothing"
        raise DataError(
            f"{folder}: holds no {split} split (it has {have}); pack shards with a {split} share and embed "
            "again."
        )
    length = max(shard.text_encodings.shape[1] for shard in shards)
    further = [shard.further_views for shard in shards if shard.further_views is not None]
    return EmbeddingShard(
        [name for shard in shards for name in shard.ids],
        torch.cat([shard.image_embed for shard in shards]),
        torch.cat([shard.text_embed for shard in shards]),
        torch.cat([F.pad(s.text_encodings, (0, 0, 0, length - s.text_encodings.shape[1])) for s in shards]),
        torch.cat(further) if further else None,
        sum(shard.captions_cut for shard in shards),
    )


def drawn_image_embed(shard: EmbeddingShard, numbers: Tensor, draw: Draw) -> Tensor:
    """The image_embed of one view of each picture, drawn anew at every step.

    Args:
        shard: read with `views`; without further views its plain pictures are meant.
        numbers: (B,) int64, which rows.
        draw: of B samples.
    Returns:
        (B, D) float32, unit length.
    """
    if shard.further_views is None:
        return shard.image_embed[numbers]
    view = (draw.uniform(_VIEW).cpu() * shard.views).long()
    further = shard.further_views[numbers, (view - 1).clamp(min=0)]
    return torch.where(view[:, None] == 0, shard.image_embed[numbers], further)


def embeddings_parents(folder: Path) -> dict[str, str]:
    """Hashes of what a finished embeddings folder was made from: "clip" and "shards"."""
    return dict(read_manifest(folder, "embeddings", MADE_BY).parents)
