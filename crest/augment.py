"""Changes to training pictures that leave their words true: no flips (letters mirror), no new colours.

All are pure functions of what they are given and a Draw, so that a run that was stopped, or is split over
other processes, sees the same pictures.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crest.world import Draw

CACHE_MARGIN: Final = 8 / 7
"""How much larger than the model's pictures are kept that crops are taken of: 256 for 224."""
SCALE: Final = (0.9, 1.0)
"""Share of the area that a resized crop keeps, as open_clip trains by default."""
RATIO: Final = (3 / 4, 4 / 3)
"""Width over height of a resized crop, as open_clip trains by default."""
GROUND_NOISE: Final = 0.05
"""So much may the pixels of one ground differ."""
_ATTEMPTS: Final = 10
_PLACE: Final = 1  # the purpose of a draw: where a picture is moved to or cut


def cached_px(side_px: int) -> int:
    """Side of the pictures that crops of `side_px` are taken of."""
    return round(side_px * CACHE_MARGIN)


def shift(images: Tensor, draw: Draw, shift_px: int) -> Tensor:
    """Move each picture (B, 3, H, W) by up to `shift_px` both ways, white moving in."""
    if not shift_px:
        return images
    side = images.shape[-1]
    padded = F.pad(images, (shift_px,) * 4, value=1.0)
    offsets = (draw.uniform(_PLACE, 2) * (2 * shift_px + 1)).long().tolist()
    return torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(offsets)])


@dataclass(frozen=True)
class Normal:
    """What a CLIP wants pictures to be centred and scaled by, told for levels rather than for [0, 1]."""

    gain: Tensor
    """(3, 1, 1)"""
    bias: Tensor
    """(3, 1, 1)"""

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normal:
        """From the mean and deviation of each channel in [0, 1], as model configs give them."""
        centre, spread = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (mean, std))
        return cls((1 / (255 * spread)).float(), (-centre / spread).float())


def random_crop(
    pixels: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    draw: Draw,
    side_px: int,
    normal: Normal | None = None,
) -> Tensor:
    """Cut a square of `side_px` out of each picture, anywhere.

    Args:
        pixels: (N, 3, S, S) levels, memory-mapped: only what is cut out is read.
        numbers: (B,) which of them.
        draw: of B samples.
        side_px: at most S.
        normal: centres and scales them in the same pass.
    Returns:
        (B, 3, side_px, side_px), in [0, 1] without `normal`.
    """
    height, width = pixels.shape[2:]
    room = torch.tensor([height - side_px + 1, width - side_px + 1])
    corners = (draw.uniform(_PLACE, 2).cpu() * room).long().tolist()
    cut = torch.empty((len(numbers), pixels.shape[1], side_px, side_px))
    levels = _as_tensor(pixels)
    for out, number, (top, left) in zip(cut, numbers.tolist(), corners, strict=True):
        _to_floats(levels[number, :, top : top + side_px, left : left + side_px], normal, out)
    return cut


