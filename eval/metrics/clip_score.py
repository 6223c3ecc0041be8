"""CLIPScore: how near a drawing is to its prompt in the reference CLIP's space.

Saturates and rewards style words, so it is only ever compared prompt by prompt, with R-precision beside it.
"""

from __future__ import annotations

import numpy as np

from eval.evidence import Evidence, Floats
from eval.metrics import Better, Outcome


def clip_score(image_embed: Floats, text_embed: Floats) -> Floats:
    """100 max(cos, 0) for each pair.

    Args:
        image_embed: (N, D), unit length.
        text_embed: (N, D), unit length, the prompt of each picture.
    Paper: Hessel et al. 2021 (arXiv 2104.08718), there with 2.5 in place of 100.
    """
    return np.asarray(100 * np.maximum((image_embed * text_embed).sum(axis=-1), 0.0))


class ClipScore:
    """Mean CLIPScore of a prompt's pictures."""

    name = "clip_score"
    title = "CLIPScore"
    better: Better = "higher"
    is_share = False

    def unfit(self, evidence: Evidence) -> str | None:
        """Never: prompts and pictures are enough."""
        return None

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a prompt."""
        text = evidence.text_embed[evidence.prompt_of]
        figures = {}
        if evidence.real is not None:
            off = evidence.real.image_embed @ evidence.text_embed.T
            figures["unrelated"] = float(100 * np.maximum(off, 0).mean())
        return Outcome(
            scores={
                name: evidence.per_prompt(clip_score(gallery.image_embed, text))
                for name, gallery in evidence.systems.items()
            },
            figures=figures,
            note=f"unrelated real pictures reach {figures['unrelated']:.3g} on these prompts"
            if figures
            else "",
        )
