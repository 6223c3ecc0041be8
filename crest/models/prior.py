"""The diffusion prior: a caption to a CLIP image embedding, through dalle2-pytorch's transformer.

Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2. The library's DiffusionPrior class is not used: it
scales the embedding that it is given in place, and its DDIM inverts with another alpha than it steps with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import DiffusionPriorNetwork
from torch import Tensor, nn

from crest.checkpoint import card_spec, load_weights, locate_weights, read_card, short_hash
from crest.config import Config, SamplerName, ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.sampling import SAMPLERS
from crest.errors import ConfigError
from crest.models.clip import TextFeatures
from crest.models.fast_prior import prior_forward

KIND = "prior"


class PriorSpec(Config):
    """Everything needed to build a prior and to run its diffusion."""

    image_embed_dim: int
    """D of the CLIP that it serves."""
    text_width: int
    """K of the CLIP that it serves; projected to D where they differ."""
    max_text_len: int = 40
    """Tokens of text that it reads."""
    depth: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    dim_head: int = 48
    """Width of one head."""
    ff_mult: float = 2.0
    """Width of the feed-forward layers, as a multiple of D."""
    timesteps: int = 1000
    """T of the noise schedule."""
    noise_schedule: ScheduleName = "cosine"
    """Shape of the noise schedule."""
    saw_dropped_conditions: bool = True
    """Whether training dropped conditions, without which guidance has no meaning."""


class Prior(nn.Module):
    """The prior's network with its noise schedule; it predicts x_start, as in the paper.

    Inside, embeddings are scaled by sqrt(D) so that their entries have the variance of the noise.
    """

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.noise_schedule = NoiseSchedule(spec.noise_schedule, spec.timesteps)
        self.scale = spec.image_embed_dim**0.5
        self.net = DiffusionPriorNetwork(
            dim=spec.image_embed_dim,
            max_text_len=spec.max_text_len,
            depth=spec.depth,
            heads=spec.heads,
            dim_head=spec.dim_head,
            ff_mult=spec.ff_mult,
        )
        self.project_text = (
            nn.Identity()
            if spec.text_width == spec.image_embed_dim
            else nn.Linear(spec.text_width, spec.image_embed_dim, bias=False)
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text_embed: Tensor,
        text_encodings: Tensor,
        text_keep: Tensor,
        image_keep: Tensor,
    ) -> Tensor:
        """Predict the scaled clean embedding (B, D) from the scaled noised one at timesteps t (B,)."""
        words = self.project_text(text_encodings)
        # entries of a unit vector are 1/sqrt(D): bring them to the scale of the other tokens
        return prior_forward(self.net, x_t, t, text_embed * self.scale, words, text_keep, image_keep).float()


@torch.no_grad()
def sample_image_embed(
    prior: Prior,
    text: TextFeatures,
    *,
    seeds: Sequence[int],
    cond_scale: float = 1.0,
    steps: int = 32,
    candidates: int = 2,
    sampler: SamplerName = "ddim",
) -> Tensor:
    """Draw one CLIP image embedding per caption from the diffusion prior.

    Args:
        text: text_embed (B, D) unit length; text_encodings (B, L, K).
        seeds: one a caption.
        cond_scale: classifier-free guidance strength; 1.0 switches it off.
        candidates: draws per caption, of which the one nearest to the text is kept (the paper draws two).
    Returns:
        image_embed (B, D), float32, unit length.
    Raises:
        ConfigError: cond_scale is not 1.0 but the prior never saw a dropped condition.
    Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2.
    """
    if cond_scale != 1.0 and not prior.spec.saw_dropped_conditions:
        raise ConfigError(
            f"prior cond_scale: found {cond_scale}, but this prior was trained without dropped conditions; "
            "set it to 1.0."
        )
    b, dim, device = len(text.text_embed), prior.spec.image_embed_dim, text.text_embed.device
    noise = torch.stack(
        [torch.randn(candidates, dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    noise = noise.view(b * candidates, dim).to(device)
    text_embed = text.text_embed.repeat_interleave(candidates, dim=0)
    encodings = text.text_encodings.repeat_interleave(candidates, dim=0)
    keep = torch.ones(len(noise), dtype=torch.bool, device=device)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        predicted = prior(x_t, t, text_embed, encodings, keep, keep)
        if cond_scale != 1.0:
            without = prior(x_t, t, text_embed, encodings, ~keep, keep)
            predicted = without + (predicted - without) * cond_scale
        clamped: Tensor = F.normalize(predicted, dim=-1) * prior.scale
        return clamped

    drawn = F.normalize(SAMPLERS[sampler](denoise, noise, prior.noise_schedule, steps), dim=-1)
    drawn = drawn.view(b, candidates, dim)
    nearest = torch.einsum("bcd,bd->bc", drawn, text.text_embed).argmax(dim=1)
    return drawn[torch.arange(b, device=device), nearest]


def load_prior(place: str | Path) -> tuple[Prior, str, dict[str, Any]]:
    """A prior from a run folder, a file or "stock/prior": model, hash, card.

    Raises:
        WeightsError: nothing there, or weights of another architecture.
    """
    path = locate_weights(place, KIND)
    card = read_card(path, KIND)
    prior = Prior(card_spec(path, card, PriorSpec))
    load_weights(prior, path)
    return prior, short_hash(path), card