def _as_tensor(levels: NDArray[np.uint8]) -> Tensor:
    """A view; torch warns of maps that cannot be written, which nobody does here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(levels)


def _to_floats(levels: Tensor, normal: Normal | None, out: Tensor) -> None:
    """One picture's levels as floats, while they are in the processor's cache."""
    if normal is None:
        out.copy_(levels).div_(255.0)
    else:
        torch.addcmul(normal.bias, levels, normal.gain, out=out)


def random_resized_crop(
    pixels: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    draw: Draw,
    side_px: int,
    normal: Normal | None = None,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Tensor:
    """Cut a box of drawn area and aspect out of each picture and bring it to a square, bilinear, antialiased.

    Args:
        pixels: (N, 3, S, S) levels, memory-mapped.
        numbers: (B,) which of them.
        draw: of B samples.
        side_px: of what comes out.
        normal: centres and scales them in the same pass.
        scale: least and greatest share of the area.
        ratio: least and greatest width over height.
    Returns:
        (B, 3, side_px, side_px), in [0, 1] without `normal`.
    """
    height, width = pixels.shape[2:]
    boxes = crop_boxes(draw, height, width, scale, ratio).tolist()
    cut = torch.empty((len(numbers), pixels.shape[1], side_px, side_px))
    levels = _as_tensor(pixels)
    for out, number, (top, left, high, wide) in zip(cut, numbers.tolist(), boxes, strict=True):
        box = levels[number, :, top : top + high, left : left + wide].contiguous()
        # on levels, not floats: torch's own kernel for them is several times faster
        square = F.interpolate(box[None], (side_px, side_px), mode="bilinear", antialias=True)
        _to_floats(square[0], normal, out)
    return cut


def crop_boxes(
    draw: Draw, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Boxes of drawn area and aspect, as torchvision's RandomResizedCrop draws them.

    Of ten drawn boxes the first that fits is taken; where none does, the largest central one of a ratio that
    is allowed.

    Returns:
        (B, 4) top, left, height, width.
    """
    drawn = draw.uniform(_PLACE, _ATTEMPTS, 4).cpu().double()
    area = height * width * (scale[0] + drawn[..., 0] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + drawn[..., 1] * (high - low))
    wide, tall = torch.sqrt(area * aspect).round().long(), torch.sqrt(area / aspect).round().long()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    wide, tall = wide.gather(1, first)[:, 0], tall.gather(1, first)[:, 0]
    if not bool(fits.any(dim=1).all()):
        none = ~fits.any(dim=1)
        wide[none] = round(min(width, height * ratio[1]))
        tall[none] = round(min(height, width / ratio[0]))
    where = drawn[..., 2:].gather(1, first[..., None].expand(-1, 1, 2))[:, 0]
    where[~fits.any(dim=1)] = 0.5 - 1e-9  # an odd rest lies below and to the right
    top = (where[:, 0] * (height - tall + 1)).long()
    left = (where[:, 1] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def move(
    images: Tensor,
    numbers: Tensor,
    *,
    shift: float,
    rotate_degrees: float,
    scale: tuple[float, float],
    flip: bool = False,
    tint: float = 0.0,
) -> Tensor:
    """Shift, turn and scale whole pictures a little on their own ground.

    Args:
        images: (B, 3, H, W) in [0, 1], H = W; they come back unchanged.
        numbers: (B, 8) uniform in [0, 1): two for the shift, then turn, scale, flip, three for the tint.
        shift: greatest shift either way, as a share of the side.
        rotate_degrees: greatest turn either way.
        scale: least and greatest size, 1 being as it is.
        flip: mirror half of them (letters then stand the wrong way round).
        tint: greatest share by which each channel is dimmed.
    Returns:
        (B, 3, H, W) in [0, 1]; what comes in at the border has the colour of the picture's ground, or repeats
        the border where that has no one colour. Samples bilinearly.
    """
    side = numbers * 2 - 1
    angle = side[:, 2] * math.radians(rotate_degrees)
    size = scale[0] + numbers[:, 3] * (scale[1] - scale[0])
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    mirror = torch.where(numbers[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(size)
    # what a pixel of the result is taken from, in grid_sample's [-1, 1]: the inverse of shift, turn and scale
    places = torch.stack(
        [
            torch.stack([mirror * cosine, sine, -2 * shift * side[:, 0]], dim=1),
            torch.stack([-mirror * sine, cosine, -2 * shift * side[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(places.to(images), list(images.shape), align_corners=False)
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
    ground = border.median(dim=2).values[:, :, None, None]
    has_ground = ((border - ground[..., 0]).abs().amax(dim=1) < GROUND_NOISE).float().mean(dim=1) > 0.5
    plain = F.grid_sample(images - ground, grid, padding_mode="zeros", align_corners=False) + ground
    repeated = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    moved = torch.where(has_ground[:, None, None, None], plain, repeated)
    return (moved * (1 - tint * numbers[:, 5:8, None, None])).clamp(0, 1)
