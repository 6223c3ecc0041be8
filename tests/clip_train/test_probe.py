"""The bank is the same for ever; drift is 0 for the same weights and grows with the step away from them."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip_train.probe import MOST, Probe, ProbeEmbeddings, drift
from clip_train.probe_bank import EACH, PROMPTS, VERSION, draw_pictures
from crest.models.clip import ClipModel, ClipSpec, load_clip_model

SPEC = ClipSpec(
    custom={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 714, "width": 24, "heads": 2, "layers": 1},
    },
    bpe_merges=200,
)


def tiny(seed: int = 0) -> ClipModel:
    torch.manual_seed(seed)
    return ClipModel(SPEC)


@pytest.fixture(scope="module")
def stock() -> ClipModel:
    return load_clip_model("stock/reference_clip")[0]


@pytest.fixture(scope="module")
def probe(stock: ClipModel) -> Probe:
    return Probe(stock.side_px)


def stepped(model: ClipModel, size: float, seed: int = 1) -> ClipModel:
    """A copy, every weight moved by `size` times its tensor's deviation, always in the same direction."""
    other = ClipModel(model.spec)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in model.state_dict().items():
        moves = weight.is_floating_point() and weight.ndim > 1
        noise = torch.randn(weight.shape, generator=generator) * weight.std() if moves else 0
        state[name] = weight + size * noise
    other.load_state_dict(state)
    return other


def test_the_bank_changes_only_with_its_version() -> None:
    said = "the bank changed: raise VERSION, then write down its new numbers here"
    assert VERSION == 1, said
    assert hashlib.sha256("\n".join(PROMPTS).encode()).hexdigest()[:16] == "232acba222d72969", said
    kinds = draw_pictures(32).astype(float).reshape(8, -1)  # to 0.05 levels, which no rounding reaches
    means = [123.14, 113.17, 115.02, 130.27, 185.37, 113.11, 120.47, 120.9]
    spreads = [47.0, 51.77, 52.82, 65.03, 36.4, 49.47, 61.18, 65.62]
    assert kinds.mean(axis=1).tolist() == pytest.approx(means, abs=0.05), said
    assert kinds.std(axis=1).tolist() == pytest.approx(spreads, abs=0.05), said


def test_prompts_are_a_hundred_different_ones_without_anything_to_be_trained_for() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 100
    words = {word for prompt in PROMPTS for word in prompt.lower().split()}
    assert not words & {"logo", "logos", "crest", "emblem", "badge", "shield", "mascot", "wordmark", "brand"}


