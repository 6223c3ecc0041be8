"""Embed shards with a CLIP for the prior and the decoder; goes on where it was stopped.

One thread reads ahead (pixels to floats, captions to tokens), one writes behind, so that the encoder waits
for neither. Which rows lie in which file and batch depends on the data and the config alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_train.config import EmbedConfig
from crest.config import run_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crest.models.clip import ClipEncoder
    from crest.pixels import Pictures
    from crest.records import Manifest, Split


def check(config: EmbedConfig) -> None:
    """Look whether the inputs exist."""
    from crest.checkpoint import locate_weights
    from crest.records import read_manifest
    from crest.tars import MADE_BY

    read_manifest(config.data.shards, "shards", MADE_BY)
    place = config.model.clip
    if not place.startswith("hf-hub:") and not (Path(place) / "open_clip_config.json").exists():
        locate_weights(place, "clip")


def main(config: EmbedConfig) -> None:
    """Embed every split, shard by shard."""
    from crest.augment import cached_px
    from crest.models.clip import load_clip
    from crest.pixels import open_pictures
    from crest.records import SPLITS
    from crest.world import keep_freed_memory, pick_device

    device = pick_device(config.model.device)
    if device.type == "cpu":
        keep_freed_memory()
    clip = load_clip(config.model.clip, device)
    side_px = clip.model.side_px
    splits = {split: open_pictures(config.data.shards, split, side_px) for split in SPLITS}
    larger = splits
    if config.data.views > 1 and config.data.augment != "shift":
        larger = {split: open_pictures(config.data.shards, split, cached_px(side_px)) for split in SPLITS}
    manifest = embed(clip, splits, config, larger)
    if manifest is None:
        print(f"{config.data.out}: finished before; nothing to do")
        return
    cut = manifest.dropped.get("captions_cut", 0)
    note = f"; {cut} captions are longer than its context and were cut behind a word" if cut else ""
    print(f"embeddings: {sum(manifest.counts.values())} logos by CLIP {clip.hash} in {config.data.out}{note}")


def embed(
    clip: ClipEncoder,
    splits: Mapping[Split, Pictures],
    config: EmbedConfig,
    larger: Mapping[Split, Pictures] | None = None,
) -> Manifest | None:
    """Embed pictures that are decoded; files that are there already are kept when they are of the same kind.

    Args:
        clip: by which.
        splits: split -> its pictures at the CLIP's size.
        config: where to, and how.
        larger: the same at the size that further views are cut out of; by default `splits`.
    Returns:
        what was written, or None when all of it was there.
    """
    from clip_train.encoding import encode_all, plan_shards
    from crest.embeddings import finish_embeddings, is_embedding_shard
    from crest.records import read_json, write_json

    out = config.data.out
    parents = {"clip": clip.hash, "shards": next(iter(splits.values())).shards_hash}
    settings = _settings(config)
    stamp, made_from = out / "parents.json", {**parents, **settings}
    if stamp.exists() and read_json(stamp) != made_from:
        for stale in (*out.glob("*.safetensors"), out / "manifest.json"):
            stale.unlink(missing_ok=True)
    if (out / "manifest.json").exists():
        return None
    write_json(stamp, made_from)
    shards = plan_shards(out, splits, larger or splits, config.model.samples_per_shard)
    wanted = [shard for shard in shards if not is_embedding_shard(shard.path, shard.ids)]
    hashes = encode_all(clip, wanted, config)
    for unknown in {*out.glob("*.safetensors"), *out.glob("*.part")} - {shard.path for shard in shards}:
        unknown.unlink()
    counts: dict[str, int] = {split: len(pictures) for split, pictures in splits.items()}
    return finish_embeddings(out, counts, parents, details=settings, hashes=hashes)


def _settings(config: EmbedConfig) -> dict[str, Any]:
    """What the files depend on beside the CLIP and the shards."""
    model = config.model.model_dump(include={"samples_per_shard", "text_encodings"})
    views = config.data.model_dump(include={"views", "augment", "shift_px", "noise", "seed"})
    return {**model, **(views if config.data.views > 1 else {"views": 1})}


if __name__ == "__main__":
    sys.exit(run_command("clip_train.embed", EmbedConfig, main, check=check))
