"""Both sides of the decoder's benchmark are one network with one gradient, learn, and draw."""

from typing import Any

import pytest
import torch

from benchmarks import decoder, decoder_proof
from benchmarks.__main__ import cases_of
from benchmarks.decoder import SPEC, Setup
from benchmarks.peaks import Precision
from crest.models.decoder import Decoder
from crest.models.decoder_spec import DecoderSpec


@pytest.fixture(scope="module")
def setup(tiny_world: Any) -> Setup:
    """The same on 16 px and an eighth of the channels, with the tiny world's embeddings."""
    small = {"side_px": 16, "dim": 8, "dim_mults": [1, 2], "self_attn": [False, False], "cond_dim": 8}
    return Setup(tiny_world.shards, tiny_world.embeddings, {**SPEC, **small}, batch_size=4)


def test_both_sides_have_the_same_weights_and_the_same_gradient(setup: Setup) -> None:
    assert 0 < decoder_proof.proof(setup) <= decoder_proof.LIMIT
    model: Any = setup.stage_and_world("fp32")[0].model()
    ours, theirs = (
        {name: weight.shape for name, weight in network.named_parameters()}
        for network in (model.unet, decoder.upstream_decoder(setup).unets[0])
    )
    assert ours == theirs


def test_a_gradient_that_is_not_the_same_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decoder_proof._our_loss
    monkeypatch.setattr(decoder_proof, "_our_loss", lambda *told: whole(*told) * 1.0001)
    with pytest.raises(AssertionError, match=r"gradients differ by 1\.0e-04 of their length"):
        decoder_proof.proof(setup)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_learn(setup: Setup, precision: Precision) -> None:
    step: Any = decoder.crest_step(setup, precision)
    step()
    state = step()
    assert state.step == 2
    assert 0 < float(state.model.unet.to_out.weight.detach().abs().max()) < 1e-3  # it starts at zero
    theirs: Any = decoder.upstream_step(setup)
    assert all(0 < theirs() < 10 for _ in range(2))


def test_both_sides_draw_as_many_pictures(setup: Setup) -> None:
    shape = (decoder.DRAWN, 3, 16, 16)
    ours: Any = decoder.crest_drawing(setup, "fp32")
    theirs: Any = decoder.upstream_drawing(setup)
    assert ours().shape == theirs().shape == shape


def test_what_is_read_is_what_is_trained_on(setup: Setup) -> None:
    batch: Any = decoder.crest_batches(setup)()
    assert batch.images.shape == (4, 3, 16, 16)
    assert torch.equal(batch.images, setup.ready_batches(1)[0].images)


def test_the_whole_setup_is_the_one_that_speed_is_claimed_for() -> None:
    network = Decoder(DecoderSpec.model_validate({**SPEC, "image_embed_dim": decoder.EMBED_DIM})).unet
    weights = sum(weight.numel() for weight in network.parameters())
    assert weights == pytest.approx(15.3e6, rel=0.002)
    names = [case.name for case in cases_of("decoder")]
    assert {"decoder_exact", "decoder_bf16", "decoder_sample_step", "decoder_data_share"} <= set(names)


def test_shares_are_of_one_step() -> None:
    times = {"step": [2.0, 4.0, 3.0], "crest": [0.03], "clip": [1.0]}
    assert decoder.shares_of_a_step({}, times) == {"data_share": 0.01, "clip_share": 0.25}
