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
from pydantic import Field
from torch import Tensor, nn

from crest.checkpoint import card_spec, load_weights, locate_weights, read_card, short_hash
from crest.config import Arithmetic, Config, Prediction, SamplerName, ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.prediction import to_x_start
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
    arithmetic: Arithmetic = "1.15"
    """The release of dalle2-pytorch whose numbers the weights belong to."""
    prediction: Prediction = "x_start"
    """What the network predicts."""
    text_encodings: bool = True
    """Whether it reads text encodings beside the text embedding."""
    discrete_timesteps: bool = False
    """Whether each timestep has a learned embedding of its own, instead of waves and a small network."""
    image_embed_scale: float | None = None
    """Factor on the unit-length image embedding that diffuses; null takes sqrt(D), the noise's scale."""
    text_embed_scale: float | None = None
    """Factor on the unit-length text embedding; null takes sqrt(D), the scale of the other tokens."""
    clamp_sampled: bool = True
    """Whether every step of a draw brings its guess back to the length of an embedding."""
    norm_in: bool = False
    """Whether the transformer begins with a norm."""
    norm_out: bool = True
    """Whether the transformer ends with a norm."""
    normformer: bool = False
    """Whether feed-forward layers have a norm in their middle."""
    rotary_emb: bool = True
    """Whether attention is told positions by rotation, beside the relative bias."""
    final_proj: bool = True
    """Whether a linear layer follows the transformer."""
    attn_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    ff_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of feed-forward activations dropped in training."""
    num_time_embeds: int = Field(default=1, ge=1)
    """Tokens that tell the timestep."""
    num_image_embeds: int = Field(default=1, ge=1)
    """Tokens that show the noised image embedding."""
    num_text_embeds: int = Field(default=1, ge=1)
    """Tokens that show the text embedding."""


class Prior(nn.Module):
    """The prior's network with its noise schedule; it predicts what its spec names: in the paper, x_start.

    Inside, embeddings are scaled by sqrt(D) so that their entries have the variance of the noise.
    """

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.noise_schedule = NoiseSchedule(spec.noise_schedule, spec.timesteps)
        width = spec.image_embed_dim**0.5
        # entries of a unit vector are 1/sqrt(D): bring them to the scale of the noise and of other tokens
        self.scale = width if spec.image_embed_scale is None else spec.image_embed_scale
        self.text_scale = width if spec.text_embed_scale is None else spec.text_embed_scale
        self.net = DiffusionPriorNetwork(
            dim=spec.image_embed_dim,
            max_text_len=spec.max_text_len,
            depth=spec.depth,
            heads=spec.heads,
            dim_head=spec.dim_head,
            ff_mult=spec.ff_mult,
            num_timesteps=spec.timesteps if spec.discrete_timesteps else None,
            num_time_embeds=spec.num_time_embeds,
            num_image_embeds=spec.num_image_embeds,
            num_text_embeds=spec.num_text_embeds,
            norm_in=spec.norm_in,
            norm_out=spec.norm_out,
            normformer=spec.normformer,
            rotary_emb=spec.rotary_emb,
            final_proj=spec.final_proj,
            attn_dropout=spec.attn_dropout,
            ff_dropout=spec.ff_dropout,
        )
        if spec.arithmetic == "1.1":  # before release 1.4.3 attention was no cosine similarity
            for attention, _ in self.net.causal_transformer.layers:
                attention.cosine_sim, attention.scale = False, spec.dim_head**-0.5
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
        told = (text_embed * self.text_scale, words, text_keep, image_keep)
        return prior_forward(self.net, x_t, t, *told, arithmetic=self.spec.arithmetic).float()


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
        schedule = prior.noise_schedule
        x_start = to_x_start(
            prior.spec.prediction, predicted, x_t, schedule.alpha(t, 2), schedule.sigma(t, 2)
        )
        return F.normalize(x_start, dim=-1) * prior.scale if prior.spec.clamp_sampled else x_start

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
