"""Vendi score: how many different drawings there are, as an effective number, beside their mean similarity.

Grows with the number of pictures, so systems are only compared at equal n (eval.systems sees to it).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.evidence import Evidence, Floats
from eval.metrics import Better, Estimate, Outcome
from eval.statistics import normal_interval

HALVES = 100
"""random halves of the prompts behind the interval"""


def vendi_score(image_embed: Floats) -> float:
    """exp of the entropy of the eigenvalues of E E^T / n: 1 for n equal pictures, n for n orthogonal ones.

    Args:
        image_embed: (n, D), unit length.
    Paper: Friedman and Dieng 2023 (arXiv 2210.02410), definition 3.1.
    """
    n, width = image_embed.shape
    gram = (
        image_embed @ image_embed.T if n <= width else image_embed.T @ image_embed
    )  # same non-zero spectrum
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_similarity(image_embed: Floats) -> float:
    """Mean cosine over all pairs of different pictures."""
    n = len(image_embed)
    total = image_embed.sum(axis=0)
    return float((total @ total - (image_embed * image_embed).sum()) / (n * (n - 1)))


def similarity_within(image_embed: Floats, prompt_of: NDArray[np.int64]) -> float | None:
    """Mean cosine between pictures of the same prompt (1: mode collapse); None with one a prompt."""
    groups = [image_embed[prompt_of == prompt] for prompt in np.unique(prompt_of)]
    several = [mean_similarity(group) for group in groups if len(group) > 1]
    return float(np.mean(several)) if several else None


class Vendi:
    """Effective number of different drawings in the whole set."""

    name = "vendi"
    title = "Vendi score"
    better: Better = "higher"
    is_share = False

    def unfit(self, evidence: Evidence) -> str | None:
        """Never: the drawings are enough."""
        return None

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a system, with the spread over random halves of the prompts, taken without replacement.

        Bootstrapping would put equal pictures into the set and lower the score. The variance of a half around
        the whole is that of the whole around the truth, since 1/(n/2) - 1/n = 1/n.
        """
        rng = np.random.default_rng(evidence.seed)
        count = len(evidence.prompts)
        halves = [np.isin(evidence.prompt_of, rng.permutation(count)[: count // 2]) for _ in range(HALVES)]
        value = {name: vendi_score(gallery.image_embed) for name, gallery in evidence.systems.items()}
        spread = {
            name: np.array([vendi_score(gallery.image_embed[half]) for half in halves])
            for name, gallery in evidence.systems.items()
        }
        base = evidence.baseline
        figures: dict[str, float] = {}
        for name, gallery in evidence.systems.items():
            figures[f"{name}.similarity"] = mean_similarity(gallery.image_embed)
            within = similarity_within(gallery.image_embed, evidence.prompt_of)
            if within is not None:
                figures[f"{name}.similarity_within_prompt"] = within
        note = f"of {len(evidence.prompt_of)} pictures"
        if evidence.real is not None and len(evidence.real) >= len(evidence.prompt_of):
            chosen = rng.permutation(len(evidence.real))[: len(evidence.prompt_of)]
            figures["real"] = vendi_score(evidence.real.image_embed[chosen])
            note += f"; as many real ones have {figures['real']:.3g}"
        return Outcome(
            estimates={name: _estimate(value[name], spread[name], count) for name in value},
            differences={
                name: _estimate(value[name] - value[base], spread[name] - spread[base], count)
                for name in value
                if name != base
            },
            figures=figures,
            note=note,
        )


def _estimate(value: float, halves: Floats, prompts: int) -> Estimate:
    interval, p = normal_interval(value, float(halves.var(ddof=1)), prompts)
    return Estimate(interval, p)
