"""R-precision@1: does a drawing's own prompt rank first among the other prompts of the set?

More robust than CLIPScore to a shift that all prompts share ("looks like a logo").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.evidence import Evidence, Floats
from eval.metrics import Better, Outcome

DISTRACTORS = 99


def distractors(prompts: tuple[str, ...], seed: int, most: int = DISTRACTORS) -> list[NDArray[np.int64]]:
    """For each prompt, the numbers of the prompts that it is to be told apart from.

    Each caption counts once and a prompt's own wording never stands against it. Where more than `most` are
    left, they are drawn at random, the same for every system.
    """
    wording = [" ".join(prompt.lower().split()) for prompt in prompts]
    first: dict[str, int] = {}
    for number, words in enumerate(wording):
        first.setdefault(words, number)
    distinct = np.array(sorted(first.values()), dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen = []
    for words in wording:
        others = distinct[distinct != first[words]]
        if len(others) > most:
            others = rng.choice(others, size=most, replace=False)
        chosen.append(np.sort(others))
    return chosen


def ranks_first(similarity: Floats, prompt_of: NDArray[np.int64], others: list[NDArray[np.int64]]) -> Floats:
    """1 where a picture's own prompt ranks first, 1 / (1 + t) where t others are exactly as near, else 0.

    Args:
        similarity: (N, P), picture against prompt.
    """
    result = np.zeros(len(prompt_of))
    for picture, prompt in enumerate(prompt_of):
        rival = similarity[picture, others[prompt]]
        own = similarity[picture, prompt]
        if not (rival > own).any():
            result[picture] = 1.0 / (1 + int((rival == own).sum()))
    return result


class RPrecision:
    """Share of pictures whose own prompt ranks first, averaged within each prompt."""

    name = "r_precision_at_1"
    title = "R-precision@1"
    better: Better = "higher"
    is_share = True

    def unfit(self, evidence: Evidence) -> str | None:
        """Needs two different prompts."""
        return (
            None
            if any(len(others) for others in distractors(evidence.prompts, evidence.seed))
            else "all prompts are alike"
        )

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a prompt, in [0, 1]."""
        others = distractors(evidence.prompts, evidence.seed)
        chance = float(np.mean([1 / (1 + len(rivals)) for rivals in others]))
        count = max(len(rivals) for rivals in others)
        scores = {}
        for name, gallery in evidence.systems.items():
            similarity = gallery.image_embed @ evidence.text_embed.T
            scores[name] = evidence.per_prompt(ranks_first(similarity, evidence.prompt_of, others))
        return Outcome(
            scores=scores,
            figures={"chance": chance, "distractors": count},
            note=f"against {count} other prompts; chance is {chance:.2%}",
        )
