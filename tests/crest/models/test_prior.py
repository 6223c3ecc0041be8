"""The prior behind its door: unit vectors out, inputs left alone, guidance as the papers write it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.checkpoint import export_weights
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.sampling import ddim
from crest.errors import ConfigError, WeightsError
from crest.models.clip import TextFeatures
from crest.models.prior import Prior, PriorSpec, load_prior, sample_image_embed
from tests.crest.models.same_as_library import stirred

B, D, K, L = 4, 16, 10, 5
SETTINGS: dict[str, Any] = {"steps": 4, "candidates": 2}


def prior_of(**settings: Any) -> Prior:
    torch.manual_seed(0)
    spec = {"image_embed_dim": D, "text_width": K, "max_text_len": 6, "depth": 2, "heads": 2, "dim_head": 8}
    return Prior(PriorSpec.model_validate({**spec, "timesteps": 50, **settings})).eval()


def text_of(count: int = B) -> TextFeatures:
    draw = torch.Generator().manual_seed(1)
    encodings = torch.randn(count, L, K, generator=draw)
    encodings[0, 2:] = 0
    return TextFeatures(F.normalize(torch.randn(count, D, generator=draw), dim=1), encodings)


def test_draws_are_float32_and_unit_length() -> None:
    drawn = sample_image_embed(prior_of(), text_of(), seeds=range(B), **SETTINGS)
    assert (drawn.shape, drawn.dtype) == ((B, D), torch.float32)
    assert torch.allclose(drawn.norm(dim=1), torch.ones(B), atol=1e-5)


def test_inputs_come_back_unchanged() -> None:
    """The library's own class scales the embedding that it is given, in place."""
    text = text_of()
    before = text.text_embed.clone(), text.text_encodings.clone()
    prior = prior_of()
    sample_image_embed(prior, text, seeds=range(B), cond_scale=2.0, **SETTINGS)
    image_embed, keep = F.normalize(torch.randn(B, D), dim=1), torch.ones(B, dtype=torch.bool)
    image_before = image_embed.clone()
    prior(image_embed, torch.zeros(B), text.text_embed, text.text_encodings, keep, keep)
    assert torch.equal(text.text_embed, before[0])
    assert torch.equal(text.text_encodings, before[1])
    assert torch.equal(image_embed, image_before)


def test_the_same_seed_gives_the_same_embedding_and_another_does_not() -> None:
    prior, text = prior_of(), text_of()
    first, again, other = (
        sample_image_embed(prior, text, seeds=seeds, **SETTINGS)
        for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5])
    )
    assert torch.equal(first, again)
    assert torch.equal(first[:3], other[:3])
    assert not torch.equal(first[3], other[3])


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    prior, text = prior_of(), text_of()
    whole = sample_image_embed(prior, text, seeds=range(B), **SETTINGS)
    last = TextFeatures(text.text_embed[3:], text.text_encodings[3:])
    assert torch.allclose(sample_image_embed(prior, last, seeds=[3], **SETTINGS), whole[3:], atol=1e-5)


@pytest.mark.parametrize("cond_scale", [1.0, 2.5])
def test_guidance_moves_from_the_unconditional_prediction(cond_scale: float) -> None:
    prior, text = prior_of(), text_of()
    keep = torch.ones(B, dtype=torch.bool)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with_text = prior(x_t, t, text.text_embed, text.text_encodings, keep, keep)
        without = prior(x_t, t, text.text_embed, text.text_encodings, ~keep, keep)
        return F.normalize(without + cond_scale * (with_text - without), dim=1) * D**0.5

    noise = torch.cat([torch.randn(1, D, generator=torch.Generator().manual_seed(seed)) for seed in range(B)])
    with torch.no_grad():
        expected = F.normalize(ddim(denoise, noise, prior.noise_schedule, 4), dim=1)
    found = sample_image_embed(prior, text, seeds=range(B), cond_scale=cond_scale, steps=4, candidates=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_of_two_candidates_the_one_nearer_to_the_text_is_kept() -> None:
    prior, text = prior_of(), text_of()
    one, two = (
        sample_image_embed(prior, text, seeds=range(B), steps=4, candidates=count) for count in (1, 2)
    )
    nearness = [(drawn * text.text_embed).sum(dim=1) for drawn in (one, two)]
    assert (nearness[1] >= nearness[0] - 1e-6).all()
    assert (nearness[1] > nearness[0] + 1e-3).any()


def test_guidance_of_a_prior_that_never_saw_a_dropped_condition_is_refused() -> None:
    prior = prior_of(saw_dropped_conditions=False)
    with pytest.raises(ConfigError, match=r"cond_scale: found 2\.0, .* set it to 1\.0"):
        sample_image_embed(prior, text_of(), seeds=range(B), cond_scale=2.0, **SETTINGS)
    sample_image_embed(prior, text_of(), seeds=range(B), cond_scale=1.0, **SETTINGS)


def test_without_its_text_a_prior_sees_none_of_it() -> None:
    prior, text, other = prior_of(), text_of(), text_of()
    keep, drop = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)
    x_t, t = torch.randn(B, D), torch.full((B,), 20)
    left, right = (
        prior(x_t, t, embed, encodings, drop, keep)
        for embed, encodings in (
            (text.text_embed, text.text_encodings),
            (-other.text_embed, other.text_encodings * 2),
        )
    )
    assert torch.equal(left, right)


