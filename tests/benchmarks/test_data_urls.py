"""What both sides of the race over addresses are given, and how their memory is counted."""

from __future__ import annotations

import io
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data_urls import cases, peak_tree_mb, tree_mb, write_table
from benchmarks.picture_server import ceiling, draw_folder, encoded, recoloured, serving


def test_the_server_gives_every_picture_whole_whether_it_keeps_the_connection_or_not(tmp_path: Path) -> None:
    draw_folder(tmp_path, 5, 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    with serving(tmp_path) as address:
        for name in names:
            with urllib.request.urlopen(f"{address}/{name}") as answer:  # closes
                assert answer.read() == (tmp_path / name).read_bytes()
        for keeps in (True, False):
            assert ceiling(address, [f"/{name}" for name in names] * 3, keeps=keeps) > 0
        with urllib.request.urlopen(f"{address}/r/7.png") as answer:
            assert answer.read() == recoloured((tmp_path / "p00000.png").read_bytes(), 7)


def test_every_number_is_another_picture_of_256_to_800_px(tmp_path: Path) -> None:
    draw_folder(tmp_path, 0, 1)
    palette = (tmp_path / "p00000.png").read_bytes()
    pictures = [encoded(seed)[1] for seed in range(3)] + [recoloured(palette, number) for number in range(3)]
    decoded = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in pictures]
    assert len({pixels.tobytes() for pixels in decoded}) == len(pictures)
    assert all(256 <= side <= 800 for pixels in decoded for side in pixels.shape[:2])


def test_memory_is_that_of_all_processes_below() -> None:
    code = "import subprocess, sys, time; b = bytearray(60_000_000); {}time.sleep(0.4)"
    inner = code.format("")
    outer = code.format(f"p = subprocess.Popen([sys.executable, '-c', {inner!r}]); ")
    before = tree_mb()  # what earlier tests of this process left running
    peak = peak_tree_mb(lambda: subprocess.run([sys.executable, "-c", outer], check=True) and None)
    assert 120 < peak - before < 200


def test_a_case_for_every_format_and_one_for_the_default() -> None:
    assert [case.name for case in cases()] == [
        "urls_vs_img2dataset",
        "urls_vs_img2dataset_screened",
        "urls_vs_img2dataset_png",
        "urls_vs_img2dataset_webp",
    ]
    assert all(set(case.variants) == {"upstream", "crest"} for case in cases())


def test_the_table_has_a_row_an_address(tmp_path: Path) -> None:
    table = write_table((f"http://a.example/{number}.png" for number in range(3)), tmp_path)
    assert table.read_text().splitlines()[1].startswith("http://a.example/0.png,")
    assert len(table.read_text().splitlines()) == 4
