"""Seconds per training step and peak memory of the demo's decoder and prior, against dalle2-pytorch's own.

`decoder` and `prior` compare what a user gets: our automatic precision against upstream in fp32, its default.
The cases with a precision in their name compare the same arithmetic on both sides.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Case, Step
from benchmarks.steps import (
    Recipe,
    decoder_recipe,
    our_decoder,
    our_prior,
    prior_recipe,
    upstream_decoder,
    upstream_prior,
)

Build = Callable[[Recipe, str], Step]


def cases() -> list[Case]:
    """Decoder and prior, as shipped and at equal precision; bf16 only where the processor is fast at it."""
    import torch

    from crest.world import fast_bf16, pick_precision

    cpu = torch.device("cpu")
    auto = pick_precision("auto", cpu)
    equal = ("fp32", "bf16") if fast_bf16(cpu) else ("fp32",)
    made = []
    stages: tuple[tuple[str, Recipe, Build, Build], ...] = (
        ("decoder", decoder_recipe(), upstream_decoder, our_decoder),
        ("prior", prior_recipe(), upstream_prior, our_prior),
    )
    for name, recipe, upstream, ours in stages:
        made.append(_case(name, recipe, (upstream, "fp32"), (ours, auto)))
        for precision in equal:
            made.append(_case(f"{name}_{precision}", recipe, (upstream, precision), (ours, precision)))
    return made


def _case(name: str, recipe: Recipe, upstream: tuple[Build, str], ours: tuple[Build, str]) -> Case:
    def builder(side: tuple[Build, str]) -> Callable[[], Step]:
        build, precision = side
        return lambda: build(recipe, precision)

    return Case(name, {"upstream": builder(upstream), "crest": builder(ours)})
