"""Seconds per prior step and peak memory, against dalle2-pytorch's own DiffusionPriorTrainer and sampling.

One architecture on both sides: 512 wide, 6 layers of 8 heads of 64, 77 tokens of text, batches of 64, 23.2
million weights, x_start predicted, a tenth of texts and of noised embeddings dropped. Both clip gradients at
0.5, take AdamW and average the weights at every step. Our step is that of `crest.loop.fit` over
`prior_train`'s own stage, its reading of embeddings included; upstream's is given a batch that is ready.

`prior_plain_exact` reads no text encodings, `prior_text_exact` does; both compute in fp32, and both gradients
of one batch are compared: more than 1e-5 between them stops the benchmark. `prior_plain_bf16` and
`prior_text_bf16` are ours in bf16; upstream stays as it trains by default, in fp32. `prior_sample_step` is
one timestep of eight guided draws by text encodings in fp32, whose outputs are compared in the same way; the
text was run before, once for all timesteps. `prior_sample_whole` is a whole draw in 16 steps, text included.
`prior_checkpointing` is our step with and without `model.checkpointing`, for its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Case, Step
from benchmarks.peaks import Precision, share_of_peak
from benchmarks.prior_sampling import (
    crest_draw,
    crest_sample_step,
    sample_proof,
    upstream_draw,
    upstream_sample_step,
)
from benchmarks.prior_setup import Setup, apart, same_weights, upstream_prior, whole

if TYPE_CHECKING:
    from torch import Tensor

    from crest.models.prior import Prior
    from prior_train.data import PriorBatch

ROUNDS: Final = 7


def cases() -> list[Case]:
    """Training without and with text encodings, drawing, and what checkpointing saves."""
    text, plain = partial(whole, text=True), partial(whole, text=False)

    def training(setup: Any, precision: Precision) -> dict[str, Any]:
        return {
            "variants": {
                "upstream": lambda: upstream_step(setup()),
                "crest": lambda: crest_step(setup(), precision),
            },
            "figures": told(setup, precision, proof if precision == "fp32" else None),
            "rounds": ROUNDS,
        }

    return [
        Case("prior_plain_exact", **training(plain, "fp32")),
        Case("prior_plain_bf16", **training(plain, "bf16")),
        Case("prior_text_exact", **training(text, "fp32")),
        Case("prior_text_bf16", **training(text, "bf16")),
        Case(
            "prior_sample_step",
            {
                "upstream": lambda: upstream_sample_step(text()),
                "crest": lambda: crest_sample_step(text()),
            },
            memory=False,
            rounds=2 * ROUNDS + 1,
            repeats={"crest": 10},
            figures=told(text, "fp32", sample_proof),
        ),
        Case(
            "prior_sample_whole",
            {"upstream": lambda: upstream_draw(text()), "crest": lambda: crest_draw(text())},
            memory=False,
            rounds=3,
        ),
        Case(
            "prior_checkpointing",
            {
                "kept": lambda: crest_step(text(), "fp32"),
                "crest": lambda: crest_step(text(), "fp32", checkpointing=True),
            },
            upstream="kept",
            rounds=3,
        ),
    ]


def told(setup: Any, precision: Precision, compared: Any) -> Any:
    """Figures of a case: how far both sides are apart, then our share of the machine's peak.

    Args:
        setup: a function that gives it.
        precision: of our products.
        compared: gives the distance of both sides, or None.
    """
    share = share_of_peak("product", precision, counted=3)  # what rows without text share differs by step

    def figures(steps: Mapping[str, Step], seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
        distance = {} if compared is None else {"apart": compared(setup())}
        return {**distance, **share(steps, seconds)}

    return figures


def crest_step(setup: Setup, precision: Precision, *, checkpointing: bool = False) -> Step:
    """A step as crest.loop.fit makes it: batch, forward, backward, clipping, AdamW, averaged weights."""
    import torch

    from crest.checkpoint import State
    from crest.ema import Ema
    from crest.optimizers import build_optimizer
    from crest.train_step import Trained, train_step

    stage, world = setup.stage_and_world(precision, checkpointing=checkpointing)
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


def upstream_step(setup: Setup) -> Step:
    """A step of DiffusionPriorTrainer: forward, backward, clipping, AdamW, averaged weights at every step."""
    import torch
    from accelerate import Accelerator
    from dalle2_pytorch.trainer import DiffusionPriorTrainer

    trainer: Any = DiffusionPriorTrainer(
        upstream_prior(setup),
        accelerator=Accelerator(cpu=setup.device == "cpu"),
        lr=3e-4,
        wd=1e-2,
        max_grad_norm=0.5,
        ema_beta=0.999,
        ema_update_every=1,
        ema_update_after_step=0,
    )
    trainer.train()
    batch = setup.batch()
    conditions = {"text_embed": batch.text_embed}
    if batch.text_encodings is not None:
        conditions["text_encodings"] = batch.text_encodings

    def step() -> object:
        torch.set_float32_matmul_precision("highest")  # torch's default
        # a copy: it scales the tensor that it is given
        loss = trainer(image_embed=batch.image_embed.clone(), **conditions)
        trainer.update()
        return loss

    return step


def proof(setup: Setup) -> float:
    """Distance between both sides' gradients of one batch in fp32, over the length of upstream's.

    Raises:
        AssertionError: it is more than LIMIT.
    """
    import torch

    ours, theirs, batch = same_weights(setup)
    count = len(batch.image_embed)
    x_start = batch.image_embed * ours.scale
    draw = torch.Generator().manual_seed(0)
    t, noise = torch.arange(count) * (999 // count), torch.randn(x_start.shape, generator=draw)
    x_t = theirs.noise_scheduler.q_sample(x_start=x_start, t=t, noise=noise)
    torch.set_float32_matmul_precision("highest")
    their_loss = (_upstream_predicts(theirs.net, x_t, t, batch) - x_start).square().mean()
    wanted = _gradient(theirs.net, their_loss)
    torch.set_float32_matmul_precision("medium")
    found = _gradient(ours.net, (_ours_predicts(ours, x_t, t, batch) - x_start).square().mean())
    return apart(found, wanted, "gradients")


def _upstream_predicts(net: Any, x_t: Tensor, t: Tensor, batch: PriorBatch) -> Tensor:
    scale = x_t.shape[1] ** 0.5  # our prior scales the text's embedding too
    out: Tensor = net(x_t, t, text_embed=batch.text_embed * scale, text_encodings=batch.text_encodings)
    return out


def _ours_predicts(prior: Prior, x_t: Tensor, t: Tensor, batch: PriorBatch) -> Tensor:
    import torch

    keep = torch.ones(len(x_t), dtype=torch.bool)
    out: Tensor = prior(x_t, t, batch.text_embed, batch.text_encodings, keep, keep)
    return out


def _gradient(net: Any, loss: Tensor) -> Tensor:
    import torch

    weights = [weight for weight in net.parameters() if weight.requires_grad]
    parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
