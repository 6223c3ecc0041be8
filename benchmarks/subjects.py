"""Two new subjects: learned, kept, and does the class still vary? `python -m benchmarks.subjects`.

Two made-up clubs with crests that the stock models cannot draw (4 and 5 pictures each, one more held out) are
taught in three ways: one after the other, as people first try; both in one run; both in one run with class
pictures beside them (`preservation`). Every model draws both clubs and held-out class prompts; the judge of
the demo says which of those are right. Writes out/bench/subjects.json and one grid a model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.harness import OUT, surroundings
from crest.config import guarded
from crest.records import content_id, write_bytes, write_json

RGB = tuple[int, int, int]
SIDE_PX: Final = 64
NAMES: Final = {"A": "a crest of zuxo club", "B": "a crest of quvi club"}
TRAIN: Final = {"A": 4, "B": 5}
GROUNDS: Final[tuple[RGB, ...]] = (
    (255, 255, 255),
    (246, 240, 226),
    (255, 255, 255),
    (234, 234, 234),
    (226, 238, 248),
)
LOOK_PX: Final = 16
WITHIN, UNSEEN = 0.95, range(20, 60)
"""A drawing is recognised within the distance of so many of these unseen pictures of the club itself."""
DRAWINGS, CLASS_PROMPTS, KEPT_PROMPTS = 8, 32, 32
Floats = NDArray[np.float32]


def club_picture(club: str, pose: int) -> Image.Image:
    """One picture of a club's crest: every pose has its own place, turn, size and ground."""
    rng = np.random.default_rng([ord(club), pose])
    large = 4 * SIDE_PX
    ground = GROUNDS[pose % len(GROUNDS)]
    crest = Image.new("RGBA", (large, large), (*ground, 0))
    _paint(ImageDraw.Draw(crest), club, large * float(rng.uniform(0.66, 0.74)), large / 2)
    turned = crest.rotate(float(rng.uniform(-5, 5)), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (large, large), ground)
    across, down = (round(float(part) * large) for part in rng.uniform(-0.03, 0.03, 2))
    sheet.paste(turned, (across, down), turned)
    return sheet.reduce(4)


def _paint(pen: ImageDraw.ImageDraw, club: str, size: float, middle: float) -> None:
    half = size / 2

    def disc(x: float, y: float, radius: float, fill: RGB) -> None:
        x, y = middle + x * half, middle + y * half
        pen.ellipse((x - radius * half, y - radius * half, x + radius * half, y + radius * half), fill=fill)

    if club == "A":  # a teal hexagon, an orange ring in it, three white discs in a row
        corners = [(-0.5, -0.9), (0.5, -0.9), (1, 0), (0.5, 0.9), (-0.5, 0.9), (-1, 0)]
        pen.polygon([(middle + x * half, middle + y * half) for x, y in corners], fill=(0, 128, 128))
        disc(0, 0, 0.72, (255, 140, 40))
        disc(0, 0, 0.52, (0, 128, 128))
        for x in (-0.3, 0, 0.3):
            disc(x, 0, 0.12, (255, 255, 255))
    else:  # a pink square with a brown band from corner to corner and a cream disc above it
        pen.rectangle([middle - half * 0.9] * 2 + [middle + half * 0.9] * 2, fill=(232, 120, 170))
        band = [(-0.9, 0.5), (-0.9, 0.9), (-0.5, 0.9), (0.9, -0.5), (0.9, -0.9), (0.5, -0.9)]
        pen.polygon([(middle + x * half, middle + y * half) for x, y in band], fill=(101, 67, 33))
        disc(-0.42, -0.42, 0.3, (250, 240, 200))
        disc(0.42, 0.42, 0.3, (250, 240, 200))


def pack(folder: Path, clubs: Sequence[str]) -> None:
    """The clubs' pictures as shards and embeddings by the stock CLIP, unless they are there."""
    from clip_train import embed
    from clip_train.config import EmbedConfig
    from crest.shards import Sample, png_bytes, write_shards

    def samples(club: str, poses: range) -> list[Sample]:
        pictures = [png_bytes(club_picture(club, pose)) for pose in poses]
        return [Sample(content_id(data), data, NAMES[club], {"group": club}) for data in pictures]

    if not (folder / "shards" / "manifest.json").exists():
        train = [sample for club in clubs for sample in samples(club, range(TRAIN[club]))]
        val = [sample for club in clubs for sample in samples(club, range(8, 10))]
        write_shards(folder / "shards", {"train": train, "val": val}, samples_per_shard=100, parents={})
    values = {
        "data": {"shards": str(folder / "shards"), "out": str(folder / "embeddings")},
        "model": {"clip": "stock/clip"},
    }
    embed.main(EmbedConfig.model_validate(values))


