"""Both sides of the prior's benchmark are one network with one gradient, learn, and draw the same."""

from typing import Any

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import CausalTransformer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from benchmarks import prior, prior_sampling
from benchmarks.__main__ import cases_of
from benchmarks.peaks import gflop
from benchmarks.prior_setup import LIMIT, SHARED, SPEC, Setup, random_embeddings, upstream_prior
from crest.models.prior import Prior
from crest.models.prior_spec import PriorSpec

SMALL = {"max_text_len": 9, "depth": 2, "heads": 2, "dim_head": 8, "ff_mult": 2}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "text"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The same with a thirty-second of the width, on nine tokens."""
    folder = random_embeddings(tmp_path_factory.mktemp("prior"), 16, 9)
    return Setup(folder, request.param, {**SPEC, **SMALL}, batch_size=8)


def test_both_sides_have_the_same_weights_and_the_same_gradient(setup: Setup) -> None:
    assert 0 < prior.proof(setup) <= LIMIT
    ours, theirs = (
        {name: weight.shape for name, weight in network.named_parameters()}
        for network in (setup.prior().net, upstream_prior(setup).net)
    )
    assert ours == theirs


def test_a_gradient_that_is_not_the_same_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prior._ours_predicts
    monkeypatch.setattr(prior, "_ours_predicts", lambda *told: whole(*told) * 1.001)
    with pytest.raises(AssertionError, match=r"gradients differ by .* of their length"):
        prior.proof(setup)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_learn(setup: Setup, precision: prior.Precision) -> None:
    step: Any = prior.crest_step(setup, precision)
    weights = step().model.net.learned_query.detach().clone()
    state = step()
    assert state.step == 2
    assert not torch.equal(state.model.net.learned_query, weights)
    theirs: Any = prior.upstream_step(setup)
    assert all(0 < theirs() < 100 for _ in range(2))


def test_a_guided_step_predicts_the_same(setup: Setup) -> None:
    assert 0 < prior_sampling.sample_proof(setup) <= LIMIT
    assert 3 * gflop(prior_sampling.crest_sample_step(setup)) < gflop(
        prior_sampling.upstream_sample_step(setup)
    )


def test_both_sides_draw_as_many_embeddings_in_as_many_steps(setup: Setup) -> None:
    asked: list[object] = []

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, CausalTransformer):
            asked.append(module)

    ours, theirs = prior_sampling.crest_draw(setup), prior_sampling.upstream_draw(setup)
    with register_module_forward_hook(count):
        drawn = [ours(), theirs()]
    assert len(asked) == 2 * prior_sampling.STEPS  # told and untold, by theirs; ours runs its parts
    for embeds in drawn:
        assert isinstance(embeds, torch.Tensor)
        assert embeds.shape == (prior_sampling.DRAWN, 16)


def test_upstreams_batch_is_left_as_it_was(setup: Setup) -> None:
    step = prior.upstream_step(setup)
    first: Any = step()
    assert all(float(step()) < 5 * first for _ in range(2))  # scaled in place, it would grow by the square


def test_the_whole_setup_is_the_one_that_speed_is_claimed_for() -> None:
    network = Prior(PriorSpec.model_validate({**SPEC, "image_embed_dim": 512, "text_width": 512})).net
    weights = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert weights == pytest.approx(23.2e6, rel=0.002)
    assert set(SHARED) < set(SPEC)
    names = [case.name for case in cases_of("prior")]
    assert {"prior_plain_exact", "prior_text_exact", "prior_text_bf16", "prior_sample_step"} <= set(names)
