"""A decoder's sketch: the conditions, read once per picture and laid out as a few flat regions.

A U-Net takes an embedding in by scaling whole channels and text by a few tokens at its innermost level; what
stands where it must make of that anew at each timestep. The sketch says it once: a small transformer of the
decoder's own reads the text encodings and the image embedding (GLIDE has one too: Nichol et al. 2021, arXiv
2112.10741, section 4.1), and what it read becomes soft masks that share the picture out among regions, and
one colour a region, so that what is drawn and in which colours are learned apart.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Sketch(nn.Module):
    """A first guess at the picture from its conditions alone.

    Args:
        image_embed_dim: D of the image embedding.
        text_width: K of the text encodings, or None where there are none.
        max_text_len: tokens of text that it looks at.
        regions: masks that share the picture out.
        side_px: of the picture, a multiple of 8.
        moves: whether it learns to shift and stretch what it laid out (`let_move`).
    """

    WIDTH = 128
    HEADS = 4
    LAYERS = 3
    READERS = 8
    HIDDEN = 512
    BASE = 48

    def __init__(
        self,
        image_embed_dim: int,
        text_width: int | None,
        max_text_len: int,
        regions: int,
        side_px: int,
        moves: bool,
    ) -> None:
        super().__init__()
        self.side, self.regions, self.max_text_len = side_px // 8, regions, max_text_len
        self.readers = nn.Parameter(torch.randn(1, self.READERS, self.WIDTH))
        self.image = nn.Linear(image_embed_dim, self.WIDTH)
        self.words: nn.Module | None = None
        if text_width is not None:
            self.words = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, self.WIDTH))
            self.places = nn.Parameter(torch.randn(1, max_text_len, self.WIDTH) * 0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.WIDTH, self.HEADS, 4 * self.WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(self.LAYERS)
        )
        self.norm = nn.LayerNorm(self.WIDTH)
        told = self.READERS * self.WIDTH + image_embed_dim + (text_width or 0)
        self.read = nn.Sequential(nn.Linear(told, self.HIDDEN), nn.SiLU())
        self.colours = nn.Linear(self.HIDDEN, regions * 3)
        self.lay_out = nn.Sequential(nn.Linear(self.HIDDEN, self.BASE * self.side**2), nn.SiLU())
        self.masks = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(self.BASE, self.BASE, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(self.BASE, self.BASE, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(self.BASE, regions, 3, padding=1),
        ).to(memory_format=torch.channels_last)
        self.place: nn.Linear | None = None
        if moves:
            self.let_move()

    def let_move(self) -> None:
        """Learn where the picture stands apart from what it is: nothing moves until this has learned."""
        self.place = nn.Linear(self.HIDDEN, 4)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)

    def forward(
        self, image_embed: Tensor, text_encodings: Tensor | None, image_keep: Tensor, text_keep: Tensor
    ) -> Tensor:
        """The picture as guessed, (B, 3, side, side) float32, about [-1, 1].

        Args:
            image_embed: (B, D), entries of about one.
            text_encodings: (B, L, K), zero past the end of the text.
            image_keep, text_keep: (B,) bool; False hides a condition.
        """
        b = len(image_embed)
        image_embed = image_embed * image_keep[:, None]
        rows = [self.readers.expand(b, -1, -1), self.image(image_embed)[:, None]]
        hidden = [image_keep.new_zeros(b, self.READERS), ~image_keep[:, None]]
        told = [image_embed]
        if self.words is not None and text_encodings is not None:
            text = text_encodings[:, : self.max_text_len]
            inside = torch.any(text != 0, dim=-1) & text_keep[:, None]
            rows.append(self.words(text) + self.places[:, : text.shape[1]])
            hidden.append(~inside)
            # the last token has seen all others: CLIP makes its text embedding of it
            last = (inside.sum(dim=1) - 1).clamp(min=0)
            told.append(text[torch.arange(b, device=text.device), last] * inside.any(dim=1, keepdim=True))
        x, unseen = torch.cat([row.to(rows[1].dtype) for row in rows], dim=1), torch.cat(hidden, dim=1)
        # on a CPU the fused attention's way back is several times slower
        unfused = sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else contextlib.nullcontext()
        with unfused:
            for layer in self.layers:
                x = layer(x, src_key_padding_mask=unseen)
        seen = self.norm(x[:, : self.READERS]).flatten(1)
        read = self.read(torch.cat((seen, *(part.to(seen.dtype) for part in told)), dim=1))
        laid_out = self.lay_out(read).view(b, self.BASE, self.side, self.side)
        masks = self.masks(laid_out.contiguous(memory_format=torch.channels_last)).float()
        if self.place is not None:
            masks = _placed(masks, self.place(read).float())
        masks = masks.softmax(dim=1)
        colours = self.colours(read).float().view(b, self.regions, 3)
        return torch.einsum("brhw,brc->bchw", masks, colours)


def _placed(masks: Tensor, place: Tensor) -> Tensor:
    """Masks (B, R, side, side), stretched and shifted by (B, 4): log scales, then shifts in half sides."""
    scale, shift = (-place[:, :2]).exp(), -place[:, 2:]
    affine = torch.cat((torch.diag_embed(scale), (scale * shift)[:, :, None]), dim=2)
    grid = F.affine_grid(affine, list(masks.shape), align_corners=False)
    return F.grid_sample(masks, grid, padding_mode="border", align_corners=False)
