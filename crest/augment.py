"""Changes to training pictures that leave their words true: no flips (letters mirror), no new colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crest.world import Draw


def shift(images: Tensor, draw: Draw, shift_px: int) -> Tensor:
    """Move each picture (B, 3, H, W) by up to `shift_px` both ways, white moving in."""
    if not shift_px:
        return images
    side = images.shape[-1]
    padded = F.pad(images, (shift_px,) * 4, value=1.0)
    offsets = (draw.uniform(1, 2) * (2 * shift_px + 1)).long().tolist()
    return torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(offsets)])
