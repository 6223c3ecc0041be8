"""The diffusion prior: a caption to a CLIP image embedding, through dalle2-pytorch's transformer.

Paper: Ramesh et al. 2022 (arXiv 2204.06125), section 2.2. The library's DiffusionPrior class is not used: it
scales the embedding that it is given in place, and its DDIM inverts with another alpha than it steps with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dalle2_pytorch.dalle2_pytorch import DiffusionPriorNetwork
from torch import Tensor, nn

from crest.checkpoint import card_spec, load_model
from crest.config import SamplerName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.prediction import refuse_blind_epsilon, to_x_start
from crest.diffusion.sampling import SAMPLERS
from crest.errors import ConfigError
from crest.models.clip import TextFeatures
from crest.models.fast_prior import PriorPrefix, prior_forward, prior_prefix, prior_step
from crest.models.fingerprint import verify
from crest.models.prior_spec import PriorSpec, refuse_misfits

__all__ = ["KIND", "Prior", "PriorSpec", "load_prior", "sample_image_embed"]
KIND = "prior"


class Prior(nn.Module):
    """The prior's network with its noise schedule; it predicts what its spec names: in the paper, x_start.

    Inside, embeddings are scaled by sqrt(D) so that their entries have the variance of the noise.
    """

    lora_targets: Sequence[str] = tuple(
        f"net.causal_transformer.layers.*.{name}.weight" for name in ("to_q", "to_kv", "to_out.0")
    )

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        refuse_misfits(spec)
        self.spec = spec
        self.noise_schedule = NoiseSchedule(spec.noise_schedule, spec.timesteps)
        refuse_blind_epsilon(spec.prediction, self.noise_schedule)
        self.checkpointing = False
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
            self_cond=spec.self_cond,
        )
        if spec.arithmetic == "1.1":  # before release 1.4.3 attention was no cosine similarity
            for attention, _ in self.net.causal_transformer.layers:
                attention.cosine_sim, attention.scale = False, spec.dim_head**-0.5
        self.project_text = (
            nn.Identity()
            if spec.text_width in (None, spec.image_embed_dim)
            else nn.Linear(spec.text_width, spec.image_embed_dim, bias=False)
        )

    @property
    def scale(self) -> float:
        """Length of an image embedding where it diffuses."""
        return self.spec.scale

    def encode_embeds(self, image_embed: Tensor) -> Tensor:
        """Unit-length image embeddings (B, D) at the scale that they diffuse at: a copy."""
        return image_embed * self.scale

    def decode_embeds(self, x: Tensor) -> Tensor:
        """What diffused as unit-length image embeddings (B, D), float32."""
        return F.normalize(x.float(), dim=-1)

    def save_memory(self) -> None:
        """Compute each layer's activations again on the way back."""
        self.checkpointing = True

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text_embed: Tensor,
        text_encodings: Tensor | None,
        text_keep: Tensor,
        image_keep: Tensor,
        *,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict, float32, what the spec names.

        Args:
            x_t: noised, scaled embeddings (B, D) at timesteps t (B,).
            text_embed: (B, D) unit length; text_encodings: (B, L, K), or None where the spec reads none.
            text_keep, image_keep: (B,) bool; False hides the text, or x_t itself.
            self_cond: (B, D), the scaled x_start that was guessed before; None shows zeros.
        Returns:
            (B, D) at the scale of x_t.
        """
        spec = self.spec
        words = self.project_text(text_encodings) if spec.text_encodings else None
        if self_cond is not None and spec.clamp_sampled:
            self_cond = F.normalize(self_cond, dim=-1) * spec.scale  # as a draw shows it; zeros stay zeros
        return prior_forward(
            self.net,
            x_t,
            t,
            text_embed * spec.text_scale,
            words,
            text_keep,
            image_keep,
            arithmetic=spec.arithmetic,
            self_cond=self_cond,
            checkpointing=self.checkpointing,
        ).float()

    def step(
        self,
        told: PriorPrefix,
        x_t: Tensor,
        t: Tensor,
        image_keep: Tensor,
        *,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """`forward` (R, D) after a text of R rows that was run before; one timestep t (1,) for all."""
        if self_cond is not None and self.spec.clamp_sampled:
            self_cond = F.normalize(self_cond, dim=-1) * self.spec.scale
        return prior_step(self.net, told, x_t, t, image_keep, self_cond=self_cond).float()

    def sample(
        self, text: TextFeatures, *, seeds: Sequence[int], cond_scale: float, steps: int, candidates: int
    ) -> Tensor:
        """`sample_image_embed` with DDIM."""
        return sample_image_embed(
            self, text, seeds=seeds, cond_scale=cond_scale, steps=steps, candidates=candidates
        )


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
        text: text_embed (B, D) unit length; text_encodings (B, L, K), ignored where the spec reads none.
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
    spec, schedule = prior.spec, prior.noise_schedule
    b, dim, device = len(text.text_embed), spec.image_embed_dim, text.text_embed.device
    noise = torch.stack(
        [torch.randn(candidates, dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    noise = noise.view(b * candidates, dim).to(device)
    predict = guided_prediction(prior, text, candidates=candidates, cond_scale=cond_scale)

    def denoise(x_t: Tensor, t: Tensor, self_cond: Tensor | None = None) -> Tensor:
        predicted = predict(x_t, t, self_cond)
        x_start = to_x_start(spec.prediction, predicted, x_t, schedule.alpha(t, 2), schedule.sigma(t, 2))
        return F.normalize(x_start, dim=-1) * spec.scale if spec.clamp_sampled else x_start

    descend: Callable[..., Tensor] = SAMPLERS[sampler]
    drawn = prior.decode_embeds(descend(denoise, noise, schedule, steps, self_cond=spec.self_cond))
    drawn = drawn.view(b, candidates, dim)
    nearest = torch.einsum("bcd,bd->bc", drawn, text.text_embed).argmax(dim=1)
    return drawn[torch.arange(b, device=device), nearest]


def guided_prediction(
    prior: Prior, text: TextFeatures, *, candidates: int, cond_scale: float
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What a draw asks at each timestep; the text is run here, once for all of them.

    Returns:
        a function of x_t (B * candidates, D), t (B * candidates,) all the same, and the guess before or None.
    """
    spec, net = prior.spec, prior.net
    b, device = len(text.text_embed), text.text_embed.device
    keep = torch.ones(b, dtype=torch.bool, device=device)
    words = prior.project_text(text.text_encodings) if spec.text_encodings else None
    told = prior_prefix(net, text.text_embed * spec.text_scale, words, keep, arithmetic=spec.arithmetic)
    told = told.rows(torch.arange(b, device=device).repeat_interleave(candidates))
    # rows without text come after those with it: one, where nothing would tell them apart
    rows = b * candidates
    guides = 0 if cond_scale == 1.0 else 1 if spec.saw_dropped_images and not spec.self_cond else rows
    if guides:
        nothing = prior_prefix(net, text.text_embed[:1], None, ~keep[:1], arithmetic=spec.arithmetic)
        told = told.and_also(nothing.rows(torch.zeros(guides, dtype=torch.long, device=device)))
    image_keep = torch.ones(rows + guides, dtype=torch.bool, device=device)
    image_keep[rows:] = not spec.saw_dropped_images

    def predict(x_t: Tensor, t: Tensor, self_cond: Tensor | None) -> Tensor:
        guess = None if self_cond is None else torch.cat((self_cond, self_cond[:guides]))
        both = prior.step(told, torch.cat((x_t, x_t[:guides])), t[:1], image_keep, self_cond=guess)
        predicted, without = both[:rows], both[rows:]
        return without + (predicted - without) * cond_scale if guides else predicted

    return predict


def load_prior(place: str | Path) -> tuple[Prior, str, dict[str, Any]]:
    """A prior from a run folder, a file or "stock/prior": model, hash, card.

    Raises:
        WeightsError: nothing there, or weights of another architecture.
    """
    return load_model(place, KIND, lambda path, card: Prior(card_spec(path, card, PriorSpec)), verify)