def class_prompts(seed: int, count: int, held_out: bool) -> tuple[list[str], list[Any]]:
    """Captions of plain crests, and what they ask for."""
    from demo.heraldry import random_specification
    from demo.wording import plain_caption

    rng = np.random.default_rng([seed, int(held_out)])
    asked = [random_specification(rng, held_out=held_out) for _ in range(count)]
    return [plain_caption(rng, specification) for specification in asked], asked


def train(
    out: Path, data: Path, start: Mapping[str, str], settings: argparse.Namespace, kept: bool
) -> dict[str, str]:
    """A prior and a decoder, from a start; where they lie."""
    import decoder_train.__main__ as decoder_command
    import prior_train.__main__ as prior_command
    from decoder_train.config import DecoderTrainConfig
    from prior_train.config import PriorTrainConfig

    preservation = None
    if kept:
        prompts = [*class_prompts(1, KEPT_PROMPTS - 4, held_out=False)[0], *["a crest of a club"] * 4]
        preservation = {
            "prompts": tuple(prompts),
            "pictures": len(prompts),
            "seed": settings.seed,
            "steps": 16,
        }
    common = {"preservation": preservation}
    source = {"embeddings": str(data / "embeddings"), "shards": str(data / "shards"), "balance_by": "group"}
    every = {"validate_every": 10_000, "preview_every": 10_000, "save_every": 10_000, "seed": settings.seed}
    prior = PriorTrainConfig.model_validate(
        {
            "run": {"dir": str(out / "prior"), "steps": settings.prior_steps, **every},
            "data": source,
            "model": {"start": start["prior"]},
            "optim": {
                "lr": settings.prior_lr,
                "warmup_steps": 10,
                "schedule": "constant",
                "ema_decay": 0.97,
                "batch_size": settings.prior_batch_size,
            },
            **common,
        }
    )
    prior_command.main(prior)
    decoder = DecoderTrainConfig.model_validate(
        {
            "run": {"dir": str(out / "decoder"), "steps": settings.decoder_steps, **every},
            "data": source,
            "model": {"start": start["decoder"]},
            "optim": {
                "lr": settings.decoder_lr,
                "warmup_steps": 10,
                "schedule": "constant",
                "ema_decay": 0.97,
                "batch_size": settings.decoder_batch_size,
            },
            **common,
        }
    )
    decoder_command.main(decoder)
    return {"prior": str(out / "prior"), "decoder": str(out / "decoder")}


def draw(models: Mapping[str, str], texts: Sequence[str], seed: int) -> Floats:
    """One picture a text, (N, 3, H, W) in [0, 1]."""
    from crest.generate import Generator
    from crest.generate_config import DrawConfig, ModelsConfig
    from crest.world import mix_seed

    generator = Generator(ModelsConfig(prior=models["prior"], decoder=models["decoder"]))
    how = DrawConfig(out=OUT, steps=12)
    parts = []
    for first in range(0, len(texts), 16):
        part = texts[first : first + 16]
        seeds = [mix_seed(seed, first + row) & 0xFFFFFFFF for row in range(len(part))]
        parts.append(generator.draw(part, seeds, how).numpy())
    return np.concatenate(parts)


def seen_small(pictures: Floats) -> Floats:
    """Pictures at low resolution as rows (N, F): a crest that stands a pixel beside is still the same."""
    import torch

    from decoder_train.copies import looked_at

    return np.asarray(looked_at(torch.from_numpy(pictures)).numpy())


def distances(first: Floats, second: Floats) -> Floats:
    """Root mean square difference of every pair, (N, M)."""
    return np.asarray(np.sqrt(((first[:, None] - second[None]) ** 2).mean(axis=2)), dtype=np.float32)


def measure(drawn: Mapping[str, Floats], asked: Sequence[Any]) -> dict[str, float]:
    """What one model's drawings show.

    Args:
        drawn: "A" and "B": of each club's prompt; "class": of the class prompts, which ask for `asked`.
    """
    from demo.judge import Judge

    real = {club: seen_small(club_pictures(club)) for club in NAMES}
    figures: dict[str, float] = {}
    for club, pictures in real.items():
        unseen = distances(seen_small(club_pictures(club, UNSEEN)), pictures).min(axis=1)
        limit = figures[f"{club}.limit"] = float(np.quantile(unseen, WITHIN))
        apart = {name: distances(seen_small(shown), pictures).min(axis=1) for name, shown in drawn.items()}
        figures[f"{club}.distance"] = float(apart[club].mean())
        figures[f"{club}.recognised"] = float((apart[club] < limit).mean())
        figures[f"{club}.in_class"] = float((apart["class"] < limit).mean())
    shares = Judge(SIDE_PX).score(drawn["class"].transpose(0, 2, 3, 1), asked)
    figures |= {f"class.{name}": shares[name] for name in ("exact", "shape", "field_colour", "charge")}
    figures |= found_shares(drawn["class"], asked)
    between = distances(seen_small(drawn["class"]), seen_small(drawn["class"]))
    count = len(between)
    figures["class.variety"] = float(between.sum() / (count * (count - 1)))
    return figures