@pytest.mark.parametrize("text_width", [K, D], ids=["projected", "of one width"])
def test_the_loss_falls_on_one_batch(text_width: int) -> None:
    prior = prior_of(text_width=text_width).train()
    text = text_of(8)
    encodings = torch.zeros(8, L, text_width)
    encodings[..., :K] = text.text_encodings
    image_embed = F.normalize(torch.randn(8, D, generator=torch.Generator().manual_seed(5)), dim=1)
    optimizer, keep = torch.optim.AdamW(prior.parameters(), lr=3e-3), torch.ones(8, dtype=torch.bool)
    losses = []
    for step in range(60):
        draw = torch.Generator().manual_seed(step)
        x_start, t = image_embed * prior.scale, torch.randint(0, 50, (8,), generator=draw)
        x_t = add_noise(prior.noise_schedule, x_start, torch.randn(8, D, generator=draw), t)
        loss = (prior(x_t, t, text.text_embed, encodings, keep, keep) - x_start).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_weights_travel_with_their_spec(tmp_path: Path) -> None:
    prior = prior_of()
    card = {"kind": "prior", "spec": prior.spec.model_dump(mode="json"), "parents": {"clip": "c" * 16}}
    path = export_weights(tmp_path, prior, card)
    back, digest, found = load_prior(tmp_path)
    assert back.spec == prior.spec
    assert found["parents"] == {"clip": "c" * 16}
    assert digest == found["sha256"][:16]
    left, right = (
        sample_image_embed(one.eval(), text_of(), seeds=range(B), **SETTINGS) for one in (prior, back)
    )
    assert torch.equal(left, right)
    card["spec"]["depth"] = 3
    export_weights(tmp_path, prior, card)
    with pytest.raises(WeightsError, match=r"lacks net\.causal_transformer\.layers\.2"):
        load_prior(path)


