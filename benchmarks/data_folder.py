"""A folder of logos with captions to shards: seed 002's way against `python -m scraper` and `scraper.pack`.

Seed 002's way, in one thread: for each PNG, Pillow opens it, converts it to RGB (alpha dropped) and saves it
as a JPEG file, writes its caption beside it, and adds both to a tar that is compressed with gzip at Python's
default level (9). It looks at nothing: no hash, no duplicates, no split.

Crest's way is what a user runs, two processes after each other on two cores, their start included.
`folder_vs_seed` asks for the same work, for a collection that is known to be clean (`screen.pixels` false):
every file is checked to be whole, hashed, grouped, split and packed as it is, with alpha.
`folder_vs_seed_screened` is the default: every picture is also decoded, looked at and compared with all
others. Both keep the size of every picture. The pictures are the same drawn logos of 256 to 800 px, half of
them with alpha; the data folder is new each time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.harness import Case, Step

PICTURES: Final = 3000
SIDES_PX: Final = (256, 800)
"""Longest sides of the logos are spread evenly between these."""
WORKERS: Final = 2
ROUNDS: Final = 3


def cases() -> list[Case]:
    """The seed's own work, and Crest's default."""
    return [
        Case(name, {"upstream": _built(_seed), "crest": _built(way)}, memory=False, rounds=ROUNDS)
        for name, way in (("folder_vs_seed", _plain), ("folder_vs_seed_screened", _screened))
    ]


def _built(way: Callable[[Path, Path], None]) -> Callable[[], Step]:
    def build() -> Step:
        folder = logos()

        def step() -> None:
            with tempfile.TemporaryDirectory() as out:
                way(folder, Path(out))

        return step

    return build


@cache
def logos(count: int = PICTURES) -> Path:
    """A folder of drawn logos, drawn once, kept in out/bench for the next time."""
    folder = Path("out/bench/logos") / f"folder-{count}"
    if (folder / "metadata.jsonl").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(_draw, range(count), chunksize=16)
        for number, content in enumerate(drawn):
            (folder / f"{number:05d}.png").write_bytes(content)
    rows = [
        {"file_name": f"{number:05d}.png", "text": f"A club's crest, number {number}."}
        for number in range(count)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _draw(number: int) -> bytes:
    from benchmarks.data_duplicates import family

    least, most = SIDES_PX
    side_px = least + number * 37 % (most - least + 1)
    design = family(number)[0]
    picture = design.draw_cutout(side_px) if number % 2 else design.draw(side_px)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _seed(folder: Path, out: Path) -> None:
    """One thread, Pillow, JPEG, gzip."""
    from PIL import Image

    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    with tarfile.open(out / "logos.tar.gz", "w:gz") as archive:
        for number, row in enumerate(rows):
            picture = Image.open(folder / row["file_name"]).convert("RGB")
            image, words = out / f"{number:05d}.jpg", out / f"{number:05d}.txt"
            picture.save(image)
            words.write_text(row["text"], encoding="utf-8")
            archive.add(image, image.name)
            archive.add(words, words.name)


def _plain(folder: Path, out: Path) -> None:
    _crest(folder, out, {"pixels": False})


def _screened(folder: Path, out: Path) -> None:
    _crest(folder, out, {})


def _crest(folder: Path, out: Path, screen: dict[str, bool]) -> None:
    """What a user runs."""
    config = out / "data.json"
    config.write_text(
        json.dumps(
            {
                "data": {"dir": str(out / "data")},
                "source": {"site": "folder", "path": str(folder.resolve())},
                "screen": screen,
                "pack": {"side_px": SIDES_PX[1]},
                "work": {"workers": WORKERS},
            }
        ),
        encoding="utf-8",
    )
    for command in ("scraper", "scraper.pack"):
        ran = subprocess.run(
            [sys.executable, "-m", command, "--config", str(config)], capture_output=True, text=True
        )
        if ran.returncode:
            raise RuntimeError(f"python -m {command} failed:\n{ran.stderr}")
