"""The same pairs for both sides: packed shards for Crest, a CSV of picture files for open_clip's script.

The script gets the files as their source gave them (transparency and full size included), because that is
what a user would list in its CSV; Crest gets the shards that `python -m scraper.pack` makes of them.
"""

from __future__ import annotations

import csv
import io
import itertools
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crest.records import Pictures, Split, content_id, write_bytes, write_json
from crest.shards import Sample, read_samples, write_shards

if TYPE_CHECKING:
    from demo.league import Logo

COLUMNS: Final = ("filepath", "title")
"""What open_clip's script calls the columns of picture and caption, and separates by tabs."""
SIDES_PX: Final = (256, 800)
"""Longest sides of the drawn logos are spread evenly between these."""
HELD_OUT: Final = 64
PLACE: Final = Path("out/bench/clip")


@dataclass(frozen=True)
class Pairs:
    """One set of captioned pictures in both forms."""

    shards: Path
    train_csv: Path
    val_csv: Path


def write_csv(path: Path, rows: Iterable[tuple[Path, str]]) -> int:
    """Write pictures and captions as open_clip's script reads them; the number of pairs.

    Captions may hold quotes, tabs and line ends: the csv module quotes as pandas unquotes.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for picture, caption in rows:
        writer.writerow((picture.resolve(), caption))
        count += 1
    write_bytes(path, text.getvalue().encode())
    return count


def split_csv(shards: Path, split: Split, folder: Path) -> Path:
    """A CSV of one split of the shards, that names the pictures as their source gave them.

    Args:
        shards: folder of shards; the source's files lie beside it, where the samples' `image` says.
        split: which of its splits.
        folder: where the CSV goes, and pictures that are no file of their own.
    """
    with Pictures(shards.parent) as originals:
        rows = [
            (_original(sample, originals, shards.parent, folder / "pictures"), sample.caption)
            for sample in read_samples(shards, split)
        ]
    path = folder / f"{split}.csv"
    write_csv(path, rows)
    return path


def _original(sample: Sample, originals: Pictures, data: Path, folder: Path) -> Path:
    place = str(sample.meta.get("image", ""))
    file, is_in_tar = data / place.partition("#")[0], "#" in place
    if file.is_file() and not is_in_tar:
        return file
    # in a tar of pictures, or the source is gone: its bytes, else those that were packed
    path = folder / f"{sample.id}.{sample.kind}"
    write_bytes(path, originals.read(place) if file.is_file() else sample.image)
    return path


@cache
def drawn(count: int, held_out: int = HELD_OUT) -> Pairs:
    """Logos of the demo's league with their captions, drawn once and kept in out/bench for the next time.

    Seven of ten are JPEG, the others PNG, with alpha where the league has it.

    Args:
        count: pairs to train on.
        held_out: further ones, which are the validation split.
    """
    from demo.league import league_logos

    folder = PLACE / f"drawn-{count}"
    pairs = Pairs(folder / "shards", folder / "train.csv", folder / "val.csv")
    if (folder / "done.json").exists():
        return pairs
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        logos = itertools.islice(league_logos(0), count + held_out)
        samples = list(pool.map(_draw, itertools.count(), logos, chunksize=16))
    for sample in samples:
        (folder / str(sample.meta["image"])).write_bytes(sample.image)
    write_shards(
        pairs.shards,
        {"train": samples[:count], "val": samples[count:]},
        samples_per_shard=1000,
        parents={},
    )
    split_csv(pairs.shards, "train", folder)
    split_csv(pairs.shards, "val", folder)
    write_json(folder / "done.json", {"train": count, "val": held_out})
    return pairs


def _draw(number: int, logo: Logo) -> Sample:
    import numpy as np

    side_px = int(np.random.default_rng([1, number]).integers(SIDES_PX[0], SIDES_PX[1] + 1))
    picture, stream = logo.draw(side_px), io.BytesIO()
    kind = "jpg" if number % 10 < 7 and picture.mode == "RGB" else "png"
    picture.save(stream, "JPEG" if kind == "jpg" else "PNG")
    name = content_id(stream.getvalue() + str(number).encode())
    meta = {"id": name, "image": f"images/{name}.{kind}", "group": name}
    return Sample(name, stream.getvalue(), logo.caption, meta, kind)
