"""A table of addresses to shards, against img2dataset 1.47 in a virtual environment of its own, on loopback.

Drawn logos of 256 to 800 px (40 % JPEG, 40 % PNG with alpha, 20 % PNG without) become 256 px, aspect kept, in
one format, in WebDataset tars. img2dataset downloads, fits and packs in one command; ours are two, and both
are timed, their start included. `urls_vs_img2dataset` and the cases of other formats ask for the same work
(`screen.pixels` false; robots.txt, hashes, groups and splits stay); `urls_vs_img2dataset_screened` is our
default: every picture is also looked at and compared with all others. Two processes each.
`python -m benchmarks.data_urls memory 1000 10000 100000` measures the peak memory of both process trees.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import OUT, Case, Step, surroundings
from benchmarks.picture_server import ceiling, draw_folder, serving
from crest.records import write_json

VERSION: Final = "1.47.0"
HOME: Final = OUT / "img2dataset"
LOGOS: Final = OUT / "url_logos"
WORK: Final = OUT / "urls"
PICTURES: Final = int(os.environ.get("CREST_BENCH_URLS", "3000"))
PALETTES: Final = 300
ROUNDS: Final = 3
SIDE_PX: Final = 256
PROCESSES: Final = 2
PER_SHARD: Final = 500
MEMORY_PER_SHARD: Final = 250
THREADS: Final = 32
"""Of img2dataset, in each process: its default of 256 was slower on two cores."""
CONNECTIONS: Final = 8
QUALITIES: Final = {"jpg": 95, "png": 6, "webp": 101}
"""img2dataset's encode_quality: JPEG as ours, PNG at zlib's usual level, WebP above 100 is lossless."""
_SAMPLE_S: Final = 0.05


def cases() -> list[Case]:
    """One case a format; the ratio is that of pictures per second."""
    named = {
        "urls_vs_img2dataset": ("jpg", plain),
        "urls_vs_img2dataset_screened": ("jpg", crest),
        "urls_vs_img2dataset_png": ("png", plain),
        "urls_vs_img2dataset_webp": ("webp", plain),
    }
    return [
        Case(
            name,
            {"upstream": _builder(img2dataset, kind), "crest": _builder(ours, kind)},
            memory=False,
            rounds=ROUNDS,
        )
        for name, (kind, ours) in named.items()
    ]


def _builder(run: Callable[[str, Path, int], None], kind: str) -> Callable[[], Step]:
    def build() -> Step:
        install()
        draw_folder(LOGOS, PICTURES, PALETTES)
        names = [path.name for path in sorted(LOGOS.iterdir()) if not path.name.startswith("p")][:PICTURES]

        def step() -> None:
            with serving(LOGOS) as address:
                table = write_table(f"{address}/{name}" for name in names)
                run(kind, table, PER_SHARD)

        return step

    return build


def install() -> None:
    """Make img2dataset's virtual environment, once."""
    if (HOME / "bin" / "img2dataset").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
    pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # it needs pkg_resources, which setuptools has dropped
    subprocess.run([*pip, f"img2dataset=={VERSION}", "setuptools<80"], check=True)


def write_table(urls: Iterable[str], folder: Path | None = None) -> Path:
    """A CSV of addresses and captions."""
    folder = folder or WORK
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption"])
        for number, url in enumerate(urls):
            writer.writerow([url, f"logo number {number}, drawn for a race"])
    return path


