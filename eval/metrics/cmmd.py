"""CMMD: unbiased kernel distance between drawings and real pictures, Gaussian kernel on CLIP features.

With this kernel width and unit-length features it mostly sees a shift of the mean, so KID stands next to it.
"""

from __future__ import annotations

import numpy as np

from eval import mmd
from eval.evidence import Evidence, Floats
from eval.metrics import Better, Outcome

SIGMA = 10.0
SCALE = 1000.0


def gaussian_kernel(x: Floats, y: Floats) -> Floats:
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10.

    Args:
        x: (n, D), unit length.
        y: (m, D), unit length.
    Returns:
        (n, m).
    Paper: Jayasumana et al. 2024 (arXiv 2401.09603), section 4.
    """
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.asarray(np.exp(-np.maximum(squared, 0.0) / (2 * SIGMA**2)))


class Cmmd:
    """Unbiased CMMD (x 1000 as published) to the real test pictures."""

    name = "cmmd"
    title = "CMMD"
    better: Better = "lower"
    is_share = False

    def unfit(self, evidence: Evidence) -> str | None:
        """Needs real test pictures."""
        return mmd.too_few(evidence.real)

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a system; `biased` is what published code prints."""
        assert evidence.real is not None
        return mmd.measure(evidence, gaussian_kernel, SCALE, evidence.real)
