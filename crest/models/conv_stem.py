"""Convolutions that stand before a vision transformer in the place of its patches."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest.errors import ConfigError

GROUPS: Final = 8
"""Of channels that are normed together."""


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around which the picture also passes as it is: (B, C, H, W) as it comes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.first_norm, self.second_norm = (nn.GroupNorm(GROUPS, channels) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        """The same shape comes back."""
        inner = self.first(F.gelu(self.first_norm(images)))
        changed: Tensor = images + self.second(F.gelu(self.second_norm(inner)))
        return changed


class ConvStem(nn.Module):
    """Convolutions that halve a picture until a pixel stands for a patch, and what they find anywhere in it.

    Group norms: a picture's patches do not depend on the pictures beside it.

    Raises:
        ConfigError: sizes that do not halve, or channels that do not fall into groups.
    Paper: Xiao et al. 2021 (arXiv 2106.14881), here with residual blocks.
    """

    def __init__(self, patch_px: int, channels: int) -> None:
        super().__init__()
        if patch_px < 2 or patch_px & (patch_px - 1):
            raise ConfigError(f"patch_px: found {patch_px}, but a stem halves pictures; take 2, 4, 8 or 16.")
        if channels < 1 or channels % GROUPS:
            raise ConfigError(f"stem_channels: found {channels}, expected a multiple of {GROUPS}.")
        layers: list[nn.Module] = []
        before, size = 3, patch_px
        while size > 1:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), _Residual(channels)]
            before, channels, size = channels, 2 * channels, size // 2
        self.patch_px, self.found = patch_px, before
        self.channels = before + 3 * patch_px**2
        self.blocks = nn.Sequential(*layers, nn.GroupNorm(GROUPS, before), nn.GELU())
        self.mix = nn.Conv2d(before, before, 1)
        self.norm, self.tell = nn.LayerNorm(before), nn.Linear(before, before)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Look at images (B, 3, H, W).

        Returns:
            patches (B, channels, H / patch, W / patch): what was found there and anywhere, beside the pixels
            as they are, because what tells a charge does not tell its colour; and what was found anywhere,
            (B, found), the strongest of each channel.
        """
        found = F.gelu(self.mix(self.blocks(images)))
        anywhere: Tensor = self.norm(found.amax((2, 3)))
        told = found + self.tell(anywhere)[:, :, None, None]
        return torch.cat((told, F.pixel_unshuffle(images, self.patch_px)), dim=1), anywhere
