"""What can be turned in drawing. Imports nothing heavy, so that a mistake in a config is told at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crest.config import Config, FileConfig, SamplerName


class ModelsConfig(Config):
    """The networks that draw: three, and those that enlarge."""

    clip: str = "stock/clip"
    """CLIP that reads the prompt: a run folder, a file or "stock/clip"."""
    prior: str = "stock/prior"
    """Prior made for that CLIP."""
    decoder: str = "stock/decoder_64"
    """Decoder made for that CLIP, the first of a cascade."""
    upsamplers: tuple[str, ...] = ()
    """Decoders that enlarge what it draws, in the order of their unet_number, from 2."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""


class DrawConfig(Config):
    """How prompts become pictures."""

    prompts: Path | None = None
    """Prompts: .jsonl with `text` (and `id`), a text file of lines, or a shards folder (its test split)."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Draw the first so many prompts only."""
    out: Path
    """Folder of the pictures and samples.jsonl."""
    per_prompt: int = Field(default=1, ge=1)
    """Pictures per prompt."""
    seed: int = 0
    """Picture k of prompt i gets a seed made of this, i and k."""
    steps: int = Field(default=24, ge=1)
    """Denoising steps of the decoder."""
    cond_scale: float = 1.5
    """Guidance of the decoder; 1.0 switches it off."""
    sampler: SamplerName = "dpmpp_2m"
    """Sampler of the decoder."""
    prior_steps: int = Field(default=24, ge=1)
    """Denoising steps of the prior."""
    prior_cond_scale: float = 1.0
    """Guidance of the prior; 1.0 switches it off."""
    candidates: int = Field(default=2, ge=1)
    """Embeddings the prior draws per picture, of which the one nearest to the text is kept."""
    upsampler_steps: int = Field(default=24, ge=1)
    """Denoising steps of each upsampler."""
    upsampler_cond_scale: float = 1.0
    """Guidance of each upsampler; 1.0 switches it off, as in the paper."""
    lowres_noise_level: int = Field(default=200, ge=0, lt=1000)
    """Noise given to the small picture of an upsampler that is told of it, as a timestep of 1000."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures drawn at once."""


class GenerateConfig(FileConfig):
    """Drawing of logos from text."""

    models: ModelsConfig = ModelsConfig()
    """By what."""
    draw: DrawConfig
    """What and how."""
