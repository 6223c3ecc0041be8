"""KID: unbiased kernel distance between drawings and real pictures, cubic kernel on CLIP features.

Not Inception features: they are poor outside photographs. FID is left out: at these set sizes it is mostly
bias.
"""

from __future__ import annotations

from eval import mmd
from eval.evidence import Evidence, Floats
from eval.metrics import Better, Outcome

SCALE = 1000.0


def cubic_kernel(x: Floats, y: Floats) -> Floats:
    """k(x, y) = (x . y / d + 1)^3 on features of length sqrt(d), that is (cos + 1)^3 on unit length.

    CLIP features are unit length at our border; without the factor x . y / d would vanish and the kernel be
    linear.

    Args:
        x: (n, D), unit length.
        y: (m, D), unit length.
    Returns:
        (n, m).
    Paper: Binkowski et al. 2018 (arXiv 1801.01401), section 3.
    """
    return (x @ y.T + 1.0) ** 3


class Kid:
    """Unbiased KID x 1000 to the real test pictures."""

    name = "kid"
    title = "KID × 1000"
    better: Better = "lower"
    is_share = False

    def unfit(self, evidence: Evidence) -> str | None:
        """Needs real test pictures."""
        return mmd.too_few(evidence.real)

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a system."""
        assert evidence.real is not None
        return mmd.measure(evidence, cubic_kernel, SCALE, evidence.real)
