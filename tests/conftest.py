"""Small drawn logos that every room's tests share; nothing here needs the network or weights."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

Picture = Image.Image
COLOURS = ((200, 16, 46), (0, 56, 101), (255, 184, 28), (0, 102, 51), (20, 20, 20), (110, 64, 160))


def draw_logo(index: int, side_px: int = 64, background: tuple[int, ...] = (255, 255, 255)) -> Picture:
    """A shield, disc or diamond with a bar or a dot; a different one for every index below 36."""
    mode = "RGBA" if len(background) == 4 else "RGB"
    picture = Image.new(mode, (side_px, side_px), background)
    pen = ImageDraw.Draw(picture)
    field = COLOURS[index % 6]
    charge = COLOURS[(index + 1 + index // 6 % 5) % 6]
    near, far, middle = side_px // 8, side_px - side_px // 8 - 1, side_px // 2
    outlines = (
        [(near, near), (far, near), (far, middle), (middle, far), (near, middle)],
        [(middle, near), (far, middle), (middle, far), (near, middle)],
    )
    if index % 3 == 2:
        pen.ellipse((near, near, far, far), fill=field)
    else:
        pen.polygon(outlines[index % 3], fill=field)
    quarter = side_px // 4
    if index // 18 % 2:
        pen.rectangle((near * 2, middle - near // 2, far - near, middle + near // 2), fill=charge)
    else:
        pen.ellipse((middle - quarter // 2, quarter, middle + quarter // 2, quarter * 2), fill=charge)
    return picture


def png(picture: Picture) -> bytes:
    """The picture as PNG bytes."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def logo() -> Picture:
    """One 64 px logo on white, RGB."""
    return draw_logo(0)


@pytest.fixture
def black_logo() -> Picture:
    """A black disc on nothing at all (RGBA), as many wordmarks are published."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(0, 0, 0, 255))
    return picture


@pytest.fixture
def wordmark() -> Picture:
    """A 4:1 wordmark on white, red at its left end and blue at its right."""
    picture = Image.new("RGB", (256, 64), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 8, 31, 55), fill=(255, 0, 0))
    pen.rectangle((224, 8, 255, 55), fill=(0, 0, 255))
    return picture


@pytest.fixture
def logos() -> list[Picture]:
    """Sixteen different 64 px logos on white, RGB."""
    return [draw_logo(index) for index in range(16)]


@pytest.fixture
def logo_folder(tmp_path: Path) -> Callable[[int], Path]:
    """Call with a count: a folder of that many PNG logos, named 00.png, 01.png, ..."""

    def draw(count: int) -> Path:
        folder = tmp_path / "logos"
        folder.mkdir()
        for index in range(count):
            (folder / f"{index:02d}.png").write_bytes(png(draw_logo(index)))
        return folder

    return draw
