"""What can be turned in prior preservation. Imports nothing heavy, as every file of settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crest.config import Config


class PreservationConfig(Config):
    """Class pictures of the unmodified models, learned beside the subjects (Ruiz et al. 2022)."""

    prompts: tuple[str, ...] | Path
    """What else is to stay known: class prompts, or a file of them (one a line, or .jsonl with `text`)."""
    pictures: int = Field(default=64, ge=1)
    """Class pictures (for a prior: embeddings) that are drawn, spread evenly over the prompts."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of a class sample's loss; a subject's is 1."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of every batch that is of the classes."""
    clip: str = "stock/clip"
    """CLIP that the unmodified models belong to."""
    embed_clip: str | None = None
    """CLIP that data.embeddings were made with, where it is another."""
    prior: str | None = None
    """Unmodified prior; null takes model.start when a prior is trained, and else "stock/prior"."""
    decoders: tuple[str, ...] | None = None
    """Unmodified decoders in the order of their unet_number, up to the one that is trained; null takes
    model.start alone."""
    seed: int = 0
    """Seed of the class pictures."""
    steps: int = Field(default=24, ge=1)
    """Denoising steps of each decoder."""
    cond_scale: float = 1.5
    """Guidance of the first decoder."""
    prior_steps: int = Field(default=24, ge=1)
    """Denoising steps of the prior."""
    prior_cond_scale: float = 1.0
    """Guidance of the prior."""
    candidates: int = Field(default=2, ge=1)
    """Embeddings that the prior draws per class picture, of which the one nearest to the text is kept."""
