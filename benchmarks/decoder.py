"""Seconds per decoder step and peak memory, against dalle2-pytorch's own DecoderTrainer and Decoder.sample.

One architecture on both sides: dim 64, multiples 1, 2 and 4, two blocks a level, attention in the middle,
64 px, batches of 8, conditioned on image embeddings of 512 numbers: 15.3 million weights, no text. Both
predict epsilon, clip gradients, take AdamW and average the weights at every step. Our step is that of
`crest.loop.fit` over `decoder_train`'s own stage, its reading of pictures and embeddings included; upstream's
is given the same batches ready.

`decoder_exact` computes in fp32 on both sides; before it is timed, both gradients of one batch are compared,
and more than 1e-5 between them stops the benchmark. `decoder_bf16` is ours in bf16 and compiled, which takes
some minutes before the first step and a C++ compiler; `decoder_bf16_eager` is the same without. Upstream
stays as it trains by default, in fp32. `decoder_sample_step` is a whole drawing of four pictures in four
guided DDIM steps; ours in bf16, as `python -m crest` draws where the processor is fast at it.

`decoder_data_share` times a step in bf16 ("step") and our reading of its batch alone: their ratio is how many
times longer the step is, 50 or more being 2 % or less. "clip" is what upstream's loop adds to a step where it
is not given embeddings: CLIP ViT-B/32 (random weights) on the same eight pictures.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.clip_pairs import PLACE as PAIRS_PLACE
from benchmarks.clip_pairs import drawn
from benchmarks.harness import Case, Figures, Step
from benchmarks.peaks import Precision, share_of_peak

if TYPE_CHECKING:
    from crest.world import World
    from decoder_train.data import DecoderBatch
    from decoder_train.stage import DecoderStage

PLACE: Final = PAIRS_PLACE.parent / "decoder"
PICTURES: Final = 256
EMBED_DIM: Final = 512
ROUNDS: Final = 7
DRAWN, STEPS, COND_SCALE = 4, 4, 2.0
"""Pictures, denoising steps and guidance of a drawing."""
SPEC: Final[Mapping[str, Any]] = {
    "side_px": 64,
    "text_width": None,
    "max_text_len": 256,
    "dim": 64,
    "dim_mults": [1, 2, 4],
    "num_resnet_blocks": 2,
    "cond_dim": 64,
    "self_attn": [False, False, False],
    "attn_heads": 16,
    "memory_efficient": False,
    "init_cross_embed": True,
    "image_embed_scale": 1.0,
    "prediction": "epsilon",
}
"""What both sides build, as a DecoderSpec says it; where upstream's Unet says nothing, its own defaults."""
SHARED: Final = (
    "dim",
    "dim_mults",
    "num_resnet_blocks",
    "cond_dim",
    "self_attn",
    "attn_heads",
    "memory_efficient",
    "init_cross_embed",
)
"""What upstream's Unet takes by the same name."""


@dataclass(frozen=True)
class Setup:
    """What both sides train and draw with."""

    shards: Path
    embeddings: Path
    spec: Mapping[str, Any]
    """of the network, but for the width of its embeddings"""
    batch_size: int = 8
    device: str = "cpu"

    def stage_and_world(self, precision: Precision, *, compiled: bool = False) -> tuple[DecoderStage, World]:
        """The stage as its config makes it, from random weights."""
        from crest.world import open_world
        from decoder_train.config import DecoderTrainConfig
        from decoder_train.stage import DecoderStage

        values: dict[str, Any] = {
            "run": {"dir": PLACE / "run", "steps": 1 << 20, "device": self.device, "precision": precision},
            "data": {"shards": self.shards, "embeddings": self.embeddings},
            "model": {"scratch": dict(self.spec), "compiled": compiled},
            "optim": {"lr": 1e-4, "batch_size": self.batch_size, "clip_grad_norm": 0.5},
        }
        world = open_world(self.device, precision)
        return DecoderStage(DecoderTrainConfig.model_validate(values)), world

    def ready_batches(self, count: int = 4) -> list[DecoderBatch]:
        """What the stage reads first, in memory."""
        stage, world = self.stage_and_world("fp32")
        return list(itertools.islice(stage.batches("train", world, 0), count))


