"""Decode pictures and bring them to a model's shape: upright, in sRGB, alpha flattened, padded, antialiased.

Refuses to crop: a 4:1 wordmark keeps both ends. Float images are (C, H, W) in [0, 1] at this border.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crest.errors import DataError

MAX_PIXELS = 64_000_000  # a decompression bomb is refused, not decoded
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow only warns up to twice that, so decode() counts too
WHITE = (255, 255, 255)
BROKEN = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, Image.DecompressionBombError)
"""What Pillow's readers raise on bytes that are no whole picture."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each orientation of EXIF asks for."""
_NOISE = 8
"""Levels that the compression of a JPEG moves a flat colour by."""


def decode(content: bytes, where: str, within_px: int | None = None) -> Image.Image:
    """Decode a whole picture, keeping its alpha.

    Args:
        content: bytes of a PNG, JPEG, WebP or GIF file.
        where: what to name in an error.
        within_px: shrink it to this longest side (a JPEG in part while it is decoded, which is faster).
    Raises:
        DataError: not a picture, truncated, or larger than 64 megapixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, over {MAX_PIXELS:,}")
            size = size_within(picture.size, within_px or max(picture.size))
            picture.draft(None, size)
            picture.load()
            return _upright(shrunk(_in_srgb(picture), size), picture)
    except BROKEN as error:
        raise DataError(f"{where}: is not a whole picture ({error}); fetch it again or remove it.") from None


def _in_srgb(picture: Image.Image) -> Image.Image:
    """A loaded picture in plain colours, those of a profile other than sRGB translated.

    A profile that cannot be used is left aside: the colours are then those that most programs show.
    """
    profile = picture.info.get("icc_profile")
    if not profile or b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile:
        return to_plain(picture)
    from PIL import ImageCms

    source = picture if picture.mode in ("CMYK", "L", "RGB") else to_plain(picture)
    alpha = source.getchannel("A") if source.mode == "RGBA" else None
    opaque = source.convert("RGB") if alpha else source
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        translated = ImageCms.profileToProfile(
            opaque, theirs, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return to_plain(picture)
    assert translated is not None
    if alpha:
        translated.putalpha(alpha)
    elif picture.has_transparency_data:  # one colour of an RGB picture stands for nothing
        translated.putalpha(picture.convert("RGBA").getchannel("A"))
    return translated


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """The picture turned as the camera's note in its file asks."""
    turn = _TURNS.get(source.getexif().get(_ORIENTATION, 1)) if "exif" in source.info else None
    return picture if turn is None else picture.transpose(turn)


def to_plain(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGBA where it has transparency, else as RGB."""
    if picture.mode.startswith("I"):  # 16-bit grey, of which convert() would make white
        return Image.fromarray((np.asarray(picture) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)  # convert() would copy


def size_within(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Width and height at the same aspect, the longest side at most `side_px`."""
    longest = max(size)
    if longest <= side_px:
        return size
    width, height = (max(1, round(side * side_px / longest)) for side in size)
    return width, height


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink with antialiasing and without ringing: flat colours stay flat, and their PNG small.

    Pillow weighs colours by their alpha, so that hidden ones do not bleed.
    """
    if picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.HAMMING, reducing_gap=1.0)


def read_image(path: Path) -> Image.Image:
    """Decode the picture at `path`, keeping its alpha."""
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such picture; check the path.") from None


def flatten(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Composite a picture on a flat background: a black logo on nothing becomes black on white."""
    picture = to_plain(picture)
    if picture.mode != "RGBA":
        return picture
    canvas = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(canvas, picture).convert("RGB")


def pad_square(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Centre an RGB picture on a square of its longer side."""
    side_px = max(picture.size)
    if picture.size == (side_px, side_px):
        return picture
    canvas = Image.new("RGB", (side_px, side_px), background)
    canvas.paste(picture, ((side_px - picture.width) // 2, (side_px - picture.height) // 2))
    return canvas


def ground_of(picture: Image.Image) -> tuple[int, int, int]:
    """The one colour of a picture's whole border, so that a navy card is padded navy; white if there is none.

    Transparent borders are white, the ground that pictures are flattened on. The noise of a JPEG is no other
    colour, and what is nearly white is white.
    """
    pixels = np.asarray(picture.convert("RGBA"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)
    if border[:, 3].min() < 255:
        return WHITE
    border = border[:, :3]
    ground = np.median(border, axis=0).astype(np.int16)
    if np.abs(border - ground).max() > _NOISE or ground.min() >= 255 - _NOISE:
        return WHITE
    return int(ground[0]), int(ground[1]), int(ground[2])


def square(picture: Image.Image, side_px: int) -> Image.Image:
    """Flatten on white, pad square with the picture's own ground, resize with antialiasing to side_px."""
    background = WHITE if picture.width == picture.height else ground_of(picture)
    padded = pad_square(flatten(picture), background)
    if padded.size == (side_px, side_px):
        return padded
    resampling = Image.Resampling.LANCZOS if padded.width > side_px else Image.Resampling.BICUBIC
    return padded.resize((side_px, side_px), resampling)


def to_array(picture: Image.Image) -> NDArray[np.uint8]:
    """An RGB picture as uint8 (3, H, W)."""
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 pixels as float32 in [0, 1], same shape."""
    return pixels.astype(np.float32) / 255.0


def from_float(pixels: NDArray[np.float32]) -> Image.Image:
    """A float image (3, H, W) in [0, 1] as a PIL picture; values outside are clipped."""
    clipped = (np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(clipped.transpose(1, 2, 0)))


def grid(pictures: NDArray[np.float32], columns: int, gap_px: int = 2) -> NDArray[np.float32]:
    """Lay pictures (N, 3, H, W) in [0, 1] out as one (3, H', W') on white, row by row."""
    count, _, height, width = pictures.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    size = (rows * (height + gap_px) + gap_px, columns * (width + gap_px) + gap_px)
    sheet = np.ones((3, *size), dtype=np.float32)
    for index in range(count):
        top = gap_px + (index // columns) * (height + gap_px)
        left = gap_px + (index % columns) * (width + gap_px)
        sheet[:, top : top + height, left : left + width] = pictures[index]
    return sheet