SHAPES: dict[str, dict[str, Any]] = {
    "no text encodings": {"text_encodings": False},
    "self-conditioned": {"self_cond": True},
    "table of timesteps": {"discrete_timesteps": True},
    "several tokens": {"num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2},
    "as published": {"normformer": True, "attn_dropout": 0.05, "ff_dropout": 0.05, "text_embed_scale": 1.0},
    "bare": {"norm_in": True, "norm_out": False, "final_proj": False, "rotary_emb": False},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_setting_reaches_the_network(name: str) -> None:
    """The library's own forward pass over the network that the spec built says what the prior says."""
    prior = stirred(prior_of(text_width=D, **SHAPES[name]))
    text, spec = text_of(), prior.spec
    words = F.pad(text.text_encodings, (0, D - K)) if spec.text_encodings else None
    draw = torch.Generator().manual_seed(4)
    x_t, guess = torch.randn(B, D, generator=draw), torch.randn(B, D, generator=draw)
    keep, t = torch.ones(B, dtype=torch.bool), torch.tensor([0, 7, 30, 49])
    shown = {"self_cond": F.normalize(guess, dim=1) * D**0.5} if spec.self_cond else {}
    ours = prior(x_t, t, text.text_embed, words, keep, keep, **({"self_cond": guess} if shown else {}))
    scale = D**0.5 if spec.text_embed_scale is None else spec.text_embed_scale
    theirs = prior.net(x_t, t, text_embed=text.text_embed * scale, text_encodings=words, **shown)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_text_encodings_none_are_looked_at() -> None:
    prior, text = prior_of(text_encodings=False), text_of()
    assert prior.spec.text_width is None
    left, right = (
        sample_image_embed(
            prior, TextFeatures(text.text_embed, words), seeds=range(B), cond_scale=2.0, **SETTINGS
        )
        for words in (text.text_encodings, torch.empty(B, 0, 0))
    )
    assert torch.equal(left, right)


def test_dropout_is_for_training_alone() -> None:
    prior = prior_of(attn_dropout=0.3, ff_dropout=0.3)
    text, keep, t = text_of(), torch.ones(B, dtype=torch.bool), torch.full((B,), 20)
    x_t = torch.randn(B, D, generator=torch.Generator().manual_seed(2))

    def twice() -> tuple[Tensor, Tensor]:
        one, other = (prior(x_t, t, text.text_embed, text.text_encodings, keep, keep) for _ in range(2))
        return one, other

    assert torch.equal(*twice())
    prior.train()
    assert not torch.allclose(*twice(), atol=1e-3)


@pytest.mark.parametrize("part", ["attn_dropout", "ff_dropout"])
def test_each_dropout_has_an_effect_of_its_own(part: str) -> None:
    prior = prior_of(**{part: 0.5}).train()
    text, keep, t = text_of(), torch.ones(B, dtype=torch.bool), torch.full((B,), 20)
    told = (torch.zeros(B, D), t, text.text_embed, text.text_encodings, keep, keep)
    assert not torch.allclose(prior(*told), prior(*told), atol=1e-4)


def test_where_images_were_dropped_guidance_starts_from_neither_condition() -> None:
    prior, text = prior_of(saw_dropped_images=True), text_of()
    keep = torch.ones(B, dtype=torch.bool)

    def denoise(x_t: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        told = prior(x_t, t, text.text_embed, text.text_encodings, keep, keep)
        untold = prior(x_t, t, text.text_embed, text.text_encodings, ~keep, ~keep)
        assert torch.allclose(untold, untold[:1].expand(B, -1), atol=1e-5)  # one for all captions
        return F.normalize(untold + 2.0 * (told - untold), dim=1) * D**0.5

    noise = torch.cat([torch.randn(1, D, generator=torch.Generator().manual_seed(seed)) for seed in range(B)])
    with torch.no_grad():
        expected = F.normalize(ddim(denoise, noise, prior.noise_schedule, 4), dim=1)
    found = sample_image_embed(prior, text, seeds=range(B), cond_scale=2.0, steps=4, candidates=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_self_conditioned_draw_is_shown_its_last_guess() -> None:
    prior, text = prior_of(self_cond=True), text_of()
    keep, shown = torch.ones(B, dtype=torch.bool), []

    def denoise(x_t: Tensor, t: Tensor, guess: Tensor | None = None) -> Tensor:
        shown.append(guess)
        predicted = prior(x_t, t, text.text_embed, text.text_encodings, keep, keep, self_cond=guess)
        return F.normalize(predicted, dim=1) * D**0.5

    noise = torch.cat([torch.randn(1, D, generator=torch.Generator().manual_seed(seed)) for seed in range(B)])
    with torch.no_grad():
        expected = F.normalize(ddim(denoise, noise, prior.noise_schedule, 4, self_cond=True), dim=1)
        blind = F.normalize(ddim(denoise, noise, prior.noise_schedule, 4), dim=1)
    assert [guess is None for guess in shown[:4]] == [True, False, False, False]
    found = sample_image_embed(prior, text, seeds=range(B), steps=4, candidates=1)
    assert torch.allclose(found, expected, atol=5e-5)
    assert not torch.allclose(found, blind, atol=1e-3)


def test_guidance_and_self_conditioning_meet() -> None:
    """A guess that saw nothing else saw the guess before, which is each row's own."""
    prior, text = prior_of(self_cond=True, saw_dropped_images=True), text_of()
    keep = torch.ones(B, dtype=torch.bool)

    def denoise(x_t: Tensor, t: Tensor, guess: Tensor | None = None) -> Tensor:
        told, untold = (
            prior(x_t, t, text.text_embed, text.text_encodings, seen, seen, self_cond=guess)
            for seen in (keep, ~keep)
        )
        return F.normalize(untold + 2.0 * (told - untold), dim=1) * D**0.5

    noise = torch.cat([torch.randn(1, D, generator=torch.Generator().manual_seed(seed)) for seed in range(B)])
    with torch.no_grad():
        expected = F.normalize(ddim(denoise, noise, prior.noise_schedule, 4, self_cond=True), dim=1)
    found = sample_image_embed(prior, text, seeds=range(B), cond_scale=2.0, steps=4, candidates=1)
    assert torch.allclose(found, expected, atol=5e-5)


def test_a_draw_is_only_kept_at_its_length_where_the_spec_says_so() -> None:
    kept, free = (
        sample_image_embed(prior_of(clamp_sampled=clamped), text_of(), seeds=range(B), **SETTINGS)
        for clamped in (True, False)
    )
    assert torch.allclose(free.norm(dim=1), torch.ones(B), atol=1e-5)
    assert not torch.allclose(kept, free, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"text_width": None},
            r"text_width: found null, expected the width of CLIP's text encodings; add it",
        ),
        ({"dim_head": 7}, r"dim_head: found 7, expected an even number"),
        ({"noise_schedule": "jsd", "prediction": "epsilon"}, r'found "epsilon" with noise_schedule "jsd"'),
    ],
)
def test_specs_that_fit_no_network_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prior_of(**settings)


def test_a_card_from_before_these_settings_says_what_it_always_said() -> None:
    old: dict[str, Any] = {"image_embed_dim": D, "text_width": K, "max_text_len": 6, "depth": 2, "heads": 2}
    old |= {"dim_head": 8, "ff_mult": 2.0, "timesteps": 50, "noise_schedule": "cosine"}
    old |= {"saw_dropped_conditions": True}
    assert PriorSpec.model_validate(old) == prior_of().spec