def cases() -> list[Case]:
    """Training in both arithmetics, drawing, and what reading takes of a step."""
    upstream = {"upstream": lambda: upstream_step(whole())}

    def ours(precision: Precision, **settings: bool) -> Step:
        return crest_step(whole(), precision, **settings)

    def share(precision: Precision) -> Figures:
        return share_of_peak("convolution", precision)

    return [
        Case(
            "decoder_exact",
            {**upstream, "crest": partial(ours, "fp32", proven=True)},
            rounds=ROUNDS,
            figures=share("fp32"),
        ),
        Case(
            "decoder_bf16",
            {**upstream, "crest": partial(ours, "bf16", compiled=True)},
            rounds=ROUNDS,
            figures=share("bf16"),
        ),
        Case(
            "decoder_bf16_eager",
            {**upstream, "crest": partial(ours, "bf16")},
            rounds=ROUNDS,
            figures=share("bf16"),
        ),
        Case(
            "decoder_sample_step",
            {"upstream": lambda: upstream_drawing(whole()), "crest": lambda: crest_drawing(whole(), "bf16")},
            rounds=ROUNDS,
            figures=share("bf16"),
        ),
        Case(
            "decoder_data_share",
            {
                "step": partial(ours, "bf16"),
                "crest": lambda: crest_batches(whole()),
                "clip": lambda: clip_in_the_loop(whole()),
            },
            upstream="step",
            memory=False,
            rounds=ROUNDS,
            repeats={"crest": 10},
            figures=shares_of_a_step,
        ),
    ]


