"""Embed shards with a CLIP for the prior and the decoder; goes on where it was stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from clip_train.config import EmbedConfig
from crest.config import run_command

if TYPE_CHECKING:
    from crest.models.clip import ClipEncoder
    from crest.pixels import Pictures


def check(config: EmbedConfig) -> None:
    """Look whether the inputs exist."""
    from crest.checkpoint import locate_weights
    from crest.records import read_manifest
    from crest.tars import MADE_BY

    read_manifest(config.data.shards, "shards", MADE_BY)
    locate_weights(config.model.clip, "clip")


def main(config: EmbedConfig) -> None:
    """Embed every split, shard by shard."""
    from tqdm import tqdm

    from crest.embeddings import finish_embeddings, write_embedding_shard
    from crest.models.clip import load_clip
    from crest.pixels import open_pictures
    from crest.records import SPLITS, read_json, write_json
    from crest.world import pick_device

    clip = load_clip(config.model.clip, pick_device(config.model.device))
    out = config.data.out
    splits = {split: open_pictures(config.data.shards, split, clip.model.side_px) for split in SPLITS}
    parents = {"clip": clip.hash, "shards": splits["train"].shards_hash}
    stamp = out / "parents.json"
    if stamp.exists() and read_json(stamp) != parents:
        for stale in (*out.glob("*.safetensors"), out / "manifest.json"):
            stale.unlink(missing_ok=True)
    if (out / "manifest.json").exists():
        print(f"{out}: finished before; nothing to do")
        return
    write_json(stamp, parents)
    size = config.model.samples_per_shard
    for split, pictures in splits.items():
        starts = range(0, len(pictures), size)
        for number, first in enumerate(tqdm(starts, desc=f"embed {split}", unit="shard", disable=None)):
            path = out / f"{split}-{number:06d}.safetensors"
            if not path.exists():
                rows = (first, min(first + size, len(pictures)))
                write_embedding_shard(path, _embed(clip, pictures, rows, config.model.batch_size))
    manifest = finish_embeddings(out, {split: len(pictures) for split, pictures in splits.items()}, parents)
    print(f"embeddings: {sum(manifest.counts.values())} logos by CLIP {clip.hash} in {out}")


def _embed(clip: ClipEncoder, pictures: Pictures, rows: tuple[int, int], batch_size: int) -> EmbeddingShard:
    import torch

    from crest.embeddings import EmbeddingShard

    images, texts, encodings = [], [], []
    captions = pictures.captions[rows[0] : rows[1]]
    length = clip.model.tokenize(captions).shape[1]
    for first in range(rows[0], rows[1], batch_size):
        last = min(first + batch_size, rows[1])
        pixels = torch.from_numpy(pictures.pixels[first:last].astype("float32") / 255)
        images.append(clip.encode_image(pixels).cpu())
        text = clip.encode_text(pictures.captions[first:last], length=length)
        texts.append(text.text_embed.cpu())
        encodings.append(text.text_encodings.half().cpu())
    return EmbeddingShard(
        pictures.ids[rows[0] : rows[1]], torch.cat(images), torch.cat(texts), torch.cat(encodings)
    )


if TYPE_CHECKING:
    from crest.embeddings import EmbeddingShard

if __name__ == "__main__":
    sys.exit(run_command("clip_train.embed", EmbedConfig, main, check=check))
