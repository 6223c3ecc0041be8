"""Pictures from a decoder of any family: guidance, the small picture of a cascade, self-conditioning.

Knows no network: what it draws with answers `crest.models.families.DecoderFamily`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest.config import SamplerName
from crest.diffusion.learned_variance import split_prediction
from crest.diffusion.lowres import SAMPLING_NOISE_LEVEL, augment, sampling_augmentation
from crest.diffusion.prediction import to_x_start
from crest.diffusion.sampling import SAMPLERS
from crest.models.families import DecoderFamily
from crest.world import mix_seed

_GRAIN = 3
"""Mixed into a picture's seed for the noise on its small picture, which is not the noise it begins as."""


@torch.no_grad()
def sample_images(
    decoder: DecoderFamily,
    image_embed: Tensor,
    text_encodings: Tensor | None,
    *,
    seeds: Sequence[int],
    steps: int,
    cond_scale: float,
    sampler: SamplerName = "dpmpp_2m",
    lowres: Tensor | None = None,
    lowres_noise_level: int = SAMPLING_NOISE_LEVEL,
) -> Tensor:
    """Draw one picture per row.

    Args:
        decoder: one network of a cascade.
        image_embed: (B, D) unit length; text_encodings: (B, L, K) or None.
        seeds: one a row; a picture depends on its own seed, not on its place in the batch.
        steps: network evaluations per picture (twice as many rows when guided).
        cond_scale: classifier-free guidance strength; 1.0 switches it off.
        lowres: the pictures that an upsampler enlarges, (B, 3, h, w) in [0, 1].
        lowres_noise_level: of those pictures, 0 … 999, where the upsampler is told of it; else none is added.
    Returns:
        (B, 3, side, side) float32 in [0, 1].
    Paper: Ho and Salimans 2022 (arXiv 2207.12598), equation 6, with w = cond_scale - 1. Ho et al. 2021 (arXiv
        2106.15282), section 2, for cascades.
    """
    b, spec = len(image_embed), decoder.spec
    assert (lowres is None) == (spec.lowres_side_px is None)
    device = image_embed.device
    noise = torch.stack([_noise(seed, decoder.x_shape) for seed in seeds]).to(device)
    keep = torch.ones(b, dtype=torch.bool, device=device)
    level: Tensor | None = None
    if lowres is not None:
        told = lowres_noise_level if spec.lowres_noise_cond else None
        shown = sampling_augmentation(b, told, device)
        grain = [_noise(mix_seed(seed, _GRAIN), tuple(lowres.shape[1:])) for seed in seeds]
        lowres, level = augment(lowres * 2 - 1, shown, torch.stack(grain).to(device)), shown.noise_level
    guided = cond_scale != 1.0
    if guided:
        image_embed = torch.cat((image_embed, image_embed))
        text_encodings = None if text_encodings is None else torch.cat((text_encodings, text_encodings))
        lowres = None if lowres is None else torch.cat((lowres, lowres))
        level = None if level is None else torch.cat((level, level))
        keep = torch.cat((keep, ~keep))
    conditions = decoder.conditions(image_embed, text_encodings, keep, keep, lowres, level)
    schedule, limit = decoder.noise_schedule, decoder.x_limit

    def denoise(x_t: Tensor, t: Tensor, self_cond: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if guided:
            before = None if self_cond is None else torch.cat((self_cond, self_cond))
            both = decoder.predict(torch.cat((x_t, x_t)), torch.cat((t, t)), conditions, before)
            output, without = both.chunk(2)
        else:
            output = without = decoder.predict(x_t, t, conditions, self_cond)
        predicted, fraction = split_prediction(output) if spec.learned_variance else (output, None)
        if guided:
            # what is said of the variance is taken as it is: guidance is a matter of the mean
            without = without[:, : predicted.shape[1]]
            predicted = without + (predicted - without) * cond_scale
        x_start = to_x_start(spec.prediction, predicted, x_t, schedule.alpha(t, 4), schedule.sigma(t, 4))
        x_start = x_start if limit is None else x_start.clamp(-limit, limit)
        return x_start if fraction is None else (x_start, fraction)

    drawn = SAMPLERS[sampler](denoise, noise, schedule, steps, self_cond=spec.self_cond)
    return decoder.decode_images(drawn)


def _noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    # drawn on the CPU, so that a seed gives the same logo on every device
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