def test_pictures_are_sixty_four_different_ones_at_any_size() -> None:
    for side_px in (16, 50):
        pictures = draw_pictures(side_px)
        assert pictures.shape == (8 * EACH, 3, side_px, side_px)
        flat = pictures.reshape(64, -1).astype(float)
        distances = abs(flat[:, None] - flat[None]).mean(axis=2) + 999 * np.eye(64)
        assert distances.min() > 5
        assert flat.std(axis=1).min() > 3  # none is blank
    small = draw_pictures(16).astype(float)
    halved = draw_pictures(32).astype(float).reshape(64, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    assert abs(small - halved).mean() < 4  # the same pictures


def test_noise_has_the_spectrum_of_nature() -> None:
    from clip_train.probe_bank import _spectrum

    noise = _spectrum(np.random.default_rng(0), 1.0)
    power = abs(np.fft.rfft(noise, axis=1)).mean(axis=0)
    slow, fast = power[2:8].mean(), power[64:128].mean()
    assert 5 < slow / fast < 60
    flat = abs(np.fft.rfft(_spectrum(np.random.default_rng(0), 0.0), axis=1)).mean(axis=0)
    assert flat[2:8].mean() / flat[64:128].mean() == pytest.approx(1, abs=0.15)


def test_drift_is_nothing_for_the_same_weights(stock: ClipModel, probe: Probe) -> None:
    before, after = probe.embed(stock), probe.embed(stepped(stock, 0.0))
    figures = drift(before, after)
    assert figures["drift"] == 0.0
    assert figures["probe_image_cosine"] == figures["probe_text_cosine"] == figures["probe_top_kept"] == 1.0
    assert figures["probe_version"] == VERSION
    assert torch.allclose(before.image_embed.norm(dim=1), torch.ones(64))
    assert before.similarities().shape == (64, 100)


def test_drift_grows_with_the_step_from_the_weights(stock: ClipModel, probe: Probe) -> None:
    before = probe.embed(stock)
    steps = [drift(before, probe.embed(stepped(stock, size))) for size in (0.01, 0.03, 0.1, 0.3, 1.0)]
    for name, sign in (("drift", 1), ("probe_image_cosine", -1), ("probe_text_cosine", -1)):
        values = [sign * step[name] for step in steps]
        assert values == sorted(values), name
        assert len(set(values)) == 5
    assert 0 < steps[0]["drift"] < 0.01
    assert 0.5 < steps[-1]["drift"] < 1.5


def test_weights_that_have_nothing_in_common_drift_by_one() -> None:
    probe = Probe(16)
    values = [drift(probe.embed(tiny(seed)), probe.embed(tiny(seed + 100)))["drift"] for seed in range(6)]
    assert np.mean(values) == pytest.approx(1.0, abs=0.2)


def test_the_arithmetic_of_the_run_does_not_reach_the_drift(stock: ClipModel, probe: Probe) -> None:
    before, moved = probe.embed(stock), stepped(stock, 0.05)
    plain = drift(before, probe.embed(moved))["drift"]
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            coarse = probe.embed(moved)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert drift(before, coarse)["drift"] == pytest.approx(plain, abs=1e-6)


def test_rounding_of_another_machine_moves_drift_by_less_than_the_fourth_place(
    stock: ClipModel, probe: Probe
) -> None:
    before, after = probe.embed(stock), probe.embed(stepped(stock, 0.05))
    exact = ClipModel(stock.spec)
    exact.load_state_dict(stock.state_dict())
    exact.double()
    with torch.no_grad():  # float64 stands for another machine: a CUDA device's sums differ by far less
        images = exact.embed_images(probe.pictures.double() / 255)
    assert 0 < float((images - before.image_embed).abs().max()) < 1e-5
    noise = 1e-6 * torch.randn(after.image_embed.shape, generator=torch.Generator().manual_seed(0))
    other = (
        dataclasses.replace(before, image_embed=images),
        dataclasses.replace(after, image_embed=after.image_embed + noise),
    )
    assert drift(*other)["drift"] == pytest.approx(drift(before, after)["drift"], abs=1e-5)
    assert drift(before, other[0])["drift"] < 1e-8


def test_a_turn_of_both_towers_changes_embeddings_but_no_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (64, 100))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    figures = drift(ProbeEmbeddings(image, text), ProbeEmbeddings(image @ turn, text @ turn))
    assert figures["drift"] == pytest.approx(0.0, abs=1e-9)
    assert figures["probe_top_kept"] == 1.0
    assert figures["probe_image_cosine"] < 0.5
    against = drift(ProbeEmbeddings(image, text), ProbeEmbeddings(-image, text))
    assert against["drift"] == pytest.approx(MOST)
    assert against["probe_image_cosine"] == pytest.approx(-1.0)


def test_a_collapsed_or_broken_model_has_drifted_far() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (64, 100))
    before = ProbeEmbeddings(image, text)
    one = F.normalize(torch.ones(1, 8), dim=1)
    collapsed = ProbeEmbeddings(one.repeat(64, 1), one.repeat(100, 1))
    assert drift(before, collapsed)["drift"] == pytest.approx(0.5)
    assert drift(collapsed, collapsed)["drift"] == 0.0
    broken = drift(before, ProbeEmbeddings(torch.full_like(image, torch.nan), text))
    assert broken["drift"] == MOST
    assert all(np.isfinite(value) for value in broken.values())


def test_a_probed_model_is_left_as_it_was() -> None:
    model = tiny()
    model.train()
    model.clip.visual.eval()  # as a mode that locks the image tower may
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    asked = Probe(16).embed(model)
    assert torch.equal(torch.rand(2), expected)  # draws nothing of the run's randomness
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not asked.image_embed.requires_grad


def test_dropout_is_off_while_probed() -> None:
    model = tiny()
    model.clip.transformer.register_forward_hook(
        lambda module, _inputs, output: nn.functional.dropout(output, 0.5, module.training)
    )
    model.train()
    probe = Probe(16)
    assert drift(probe.embed(model), probe.embed(model))["drift"] == 0.0


def test_two_versions_of_the_bank_are_not_compared() -> None:
    asked = Probe(16).embed(tiny())
    with pytest.raises(AssertionError, match="two versions"):
        drift(asked, dataclasses.replace(asked, version=VERSION + 1))
