"""Colour faithfulness: are the colours that a prompt names in the picture? Pixels only, no weights.

The chance level (other prompts' colours in the same picture) stands beside it: white is in almost every logo.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crest.colours import COLOUR_WORDS, colour_words, palette, srgb_to_lab
from eval.evidence import Evidence, Floats
from eval.metrics import Better, Outcome

PALETTE = 6
"""colours that a picture is reduced to"""
SMALLEST_SHARE = 0.02
"""of the pixels; a colour below it is an edge, not a choice"""
NEAR = 25.0
"""CIELAB distance within which a colour answers to a word"""


def holds_colours(pixels: NDArray[np.uint8], words: list[str]) -> NDArray[np.bool_]:
    """Which colour words a picture answers to: some colour of its palette lies near the word's own.

    Args:
        pixels: (3, H, W).
        words: W colour words.
    Returns:
        (W,).
    """
    found = [rgb for rgb, share in palette(pixels.transpose(1, 2, 0), PALETTE) if share >= SMALLEST_SHARE]
    if not found or not words:
        return np.zeros(len(words), dtype=np.bool_)
    have = srgb_to_lab(np.array(found) / 255)
    wanted = srgb_to_lab(np.array([COLOUR_WORDS[word] for word in words]) / 255)
    distance = np.linalg.norm(wanted[:, None] - have[None], axis=-1)
    return np.asarray(distance.min(axis=1) <= NEAR)


class Colours:
    """Share of a prompt's colour words that its pictures answer to."""

    name = "colours"
    title = "Colours named are there"
    better: Better = "higher"
    is_share = True

    def unfit(self, evidence: Evidence) -> str | None:
        """Needs at least two prompts that name a colour."""
        naming = sum(bool(colour_words(prompt)) for prompt in evidence.prompts)
        return (
            None if naming >= 2 else f"{naming} of {len(evidence.prompts)} prompts name a colour (at least 2)"
        )

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a prompt, in [0, 1]; NaN where it names no colour."""
        asked = [list(dict.fromkeys(colour_words(prompt))) for prompt in evidence.prompts]
        words = sorted({word for prompt_words in asked for word in prompt_words})
        place = {word: number for number, word in enumerate(words)}
        wants = np.zeros((len(asked), len(words)))
        for number, prompt_words in enumerate(asked):
            wants[number, [place[word] for word in prompt_words]] = 1.0
        naming = wants.sum(axis=1) > 0
        weights = wants / np.maximum(wants.sum(axis=1, keepdims=True), 1)  # (P, W), rows sum to 1
        scores: dict[str, Floats] = {}
        figures: dict[str, float] = {"prompts": float(naming.sum())}
        for name, gallery in evidence.systems.items():
            holds = np.stack([holds_colours(picture, words) for picture in gallery.pixels]).astype(np.float64)
            recall = holds @ weights.T  # (N, P)
            own = recall[np.arange(len(gallery)), evidence.prompt_of]
            scores[name] = evidence.per_prompt(np.where(naming[evidence.prompt_of], own, np.nan))
            others = recall[:, naming].sum(axis=1) - np.where(naming[evidence.prompt_of], own, 0.0)
            left = naming.sum() - naming[evidence.prompt_of]
            figures[f"{name}.chance"] = float(np.mean(others / np.maximum(left, 1)))
        level = ", ".join(f"{name} {figures[f'{name}.chance']:.0%}" for name in evidence.systems)
        return Outcome(
            scores=scores, figures=figures, note=f"the colours of other prompts are there by chance: {level}"
        )
