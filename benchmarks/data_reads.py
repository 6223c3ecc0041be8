"""Training reads: open_clip's transform of encoded pictures against the cached levels that clip_train reads.

`read_crop` compares what each does for variety (a random box against a random square of a picture that is 8/7
as large), `read_resized_crop` the same augmentation, a box of drawn area and aspect brought to the model's
size. One thread each, 224 px, batches of 64, normalised; the pictures are drawn logos of 256 to 800 px, seven
of ten JPEG, the others PNG, half of those with alpha. Reading encoded bytes from the disk is not counted, and
neither is decoding once into the cache.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Case, Step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from crest.augment import Normal
    from crest.world import Draw

    Cut = Callable[[NDArray[np.uint8], NDArray[np.int64], Draw, int, Normal], Tensor]

SIDE_PX = 224
BATCH = 64
PICTURES = 128
ROUNDS = 9


def cases() -> list[Case]:
    """Crop and resized crop."""
    from crest.augment import random_crop, random_resized_crop

    return [
        Case(name, {"upstream": _encoded, "crest": _reader(cut)}, memory=False, rounds=ROUNDS)
        for name, cut in (("read_crop", random_crop), ("read_resized_crop", random_resized_crop))
    ]


@cache
def _pictures() -> list[bytes]:
    """Encoded logos."""
    import numpy as np

    from benchmarks.data_duplicates import family

    sides = np.random.default_rng(1).integers(256, 801, PICTURES)
    encoded = []
    for number, side_px in enumerate(sides.tolist()):
        is_jpeg = number % 10 < 7
        design = family(number)[0]
        has_alpha = not is_jpeg and number % 2 == 1
        picture = design.draw_cutout(side_px) if has_alpha else design.draw(side_px)
        stream = io.BytesIO()
        picture.save(stream, "JPEG" if is_jpeg else "PNG")
        encoded.append(stream.getvalue())
    return encoded


def _encoded() -> Step:
    """One picture after the other: decode, RandomResizedCrop (bicubic), ToTensor, Normalize; then a batch."""
    import torch
    from open_clip.transform import image_transform
    from PIL import Image

    transform = image_transform(SIDE_PX, is_train=True)
    encoded = _pictures()

    def step() -> object:
        with _one_thread():
            for first in range(0, PICTURES, BATCH):
                chosen = encoded[first : first + BATCH]
                batch = torch.stack([transform(Image.open(io.BytesIO(one))) for one in chosen])
        return batch

    return step


def _reader(cut: Cut) -> Callable[[], Step]:
    """The cached path: open_pictures, a cut from Draw, normalised in one go."""

    def build() -> Step:
        import numpy as np
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        from crest.augment import Normal, cached_px
        from crest.pixels import open_pictures
        from crest.shards import Sample, write_shards
        from crest.world import Draw, keep_freed_memory

        with tempfile.TemporaryDirectory() as folder:
            samples = [
                Sample(str(n), one, "x", {}, "png" if one[:1] == b"\x89" else "jpg")
                for n, one in enumerate(_pictures())
            ]
            shards = Path(folder) / "shards"
            write_shards(shards, {"train": samples}, samples_per_shard=PICTURES, parents={})
            # the map stays open when its file is removed
            pixels = open_pictures(shards, "train", cached_px(SIDE_PX)).pixels
        keep_freed_memory()  # as open_world() does for every training on a CPU
        normal = Normal.of(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        numbers = np.random.default_rng(0).permutation(PICTURES)
        steps = iter(range(1 << 30))

        def step() -> object:
            with _one_thread():
                for first in range(0, PICTURES, BATCH):
                    draw = Draw(0, next(steps), 0, BATCH)
                    batch = cut(pixels, numbers[first : first + BATCH], draw, SIDE_PX, normal)
            return batch

        return step

    return build


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
