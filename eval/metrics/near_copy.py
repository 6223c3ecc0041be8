"""Near copies: drawings that lie closer to a training picture than almost any unseen real picture does.

A hint for the eye, not a proof: nearest.jsonl names the pairs, and the report shows the closest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.evidence import Evidence, Floats, Gallery
from eval.metrics import Better, Outcome

QUANTILE = 0.99
NEAR_BITS = 6
"""of 64; at most so many differing bits of the perceptual hash make a near-exact copy"""
_ONES = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
FEWEST_REAL = 20
"""unseen pictures below which a 99 % point means nothing"""


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """64 bits a picture: is each of the 8 x 8 lowest cosine coefficients (grey) above their median?

    Args:
        pixels: (N, 3, H, W).
    Returns:
        (N, 8), bits packed.
    """
    from PIL import Image
    from scipy.fft import dctn

    rows = []
    for picture in pixels:
        small = (
            Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).convert("L").resize((32, 32))
        )
        low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:8, :8].ravel()
        # an empty picture has only rounding noise here; rounding makes its bits equal everywhere
        low = np.round(low, 6)
        rows.append(np.packbits(low > np.median(low[1:])))
    return np.stack(rows)


def hash_distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Differing bits (N, M) between packed hashes (N, 8) and (M, 8)."""
    return np.asarray(_ONES[a[:, None, :] ^ b[None, :, :]].sum(axis=-1, dtype=np.int64))


def nearest(queries: Floats, train: Floats, chunk: int = 1024) -> tuple[NDArray[np.int64], Floats]:
    """Number and cosine of the nearest training picture of each query (unit-length rows)."""
    numbers, cosines = [], []
    for first in range(0, len(queries), chunk):
        similarity = queries[first : first + chunk] @ train.T
        numbers.append(similarity.argmax(axis=1))
        cosines.append(similarity.max(axis=1))
    return np.concatenate(numbers), np.concatenate(cosines)


def fewest_bits(pixels: NDArray[np.uint8], train_hash: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Distance to the nearest training hash, of the picture or of its mirror image."""
    best = []
    for first in range(0, len(pixels), 64):
        block = pixels[first : first + 64]
        direct = hash_distance(perceptual_hash(block), train_hash).min(axis=1)
        mirrored = hash_distance(perceptual_hash(block[..., ::-1]), train_hash).min(axis=1)
        best.append(np.minimum(direct, mirrored))
    return np.concatenate(best)


class NearCopy:
    """Share of pictures above the 99 % point of held-out-to-train similarity."""

    name = "near_copy"
    title = "Near copies of training pictures"
    better: Better = "lower"
    is_share = True

    def unfit(self, evidence: Evidence) -> str | None:
        """Needs training pictures, and enough unseen ones for the threshold."""
        if evidence.train is None or evidence.real is None:
            return "no real pictures: eval.shards is not set, or a split of it is empty"
        if len(evidence.real) < FEWEST_REAL:
            found = len(evidence.real)
            return f"the test split holds {found} pictures, too few for a threshold (at least {FEWEST_REAL})"
        return None

    def measure(self, evidence: Evidence) -> Outcome:
        """One figure a prompt: the share of its pictures that are flagged."""
        assert evidence.train is not None
        assert evidence.real is not None
        train: Gallery = evidence.train
        _, unseen = nearest(evidence.real.image_embed, train.image_embed)
        threshold = float(np.quantile(unseen, QUANTILE))
        train_hash = perceptual_hash(train.pixels)
        figures = {
            "threshold": threshold,
            "held_out.cosine": float(unseen.mean()),
            "held_out.share": float(np.mean(unseen > threshold)),
            "held_out.phash_share": float(
                np.mean(fewest_bits(evidence.real.pixels, train_hash) <= NEAR_BITS)
            ),
        }
        scores, rows = {}, []
        for name, gallery in evidence.systems.items():
            numbers, cosines = nearest(gallery.image_embed, train.image_embed)
            bits = fewest_bits(gallery.pixels, train_hash)
            flagged = cosines > threshold
            scores[name] = evidence.per_prompt(flagged.astype(np.float64))
            figures[f"{name}.cosine"] = float(cosines.mean())
            figures[f"{name}.phash_share"] = float(np.mean(bits <= NEAR_BITS))
            rows += [
                {
                    "system": name,
                    "file": gallery.ids[n],
                    "prompt": evidence.prompts[int(evidence.prompt_of[n])],
                    "nearest_id": train.ids[int(numbers[n])],
                    "cosine": round(float(cosines[n]), 6),
                    "phash_bits": int(bits[n]),
                    "is_flagged": bool(flagged[n]),
                }
                for n in range(len(gallery))
            ]
        rows.sort(key=lambda row: -float(str(row["cosine"])))
        return Outcome(
            scores=scores,
            figures=figures,
            note=f"cosine above {threshold:.3f}, which 1 % of unseen real pictures exceed; near-exact by "
            f"perceptual hash: {figures['held_out.phash_share']:.1%} of unseen real pictures",
            pairs=tuple(rows),
        )
