"""The two sides of the benchmark do the same work: same batch, same number of trained weights."""

import math

import pytest
import torch

from benchmarks import steps
from benchmarks.steps import Recipe
from crest.models.decoder import Decoder, DecoderSpec
from crest.models.prior import Prior, PriorSpec

DECODER = Recipe(
    DecoderSpec(
        side_px=16, image_embed_dim=8, text_width=8, dim=8, dim_mults=(1, 2), self_attn=(False, True)
    ),
    4,
)
PRIOR = Recipe(PriorSpec(image_embed_dim=16, text_width=16, depth=1, heads=2, dim_head=8), 4)


def test_inputs_are_what_the_borders_promise() -> None:
    data = steps.inputs(4, 16, 8, 12)
    assert data.images.shape == (4, 3, 16, 16)
    assert 0 <= float(data.images.min()) <= float(data.images.max()) <= 1
    assert torch.allclose(data.image_embed.norm(dim=-1), torch.ones(4))
    used = (data.text_encodings != 0).any(dim=-1).sum(dim=1)
    assert data.text_encodings.shape == (4, steps.TOKENS, 12)
    assert all(12 <= count <= 28 for count in used.tolist())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_step_learns_from_its_batch(precision: str) -> None:
    for build, recipe in (
        (steps.our_decoder, DECODER),
        (steps.upstream_decoder, DECODER),
        (steps.our_prior, PRIOR),
        (steps.upstream_prior, PRIOR),
    ):
        step = build(recipe, precision)
        losses = [step() for _ in range(2)]
        assert all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)


def test_both_sides_train_the_same_number_of_weights() -> None:
    def trained(step: object) -> int:
        cells = step.__closure__ or ()  # type: ignore[attr-defined]
        lists = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, list)]
        return sum(weight.numel() for weights in lists for weight in weights)

    ours = sum(weight.numel() for weight in Decoder(DECODER.spec).parameters() if weight.requires_grad)
    assert trained(steps.our_decoder(DECODER, "fp32")) == ours
    assert trained(steps.upstream_decoder(DECODER, "fp32")) == ours
    ours = sum(weight.numel() for weight in Prior(PRIOR.spec).parameters() if weight.requires_grad)
    assert trained(steps.our_prior(PRIOR, "fp32")) == ours
    assert trained(steps.upstream_prior(PRIOR, "fp32")) == ours
