"""Train the stock weights from nothing: a small DALL-E 2 of plain crests, a captioner and a reference CLIP.

They play the part that published weights play for a real user. `make stock` goes on where it was stopped; the
result is written to crest/stock/ as fp16 safetensors with a model card. Everything depends on the configs in
configs/stock/ and the seeds below.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crest.config import FileConfig, guarded, load_config

if TYPE_CHECKING:
    from crest.records import Split
    from crest.shards import Sample
    from demo.plain import PlainLogo

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out" / "stock"
STOCK = ROOT / "crest" / "stock"
PLAIN_SEED, PLAIN_LOGOS = 1, 48_000
CENTRED_SEED, CENTRED_LOGOS = 3, 48_000
REFERENCE_SEED, REFERENCE_LOGOS = 2, 40_000
VAL_SHARE = 0.0125
SIDE_PX = 64
ROOM_OF = {
    "clip": "clip_train",
    "reference_clip": "clip_train",
    "captioner": "caption_train",
    "prior": "prior_train",
    "decoder_64": "decoder_train",
}


def pack(folder: Path, seed: int, count: int, logo: Callable[[int, int, int], PlainLogo]) -> None:
    """Draw a world into shards, unless it is there."""
    from crest.shards import write_shards

    if (folder / "manifest.json").exists():
        return
    held_back = round(count * VAL_SHARE)
    splits: dict[Split, Iterable[Sample]] = {
        "train": _samples(seed, range(held_back, count), logo),
        "val": _samples(seed, range(held_back), logo),
    }
    write_shards(
        folder,
        splits,
        samples_per_shard=4000,
        parents={},
        details={"world": logo.__name__, "seed": seed, "count": count},
    )


def retell(folder: Path, source: Path, seed: int, logo: Callable[[int, int], PlainLogo]) -> None:
    """Pack a world's pictures once more with another one's captions, unless it is there."""
    from crest.records import read_manifest
    from crest.shards import read_samples, write_shards

    if (folder / "manifest.json").exists():
        return
    manifest = read_manifest(source, "shards", "python -m demo.stock")
    held_back = manifest.counts["val"]
    places: dict[Split, Iterator[int]] = {"train": itertools.count(held_back), "val": itertools.count()}
    write_shards(
        folder,
        {split: _retold(read_samples(source, split), place, seed, logo) for split, place in places.items()},
        samples_per_shard=4000,
        parents={"pictures": manifest.hash},
        details={"world": logo.__name__, "seed": seed},
    )


def _retold(
    samples: Iterable[Sample], places: Iterator[int], seed: int, logo: Callable[[int, int], PlainLogo]
) -> Iterator[Sample]:
    for sample in samples:  # in the order in which they were drawn
        captions = logo(seed, next(places)).captions
        yield replace(sample, caption=captions[int(sample.id, 16) % len(captions)])


def _samples(seed: int, indices: range, logo: Callable[[int, int, int], PlainLogo]) -> Iterator[Sample]:
    from crest.shards import Sample, png_bytes

    for index in indices:
        drawn = logo(seed, index, SIDE_PX)
        key = hashlib.sha256(f"{logo.__name__} {seed} {index}".encode()).hexdigest()[:16]
        caption = drawn.captions[int(key, 16) % len(drawn.captions)]
        spec = drawn.specification.to_dict() if drawn.specification else None
        yield Sample(key, png_bytes(drawn.image), caption, {"group": key, "specification": spec})


def train(name: str) -> None:
    """Run one stage by its config in configs/stock/."""
    import importlib

    room = ROOM_OF[name]
    module = importlib.import_module(f"{room}.__main__")
    config_class: type[FileConfig] = next(
        value
        for value in vars(importlib.import_module(f"{room}.config")).values()
        if isinstance(value, type)
        and issubclass(value, FileConfig)
        and value.__name__.endswith("TrainConfig")
    )
    module.main(load_config(config_class, ROOT / "configs" / "stock" / f"{name}.json"))


def embed() -> None:
    """Embed the centred plain world with the stock CLIP."""
    from clip_train import embed as step
    from clip_train.config import EmbedConfig

    step.main(load_config(EmbedConfig, ROOT / "configs" / "stock" / "embed.json"))


def export(name: str, minutes: float) -> None:
    """Copy a finished run into the package as fp16, with its scores; its parents are named by what ships."""
    from safetensors.torch import load_file, save

    from crest.checkpoint import short_hash
    from crest.records import file_hash, read_json, read_jsonl, write_bytes, write_json
    from crest.world import machine

    run = OUT / "runs" / name
    card: dict[str, Any] = read_json(run / "weights.json")
    shipped = STOCK / name
    tensors = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in load_file(run / "weights.safetensors").items()
    }
    path = shipped / "weights.safetensors"
    write_bytes(path, save(tensors, {"kind": str(card["kind"])}))
    if "clip" in card.get("parents", {}):
        card["parents"]["clip"] = short_hash(STOCK / "clip" / "weights.safetensors")
    scores = {
        key.removeprefix("val/"): value
        for row in read_jsonl(run / "metrics.jsonl")
        if row["step"] == card["step"]
        for key, value in row.items()
        if key.startswith("val/")
    }
    measured = {"minutes": minutes, "machine": machine(), "scores": scores}
    write_json(shipped / "weights.json", {**card, "sha256": file_hash(path), "measured": measured})


def note_minutes(name: str, minutes: float) -> float:
    """Add to the minutes that a run has taken, of attempts before this one too, and return their sum."""
    from crest.records import read_json, write_json

    path = OUT / "runs" / name / "minutes.json"
    noted = round(minutes + (read_json(path)["minutes"] if path.exists() else 0.0), 1)
    write_json(path, {"minutes": noted})
    return noted


def main(only: list[str]) -> None:
    """Train and export what is asked for, in the order in which one needs the other."""
    from crest.records import write_text
    from demo.model_card import model_card
    from demo.plain import centred_logo, described_logo, plain_logo, reference_logo

    pack(OUT / "plain" / "shards", PLAIN_SEED, PLAIN_LOGOS, plain_logo)
    retell(OUT / "described" / "shards", OUT / "plain" / "shards", PLAIN_SEED, described_logo)
    pack(OUT / "centred" / "shards", CENTRED_SEED, CENTRED_LOGOS, centred_logo)
    pack(OUT / "reference" / "shards", REFERENCE_SEED, REFERENCE_LOGOS, reference_logo)
    for name in ROOM_OF:
        if only and name not in only:
            continue
        started = time.monotonic()
        if name in ("prior", "decoder_64"):
            embed()
        train(name)
        minutes = note_minutes(name, (time.monotonic() - started) / 60)
        export(name, minutes)
        print(f"stock {name}: {minutes:.1f} min", flush=True)
    write_text(STOCK / "README.md", model_card(STOCK))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.stock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(ROOM_OF)}; default all")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: main(arguments.only)))
