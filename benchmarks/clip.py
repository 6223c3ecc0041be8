"""Seconds per CLIP training step and peak memory, ours in each mode and those of open_clip's own script.

One architecture, ViT-B-32 at 224 px, batches of 32: the smallest that people fine-tune, and a round takes
seconds on two cores. Both sides compute in bf16 and read the same drawn logos (benchmarks/clip_pairs.py),
the script's augmentation on both sides where pictures are decoded or cut anew each step (`full`). The
script's step is its own code at its best setting (benchmarks/clip_upstream.py says why it is stepped in our
process).

`lit` and `top_k` stand against the script as it is mostly used, training everything, as the goals are
worded; `lit_locked` and `top_k_locked` against the script with what it can lock locked (`--lock-image`; it
cannot lock the text tower of this architecture). It has nothing like `features`. What a mode keeps is
computed before the clock starts, and how long that took is printed: it is paid once a run.
`data` times the batches alone: its seconds over those of `full` are the data's share of a step.
`gradcache_memory` compares our own step with the whole batch at once ("upstream" in its row) with the same
batch in eight chunks. `two_pairs`, the same batch in chunks of two, is what program, weights, gradients and
averages take whatever the batch is; what lies above it is the batch's own.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.clip_pairs import PLACE, drawn
from benchmarks.clip_upstream import BATCH_SIZE, MODEL, script_batches, script_flags, script_step
from benchmarks.harness import Case, Step

if TYPE_CHECKING:
    from clip_train.stage import ClipStage
    from crest.world import World

PAIRS: Final = 256
TOP_K: Final = 3
"""Blocks of each tower that top_k trains."""
ROUNDS: Final = 5
FEATURE_STEPS: Final = 100
"""Steps of features within a round: one is over too soon to be timed."""
MEMORY_MODEL: Final = "ViT-S-32-alt"
MEMORY_BATCH, MEMORY_CHUNKS = 256, 8
LOCKED: Final = {
    "lit": ("--lock-image",),
    # its last group is the projection
    "top_k": ("--lock-image", "--lock-image-unlocked-groups", str(TOP_K + 1)),
}
"""Mode -> the flags of the script that lock most of what it locks; its `--lock-text` fails on OpenCLIP's own
text towers, which have no such method, so that one trains as a whole."""


def cases() -> list[Case]:
    """Each mode, what a batch costs, memory, and embedding (benchmarks/clip_embed.py) where it is there."""
    whole: Callable[[], Step] = partial(_script, ())
    made = [
        Case("full", {"upstream": whole, "crest": partial(crest_step, "full")}, rounds=ROUNDS),
        *(
            Case(mode, {"upstream": whole, "crest": partial(crest_step, mode)}, memory=False, rounds=ROUNDS)
            for mode in LOCKED
        ),
        *(
            Case(
                f"{mode}_locked",
                {"upstream": partial(_script, flags), "crest": partial(crest_step, mode)},
                rounds=ROUNDS,
            )
            for mode, flags in LOCKED.items()
        ),
        Case(
            "features",
            {"upstream": whole, "crest": partial(crest_step, "features")},
            rounds=ROUNDS,
            repeats={"crest": FEATURE_STEPS},
        ),
        Case(
            "data",
            {"upstream": lambda: script_batches(_flags(())), "crest": crest_batches},
            memory=False,
            rounds=ROUNDS,
            repeats={"upstream": 3, "crest": 10},
        ),
        Case(
            "gradcache_memory",
            {
                "upstream": partial(_memory_step, 1),
                "crest": partial(_memory_step, MEMORY_CHUNKS),
                "two_pairs": partial(_memory_step, MEMORY_BATCH // 2),
                "open_clip": lambda: script_step(_memory_flags()),
            },
            rounds=1,
        ),
    ]
    if find_spec("benchmarks.clip_embed") is not None:
        made += import_module("benchmarks.clip_embed").cases()
    return made


def _flags(further: tuple[str, ...]) -> list[str]:
    return script_flags(drawn(PAIRS), further=further)


def _memory_flags() -> list[str]:
    return script_flags(drawn(2 * MEMORY_BATCH), model=MEMORY_MODEL, batch_size=MEMORY_BATCH)


def _script(further: tuple[str, ...]) -> Step:
    return script_step(_flags(further))


def _memory_step(chunks: int) -> Step:
    return crest_step(
        "full",
        model=MEMORY_MODEL,
        batch_size=MEMORY_BATCH,
        device_batch_size=MEMORY_BATCH // chunks,
        pairs=2 * MEMORY_BATCH,
    )


def random_start(model: str) -> Path:
    """A run folder of random weights, for the modes that start from weights; made once."""
    import torch

    from crest.checkpoint import CARD, export_weights
    from crest.models.clip import KIND, ClipModel, ClipSpec

    folder = PLACE / "start" / model
    if not (folder / CARD).exists():
        torch.manual_seed(0)
        clip = ClipModel(ClipSpec(architecture=model))
        folder.mkdir(parents=True, exist_ok=True)
        export_weights(folder, clip, {"kind": KIND, "spec": clip.spec.model_dump(mode="json"), "parents": {}})
    return folder


def crest_stage(
    mode: str,
    *,
    model: str = MODEL,
    batch_size: int = BATCH_SIZE,
    device_batch_size: int | None = None,
    pairs: int = PAIRS,
    device: str = "cpu",
) -> tuple[ClipStage, World]:
    """The stage of one mode as its config makes it, activations kept anew."""
    from clip_train.config import ClipTrainConfig
    from clip_train.stage import ClipStage
    from crest.world import open_world

    shards = drawn(pairs).shards
    values: dict[str, Any] = {
        "run": {"dir": PLACE / "run", "steps": 1 << 20, "device": device, "precision": "auto"},
        "data": {"shards": shards, "augment": "resized_crop", "noise": 0.0},
        "model": {"start": str(random_start(model)), "mode": mode, "top_k": TOP_K},
        "optim": {"batch_size": batch_size, "device_batch_size": device_batch_size, "warmup_steps": 10},
    }
    shutil.rmtree(shards.parent / "activations", ignore_errors=True)
    world = open_world(device, "auto")
    start = time.perf_counter()
    stage = ClipStage(ClipTrainConfig.model_validate(values), world)
    if mode in ("features", "lit", "top_k"):
        taken = time.perf_counter() - start
        print(f"{mode}: model built and activations of {pairs} pairs kept in {taken:.1f} s", file=sys.stderr)
    return stage, world


def crest_step(mode: str, **settings: Any) -> Step:
    """A step in one mode.

    Args:
        mode: of clip_train.
        settings: as for `crest_stage`.
    """
    return step_of(*crest_stage(mode, **settings))


def step_of(stage: ClipStage, world: World) -> Step:
    """A step as crest.loop.fit makes it: batch, forward, backward, clipping, AdamW, averaged weights."""
    import torch

    from crest.checkpoint import State
    from crest.ema import Ema
    from crest.optimizers import build_optimizer
    from crest.train_step import Trained, train_step

    plain = stage.model().to(world.device)
    run, optim = stage.config.run, stage.optim
    state = State(0, plain, Ema(plain, optim.ema_decay), build_optimizer(plain, optim))
    model, optimizer = world.prepare(plain, state.optimizer)
    batches = stage.batches("train", world, 0)
    model.train()
    trained = Trained(stage, state, model, optimizer, world, run, optim)
    fast = "high" if world.device.type == "cuda" else "medium"  # what open_world() sets

    def step() -> None:
        torch.set_float32_matmul_precision(fast)
        train_step(trained, batches)

    return step


def crest_batches() -> Step:
    """One batch of `full`, without what is done with it."""
    stage, world = crest_stage("full")
    batches: Iterator[object] = stage.batches("train", world, 0)
    return lambda: next(batches)
