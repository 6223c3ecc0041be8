"""Convolutions that stand in the place of a vision transformer's patches; knows no library but torch."""

from __future__ import annotations

from typing import Final

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
    """Convolutions in place of a ViT's patches: halves the picture until a pixel stands for a patch.

    A ViT of this size sees colours in raw patches but does not learn charges from them. What is found
    anywhere (the maximum over the picture) is told to every patch, so that the words' gradient reaches the
    convolutions before attention has learned where to look. Group norms: a picture's patches do not depend on
    the pictures beside it.

    Raises:
        ConfigError: sizes that do not halve, or channels that do not fall into groups.
    Paper: Xiao et al. 2021 (arXiv 2106.14881), here with residual blocks.
    """

    def __init__(self, patch_px: int, channels: int, width: int) -> None:
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
        self.blocks = nn.Sequential(*layers, nn.GroupNorm(GROUPS, before), nn.GELU())
        self.here, self.anywhere = nn.Conv2d(before, width, 1), nn.Conv2d(before, width, 1)

    @property
    def weight(self) -> Tensor:
        """The library asks a ViT's patches for the type of their weight."""
        return self.here.weight

    def forward(self, images: Tensor) -> Tensor:
        """Patches (B, width, H / patch, W / patch) of images (B, 3, H, W)."""
        found = self.blocks(images)
        patches: Tensor = self.here(found) + self.anywhere(found.amax((2, 3), keepdim=True))
        return patches