def shares_of_a_step(steps: Mapping[str, Step], times: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
    """What reading takes of our step, and what CLIP in the loop would take of upstream's way to feed it."""
    step, read, clip = (statistics.median(times[name]) for name in ("step", "crest", "clip"))
    return {"data_share": round(read / step, 5), "clip_share": round(clip / (step + clip), 4)}


@functools.cache
def whole() -> Setup:
    """Drawn logos, with random unit vectors in the place of their embeddings; made once."""
    shards = drawn(PICTURES).shards
    return Setup(shards, random_embeddings(shards, PLACE, EMBED_DIM), SPEC)


def random_embeddings(shards: Path, place: Path, dim: int) -> Path:
    """A folder of unit vectors (D = dim) that belong to the shards, with text encodings of one token."""
    import torch

    from crest.embeddings import EmbeddingShard, finish_embeddings, write_embedding_shard
    from crest.records import SPLITS, read_manifest
    from crest.shards import read_samples

    manifest = read_manifest(shards, "shards", "python -m benchmarks decoder")
    folder = place / f"embeddings-{manifest.hash}-{dim}"
    if (folder / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    counts: dict[str, int] = {}
    for split in SPLITS:
        ids = [sample.id for sample in read_samples(shards, split)] if manifest.counts.get(split) else []
        if ids:
            image, text = torch.randn(2, len(ids), dim, generator=draw)
            shard = EmbeddingShard(ids, image, text, torch.ones(len(ids), 1, 8))
            write_embedding_shard(folder / f"{split}-000000.safetensors", shard)
            counts[split] = len(ids)
    finish_embeddings(folder, counts, {"clip": "0" * 16, "shards": manifest.hash})
    return folder


def crest_step(setup: Setup, precision: Precision, *, compiled: bool = False, proven: bool = False) -> Step:
    """A step as crest.loop.fit makes it: batch, forward, backward, clipping, AdamW, averaged weights.

    Args:
        setup: what is trained.
        precision: of the forward pass.
        compiled: whether the network is compiled, at its first step.
        proven: whether the gradient is compared with upstream's first.
    """
    import torch

    from crest.checkpoint import State
    from crest.ema import Ema
    from crest.optimizers import build_optimizer
    from crest.train_step import Trained, train_step

    if proven:
        from benchmarks.decoder_proof import proof

        print(f"decoder: gradients differ by {proof(setup):.1e} of their length", file=sys.stderr)
    stage, world = setup.stage_and_world(precision, compiled=compiled)
    plain, run, optim = stage.model(), stage.config.run, stage.config.optim
    state = State(0, plain, Ema(plain, optim.ema_decay), build_optimizer(plain, optim))
    model, optimizer = world.prepare(plain, state.optimizer)
    batches = stage.batches("train", world, 0)
    model.train()
    trained = Trained(stage, state, model, optimizer, world, run, optim)

    def step() -> object:
        torch.set_float32_matmul_precision("medium")  # what open_world() sets
        train_step(trained, batches)
        return state

    return step


def crest_batches(setup: Setup) -> Step:
    """One batch, without what is done with it."""
    stage, world = setup.stage_and_world("fp32")
    batches = stage.batches("train", world, 0)
    return lambda: next(batches)


def upstream_decoder(setup: Setup, **settings: Any) -> Any:
    """dalle2_pytorch.Decoder around the U-Net of the same spec.

    Args:
        setup: what is trained.
        settings: of its Decoder.
    """
    import torch
    from dalle2_pytorch import Decoder as UpstreamDecoder
    from dalle2_pytorch import Unet

    from crest.embeddings import read_embeddings

    spec = setup.spec
    torch.manual_seed(0)
    unet = Unet(
        image_embed_dim=read_embeddings(setup.embeddings, "val", encodings=False).image_embed.shape[1],
        cond_on_image_embeds=True,
        **{name: spec[name] for name in SHARED},
    )
    return UpstreamDecoder(
        unet=unet,
        image_size=spec["side_px"],
        timesteps=1000,
        beta_schedule="cosine",
        learned_variance=False,
        **{"image_cond_drop_prob": 0.1, "text_cond_drop_prob": 0.1, **settings},
    )


def upstream_step(setup: Setup) -> Step:
    """A step of DecoderTrainer: forward, backward, clipping, AdamW, averaged weights at every step."""
    import torch
    from accelerate import Accelerator
    from dalle2_pytorch.trainer import DecoderTrainer

    trainer: Any = DecoderTrainer(
        upstream_decoder(setup),
        accelerator=Accelerator(cpu=setup.device == "cpu"),
        lr=1e-4,
        max_grad_norm=0.5,
        ema_beta=0.999,
        ema_update_every=1,
        ema_update_after_step=0,
    )
    trainer.train()
    batches = itertools.cycle(setup.ready_batches())

    def step() -> object:
        torch.set_float32_matmul_precision("highest")  # torch's default
        batch = next(batches)
        loss = trainer(batch.images, image_embed=batch.image_embed, unet_number=1)
        trainer.update(unet_number=1)
        return loss

    return step


def upstream_drawing(setup: Setup) -> Step:
    """Decoder.sample with guidance, in DDIM steps as ours."""
    import torch

    decoder = upstream_decoder(setup, sample_timesteps=STEPS)
    image_embed = setup.ready_batches(1)[0].image_embed[:DRAWN]

    def step() -> object:
        torch.set_float32_matmul_precision("highest")
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return decoder.sample(image_embed=image_embed, cond_scale=COND_SCALE)

    return step


def crest_drawing(setup: Setup, precision: Precision) -> Step:
    """`crest.models.decoder_sampling.sample_images` with guidance."""
    import torch

    from benchmarks.steps import autocast
    from crest.models.decoder_sampling import sample_images

    decoder: Any = setup.stage_and_world("fp32")[0].model().eval()
    image_embed = setup.ready_batches(1)[0].image_embed[:DRAWN]

    def step() -> object:
        torch.set_float32_matmul_precision("medium")
        with autocast(precision, setup.device):
            return sample_images(
                decoder,
                image_embed,
                None,
                seeds=range(DRAWN),
                steps=STEPS,
                cond_scale=COND_SCALE,
                sampler="ddim",
            )

    return step


def clip_in_the_loop(setup: Setup, model: str = "ViT-B-32") -> Step:
    """What upstream's decoder does with a batch first where it holds a CLIP: enlarge, normalise, embed."""
    import open_clip
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    clip = open_clip.create_model(model).eval().requires_grad_(False)
    images = setup.ready_batches(1)[0].images

    @torch.no_grad()
    def step() -> object:
        torch.set_float32_matmul_precision("highest")
        return clip.encode_image((F.interpolate(images, (224, 224)) - 0.45) / 0.27)

    return step
