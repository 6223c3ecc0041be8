"""Embeddings that a prior can learn in seconds: six kinds of logo, turned away from their captions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crest.embeddings import EmbeddingShard, finish_embeddings, write_embedding_shard
from prior_train.config import PriorTrainConfig
from prior_train.stage import PriorStage

D, K, L = 16, 10, 6
SPEC: dict[str, Any] = {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20}


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., Path]:
    """Call with a folder's name and what is to be unusual about it."""

    def write(
        name: str = "embeddings",
        *,
        clip: str = "c" * 16,
        dim: int = D,
        encodings: bool = True,
        views: int = 0,
        width: int = K,
    ) -> Path:
        folder, draw = tmp_path / name, torch.Generator().manual_seed(5)
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=draw)).Q
        prototypes = F.normalize(torch.randn(6, dim, generator=draw), dim=1)
        counts = {"train": 64, "val": 12}
        for split, count in counts.items():
            kinds = prototypes[torch.arange(count) % len(prototypes)]
            text, image = (
                F.normalize(kinds + 0.1 * torch.randn(count, dim, generator=draw), dim=1) for _ in range(2)
            )
            words = torch.randn(count, L, width, generator=draw)
            words[::2, 3:] = 0
            further = F.normalize(torch.randn(count, views, dim, generator=draw), dim=2) if views else None
            ids = [f"{split}{row:02d}" for row in range(count)]
            if not encodings:
                words = torch.empty(count, 0, 0)
            shard = EmbeddingShard(ids, image @ turn, text, words, further)
            write_embedding_shard(folder / f"{split}-000000.safetensors", shard)
        finish_embeddings(folder, counts, {"clip": clip, "shards": "5" * 16})
        return folder

    return write


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Call with embeddings and changes, `section__field=value`: a whole config."""

    def build(embeddings: Path, **changes: Any) -> dict[str, Any]:
        run = {"dir": tmp_path / "run", "steps": 4, "seed": 1, "device": "cpu", "precision": "fp32",
               "log_every": 1, "validate_every": 2, "save_every": 2}  # fmt: skip
        values: dict[str, Any] = {
            "run": run,
            "data": {"embeddings": embeddings},
            "model": {"scratch": SPEC},
            "optim": {"lr": 0.002, "ema_decay": 0.5, "batch_size": 16},
        }
        for name, value in changes.items():
            section, _, field = name.partition("__")
            values[section] = {**values[section], field: value}
        return values

    return build


@pytest.fixture
def staged(
    embed: Callable[..., Path], configured: Callable[..., dict[str, Any]]
) -> Callable[..., PriorStage]:
    """Call with changes: a stage on the plain embeddings, or on those given."""

    def build(embeddings: Path | None = None, **changes: Any) -> PriorStage:
        values = configured(embeddings or embed(), **changes)
        return PriorStage(PriorTrainConfig.model_validate_json(json.dumps(values, default=str)))

    return build
