"""The one prior that both sides of benchmarks/prior.py train and draw with, and the proof that it is one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from benchmarks.peaks import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from crest.models.prior import Prior
    from crest.world import World
    from prior_train.data import PriorBatch
    from prior_train.stage import PriorStage

PLACE: Final = Path("out/bench/prior")
ROWS: Final = {"train": 256, "val": 8}
WORDS: Final = (8, 40)
"""Tokens of a caption, from and to; the rest of its encodings is zero."""
DROPPED: Final = 0.1
LIMIT: Final = 1e-5
"""Of the distance between both gradients, and both outputs, over their length."""
SPEC: Final[Mapping[str, Any]] = {
    "max_text_len": 77,
    "depth": 6,
    "heads": 8,
    "dim_head": 64,
    "ff_mult": 4,
    "discrete_timesteps": True,
    "saw_dropped_images": True,
}
"""What both sides build, as a PriorSpec says it; where upstream's network says nothing, its own defaults."""
SHARED: Final = ("max_text_len", "depth", "heads", "dim_head", "ff_mult")
"""What upstream's network takes by the same name."""


@dataclass(frozen=True)
class Setup:
    """What both sides train and draw with."""

    embeddings: Path
    text: bool
    """whether text encodings are read"""
    spec: Mapping[str, Any]
    batch_size: int = 64
    device: str = "cpu"

    def stage_and_world(
        self, precision: Precision, *, checkpointing: bool = False
    ) -> tuple[PriorStage, World]:
        """The stage as its config makes it, from random weights."""
        import torch

        from crest.world import open_world
        from prior_train.config import PriorTrainConfig
        from prior_train.stage import PriorStage

        torch.manual_seed(0)
        values: dict[str, Any] = {
            "run": {
                "dir": self.embeddings / "run",
                "steps": 1 << 20,
                "device": self.device,
                "precision": precision,
            },
            "data": {"embeddings": self.embeddings},
            "model": {
                "scratch": {**self.spec, "text_encodings": self.text},
                "checkpointing": checkpointing,
                "text_cond_drop_prob": DROPPED,
                "image_cond_drop_prob": DROPPED,
            },
            "optim": {"lr": 3e-4, "batch_size": self.batch_size, "clip_grad_norm": 0.5},
        }
        world = open_world(self.device, precision)
        return PriorStage(PriorTrainConfig.model_validate(values)), world

    def batch(self) -> PriorBatch:
        """What the stage reads first."""
        stage, world = self.stage_and_world("fp32")
        return next(iter(stage.batches("train", world, 0)))

    def prior(self) -> Prior:
        """Ours, with random weights."""
        model: Prior = cast("Any", self.stage_and_world("fp32")[0].model())
        return model


@functools.cache
def whole(text: bool) -> Setup:
    """Random unit vectors and text encodings; made once."""
    return Setup(random_embeddings(PLACE, 512, SPEC["max_text_len"]), text, SPEC)


def random_embeddings(place: Path, dim: int, tokens: int) -> Path:
    """A folder of unit vectors and text encodings (D = K = dim), the same every time."""
    import torch
    import torch.nn.functional as F

    from crest.embeddings import EmbeddingShard, finish_embeddings, write_embedding_shard

    folder = place / f"embeddings-{dim}-{tokens}"
    if (folder / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for split, count in ROWS.items():
        image, text = F.normalize(torch.randn(2, count, dim, generator=draw), dim=-1)
        lengths = torch.randint(*WORDS, (count, 1), generator=draw).clamp(max=tokens)
        words = torch.randn(count, tokens, dim, generator=draw) * (torch.arange(tokens) < lengths)[..., None]
        shard = EmbeddingShard([f"{split}{number}" for number in range(count)], image, text, words)
        write_embedding_shard(folder / f"{split}-000000.safetensors", shard)
    finish_embeddings(folder, ROWS, {"clip": "0" * 16, "shards": "0" * 16})
    return folder


def upstream_prior(setup: Setup, **settings: Any) -> Any:
    """dalle2_pytorch.DiffusionPrior around the network of the same spec."""
    import torch
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    from crest.embeddings import read_embeddings

    torch.manual_seed(0)
    dim = read_embeddings(setup.embeddings, "val", encodings=False).image_embed.shape[1]
    return DiffusionPrior(
        DiffusionPriorNetwork(dim=dim, num_timesteps=1000, **{name: setup.spec[name] for name in SHARED}),
        image_embed_dim=dim,
        timesteps=1000,
        condition_on_text_encodings=setup.text,
        text_cond_drop_prob=DROPPED,
        image_cond_drop_prob=DROPPED,
        **settings,
    )


def same_weights(setup: Setup) -> tuple[Prior, Any, PriorBatch]:
    """Our prior, upstream's with the same weights, and a batch."""
    ours, theirs = setup.prior(), upstream_prior(setup)
    ours.net.load_state_dict(theirs.net.state_dict())
    return ours, theirs, setup.batch()


def apart(found: Tensor, wanted: Tensor, what: str) -> float:
    """Distance of two results over the length of the wanted one.

    Raises:
        AssertionError: it is more than LIMIT.
    """
    distance = float((found - wanted).norm() / wanted.norm())
    assert distance <= LIMIT, f"{what} differ by {distance:.1e} of their length"
    print(f"prior: {what} differ by {distance:.1e} of their length", file=sys.stderr)
    return distance