def img2dataset(kind: str, table: Path, per_shard: int) -> None:
    """Its own command: table -> WebDataset tars."""
    shutil.rmtree(WORK / "img2dataset", ignore_errors=True)
    settings = {
        "url_list": table,
        "output_folder": WORK / "img2dataset",
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "processes_count": PROCESSES,
        "thread_count": THREADS,
        "image_size": SIDE_PX,
        "resize_mode": "keep_ratio_largest",
        "resize_only_if_bigger": True,
        "encode_format": kind,
        "encode_quality": QUALITIES[kind],
        "number_sample_per_shard": per_shard,
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    # albumentations asks the internet for its newest version
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    _run([str(HOME / "bin" / "img2dataset"), *words], env)
    _check(sum(int(json.loads(path.read_text())["successes"]) for path in _stats()), table)


def _stats() -> list[Path]:
    return sorted((WORK / "img2dataset").glob("*_stats.json"))


def plain(kind: str, table: Path, per_shard: int) -> None:
    """Our two commands for a table that is known to be clean."""
    crest(kind, table, per_shard, are_looked_at=False)


def crest(kind: str, table: Path, per_shard: int, *, are_looked_at: bool = True) -> None:
    """Our two commands: table -> records and parts -> shards."""
    folder = WORK / "crest"
    shutil.rmtree(folder, ignore_errors=True)
    config = {
        "data": {"dir": str(folder)},
        "source": {"site": "url_table", "path": str(table)},
        "fetch": {"delay_s": 0, "allow_hosts": ["127.0.0.1"], "connections": CONNECTIONS},
        "screen": {"pixels": are_looked_at},
        "pack": {"side_px": SIDE_PX, "format": kind, "samples_per_shard": per_shard},
        "work": {"workers": PROCESSES, "rows_per_part": per_shard},
    }
    path = WORK / "config.json"
    write_json(path, config)
    for command in ("scraper", "scraper.pack"):
        _run([sys.executable, "-m", command, "--config", str(path)])
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    dropped = json.loads((folder / "crawl.json").read_text())["dropped"]
    _check(sum(manifest["counts"].values()) + sum(dropped.values()), table)


def _check(count: int, table: Path) -> None:
    with table.open("rb") as stream:
        rows = sum(1 for _ in stream) - 1
    if count != rows:
        raise RuntimeError(f"{table}: {count} of {rows} rows were accounted for")


def _run(words: Sequence[str], env: dict[str, str] | None = None) -> None:
    ran = subprocess.run(list(words), capture_output=True, text=True, env=env)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(words)}: failed\n{ran.stderr[-4000:]}")


def server_ceiling() -> dict[str, float]:
    """Answers per second that the server gives a bare client, so that nobody measures the server."""
    draw_folder(LOGOS, PICTURES, PALETTES)
    paths = [f"/{path.name}" for path in sorted(LOGOS.iterdir())]
    with serving(LOGOS) as address:
        return {
            "kept": round(ceiling(address, paths, keeps=True)),
            "closed": round(ceiling(address, paths, keeps=False)),
        }


def tree_mb() -> float:
    """Resident memory of all processes below this one, but for the picture server, in megabytes."""
    parents: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            number = int(fields["Pid"])
            if b"benchmarks.picture_server" in (status.parent / "cmdline").read_bytes():
                continue
        except (OSError, ValueError):
            continue
        parents.setdefault(int(fields["PPid"]), []).append(number)
        sizes[number] = int(fields.get("VmRSS", "0 kB").split()[0])
    below = list(parents.get(os.getpid(), []))
    for number in below:
        below += parents.get(number, [])
    return sum(sizes[number] for number in below) / 1000


def peak_tree_mb(work: Callable[[], None]) -> float:
    """Highest memory of the process tree while some work goes on."""
    done = threading.Event()
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, tree_mb())
            done.wait(_SAMPLE_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak


def memory(counts: Sequence[int], sides: Sequence[str] = ("crest", "img2dataset")) -> dict[str, Any]:
    """Peak memory and pictures per second of both sides for tables of so many rows, each row another picture.

    Parts and shards have 250 rows, so that a thousand rows already keep both workers of both sides busy; the
    pictures are palette PNGs of 256 to 800 px. Ours is the default, with all pictures screened.
    """
    install()
    draw_folder(LOGOS, PICTURES, PALETTES)
    figures: dict[str, Any] = {}
    with serving(LOGOS) as address:
        for count in counts:
            table = write_table(f"{address}/r/{number}.png" for number in range(count))
            for side in sides:
                run = {"crest": crest, "img2dataset": img2dataset}[side]
                started = time.perf_counter()
                peak = peak_tree_mb(lambda: run("jpg", table, MEMORY_PER_SHARD))  # noqa: B023
                seconds = time.perf_counter() - started
                figures[f"tree_mb.{count}.{side}"] = round(peak, 1)
                figures[f"pictures_per_s.{count}.{side}"] = round(count / seconds, 1)
                print(
                    f"{side}: {count:,} rows, peak {peak:.0f} MB, {count / seconds:.0f} pictures/s",
                    flush=True,
                )
    return figures


def main(words: Sequence[str]) -> None:
    """Measure memory, and write out/bench/data_urls_memory.json."""
    if not words or words[0] != "memory":
        raise SystemExit("python -m benchmarks.data_urls memory [ROWS …]")
    counts = [int(word) for word in words[1:]] or [1000, 10_000]
    figures = {**memory(counts), "server_per_s": server_ceiling(), **surroundings()}
    write_json(OUT / "data_urls_memory.json", figures)


if __name__ == "__main__":
    main(sys.argv[1:])
