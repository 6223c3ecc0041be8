"""Shards that the tests of this folder share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crest.records import Manifest, Split
from crest.shards import Sample, png_bytes, write_shards

Picture = Image.Image


@pytest.fixture
def pack(tmp_path: Path, logos: list[Picture]) -> Callable[..., Manifest]:
    """Call with a count of training logos: shards at tmp_path/data/shards."""

    def write(count: int = 5, folder: Path = tmp_path / "data" / "shards", **settings: Any) -> Manifest:
        samples = [
            Sample(f"{index:016x}", png_bytes(logo), f'A "crest" n° {index}', {"group": f"club {index // 2}"})
            for index, logo in enumerate(logos)
        ]
        splits: dict[Split, Any] = {"train": samples[:count], "val": samples[count : count + 2]}
        return write_shards(
            folder, splits, **{"samples_per_shard": 2, "parents": {"records": "abc"}, **settings}
        )

    return write