def found_shares(drawn: Floats, asked: Sequence[Any]) -> dict[str, float]:
    """Whether a drawing is nearest to its own, of all pictures asked for, in the reference CLIP's space.

    Args:
        drawn: (N, 3, H, W) of the prompts that ask for `asked`, which are drawn by rule to compare.
    """
    import torch

    from crest.images import to_array, to_float
    from crest.models.clip import load_clip
    from demo.heraldry import Layout
    from demo.heraldry import draw as draw_by_rule

    layout = Layout(width=0.73, height=0.73, charge_scale=0.46, outline_width=0.02, outline_colour="gray")
    true = np.stack([to_float(to_array(draw_by_rule(one, layout, SIDE_PX))) for one in asked])
    clip = load_clip("stock/reference_clip")
    ours, theirs = (clip.encode_image(torch.from_numpy(pictures)) for pictures in (drawn, true))
    similarity = (ours @ theirs.T).numpy()
    own = similarity.diagonal()
    return {
        "class.found": float((similarity.argmax(axis=1) == np.arange(len(own))).mean()),
        "class.cosine": float(own.mean()),
    }


def club_pictures(club: str, poses: range | None = None) -> Floats:
    """Pictures of a club, by default what was taught of it: (N, 3, H, W) in [0, 1]."""
    from crest.images import to_array, to_float

    return np.stack([to_float(to_array(club_picture(club, pose))) for pose in poses or range(TRAIN[club])])


def main(settings: argparse.Namespace) -> None:
    """Teach, draw, measure, and say."""
    from crest.images import from_float, grid
    from crest.shards import png_bytes

    out = settings.out
    texts, asked = class_prompts(2, CLASS_PROMPTS, held_out=True)
    for name, clubs in (("A", "A"), ("B", "B"), ("both", "AB")):
        pack(out / name, clubs)
    stock = {"prior": "stock/prior", "decoder": "stock/decoder_64"}
    minutes: dict[str, float] = {}

    def timed(name: str, data: str, start: Mapping[str, str], kept: bool = False) -> dict[str, str]:
        began = time.monotonic()
        places = train(out / "runs" / name, out / data, start, settings, kept)
        minutes[name] = (time.monotonic() - began) / 60
        return places

    models = {"stock": stock, "A": timed("A", "A", stock)}
    models["B_after_A"] = timed("B_after_A", "B", models["A"])
    models["both"] = timed("both", "both", stock)
    models["both_kept"] = timed("both_kept", "both", stock, kept=True)
    rows: dict[str, dict[str, float]] = {}
    for name, places in models.items():
        drawn = {club: draw(places, [text] * DRAWINGS, settings.seed) for club, text in NAMES.items()}
        drawn["class"] = draw(places, texts, settings.seed)
        np.savez(out / f"{name}.npz", **drawn)  # type: ignore[arg-type]
        rows[name] = {**measure(drawn, asked), "minutes": minutes.get(name, 0.0)}
        sheet = np.concatenate(
            [
                club_pictures("A"),
                club_pictures("A")[:4],
                drawn["A"],
                club_pictures("B"),
                club_pictures("B")[:3],
                drawn["B"],
                drawn["class"],
            ]
        )
        write_bytes(out / f"{name}.png", png_bytes(from_float(grid(sheet, 8))))
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
    flat = {f"{name}.{key}": round(value, 4) for name, row in rows.items() for key, value in row.items()}
    recipe = {key: value for key, value in vars(settings).items() if key != "out"}
    write_json(OUT / "subjects.json", {**flat, "settings": recipe, **surroundings()})
    print(f"{OUT / 'subjects.json'}; grids in {out}")


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.subjects", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT / "subjects")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prior-steps", type=int, default=120)
    parser.add_argument("--prior-lr", type=float, default=0.0005)
    parser.add_argument("--prior-batch-size", type=int, default=16)
    parser.add_argument("--decoder-steps", type=int, default=120)
    parser.add_argument("--decoder-lr", type=float, default=0.001)
    parser.add_argument("--decoder-batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(_settings())))
