"""Whether what is drawn comes nearer to single training pictures than unseen real pictures do.

Refuses to prove anything: it says when a run on few pictures had better stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.errors import ConfigError
from decoder_train.config import StopConfig

if TYPE_CHECKING:
    from crest.models.clip import ClipEncoder
    from crest.pixels import Pictures

LOOK_PX: Final = 16
"""Side at which pixels are compared: a copy that is shifted by a pixel is still one."""
NEIGHBOURS: Final = 50
"""Training pictures whose distance says how far a picture of this kind usually is."""
LEAST_REAL: Final = 20
"""With fewer held-out pictures, training pictures among one another stand in for more."""
AT_ONCE: Final = 256


def relative_distance(features: Tensor, train: Tensor, own: Tensor | None = None) -> Tensor:
    """How far each picture is from its nearest training picture, as a share of how far from its 50 nearest.

    Near 1 for a picture that is like many (a blurred one too, whose plain distance is small to all of them),
    near 0 for a copy of one. Source: Carlini et al. 2023 (arXiv 2301.13188), without alpha.

    Args:
        features: (N, F); train: (M, F), M > 1.
        own: (N,) number of each picture among the training pictures, left out; None where it is none.
    Returns:
        (N,) float32.
    """
    distance = torch.cdist(features.float(), train.float())
    if own is not None:
        distance = distance.scatter(1, own[:, None], torch.inf)
    count = min(NEIGHBOURS, len(train) - (own is not None))
    nearest = distance.topk(count, dim=1, largest=False).values
    return nearest[:, 0] / nearest.mean(dim=1).clamp(min=1e-12)


def looked_at(images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] as low-resolution pixels (N, F)."""
    small = F.interpolate(images.float(), (LOOK_PX, LOOK_PX), mode="bilinear", antialias=True)
    return small.flatten(1)


class CopyWatch:
    """Compares drawings with the training pictures of one run.

    Args:
        train: (M, 3, H, W) in [0, 1]; held_out: (N, 3, H, W), of the same world.
        stop: what counts.
        reference: a CLIP in whose space they are compared too; on `device`.
    """

    def __init__(
        self, train: Tensor, held_out: Tensor, stop: StopConfig, reference: ClipEncoder | None = None
    ) -> None:
        self._stop, self._reference = stop, reference
        self._train = self._features(train)
        self._real: dict[str, float] = {}
        for space, features in self._features(held_out).items():
            real = relative_distance(features, self._train[space])
            if len(real) < LEAST_REAL and len(train) > 2:
                known = self._train[space]
                real = torch.cat([real, relative_distance(known, known, torch.arange(len(known)))])
            self._real[space] = float(real.quantile(stop.quantile))

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        parts = torch.split(images, AT_ONCE)
        found = {"pixels": torch.cat([looked_at(part) for part in parts])}
        if self._reference is not None:
            found["clip"] = torch.cat([self._reference.encode_image(part).cpu() for part in parts])
        return found

    def figures(self, drawn: Tensor) -> dict[str, float]:
        """Median relative distance of drawings (N, 3, H, W), and the quantile of real pictures, by space."""
        figures: dict[str, float] = {}
        for space, features in self._features(drawn.cpu()).items():
            figures[f"copy_{space}"] = float(relative_distance(features, self._train[space]).median())
            figures[f"copy_{space}_real"] = self._real[space]
        return figures

    def reason(self, figures: Mapping[str, float]) -> str:
        """Why to stop, by what `figures` gave; empty where nothing speaks for it."""
        for space in self._real:
            drawn, real = figures[f"copy_{space}"], figures[f"copy_{space}_real"]
            if drawn < real:
                return (
                    f"drawings copy: half of them are within {drawn:.3f} of one training picture "
                    f"(nearest over usual distance, in {space}), nearer than all but "
                    f"{self._stop.quantile:.0%} of real pictures ({real:.3f})"
                )
        return ""


def open_watch(
    stop: StopConfig | None, train: Pictures, held_out: Pictures, unet_number: int, device: str
) -> CopyWatch | None:
    """What a run's config asks for; None where it asks for nothing.

    Raises:
        ConfigError: it is asked of an upsampler, or nothing is held out.
    """
    if stop is None or not stop.drawings:
        return None
    if set(train.ids) == set(held_out.ids):
        raise ConfigError(
            f"stop.drawings: found {stop.drawings} with data.validate_split train, expected 0: without "
            "held-out pictures nothing says how near is too near; hold some out, or set it to 0."
        )
    if unet_number > 1:
        raise ConfigError(
            f"stop.drawings: found {stop.drawings}, expected 0 for an upsampler, whose drawings resemble "
            "what they enlarge; change it."
        )
    clip = None
    if stop.reference is not None:
        from crest.models.clip import load_clip
        from crest.world import pick_device

        clip = load_clip(stop.reference, pick_device(device))
    images = (torch.from_numpy(pictures.floats(np.arange(len(pictures)))) for pictures in (train, held_out))
    return CopyWatch(next(images), next(images), stop, clip)
