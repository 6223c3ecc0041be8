"""What a prior learns from and how: without words, any prediction and weight, adapters, own guesses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest.adapters import adapters
from crest.diffusion.noise_schedule import add_noise
from crest.errors import ConfigError, DataError, WeightsError
from crest.models.prior import load_prior
from crest.world import Draw, open_world
from prior_train.data import PriorBatch
from prior_train.stage import PriorStage

Staged = Callable[..., PriorStage]
Configured = Callable[..., dict[str, Any]]
Embed = Callable[..., Path]
SCRATCH: dict[str, Any] = {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20}


def first_batch(stage: PriorStage) -> PriorBatch:
    return next(stage.batches("train", open_world("cpu", "fp32"), 0))


def after(stage: PriorStage, steps: int, lr: float = 3e-3) -> tuple[float, float]:
    """The loss on one batch before and after so many steps on it."""
    model, batch = stage.model(), first_batch(stage)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss, _ = stage.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize("kind", ["epsilon", "x_start", "v"])
def test_every_prediction_learns(staged: Staged, kind: str) -> None:
    start, end = after(staged(model__scratch={**SCRATCH, "prediction": kind}), 40)
    assert end < 0.75 * start


@pytest.mark.parametrize("kind", ["epsilon", "x_start", "v"])
def test_a_network_that_answers_right_has_no_loss(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stage = staged(model__scratch={**SCRATCH, "prediction": kind}, model__min_snr_gamma=5.0)
    batch, schedule = first_batch(stage), stage.prior.noise_schedule
    x_start = batch.image_embed * 4.0  # sqrt(16)
    noise = batch.draw.normal(2, 16)

    class Oracle(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, *told: Tensor) -> Tensor:
            alpha, sigma = schedule.alpha(t, 2), schedule.sigma(t, 2)
            assert torch.allclose(x_t, alpha * x_start + sigma * noise, atol=1e-6)
            return {"epsilon": noise, "x_start": x_start, "v": alpha * noise - sigma * x_start}[kind]

    loss, figures = stage.loss(Oracle(), batch)
    assert float(loss) < 1e-10
    assert float(figures["cosine"]) == pytest.approx(1.0, abs=1e-4)


def test_the_loss_is_the_papers(staged: Staged) -> None:
    """Section 2.2: the plain mean squared error of the clean embedding."""
    stage = staged(model__text_cond_drop_prob=0.0)
    batch, prior = first_batch(stage), stage.prior
    t = (batch.draw.uniform(1) * 20).long()
    x_start, keep = batch.image_embed * 4.0, torch.ones(16, dtype=torch.bool)
    x_t = add_noise(prior.noise_schedule, x_start, batch.draw.normal(2, 16), t)
    predicted = stage.model()(x_t, t, batch.text_embed, batch.text_encodings, keep, keep)
    expected = torch.nn.functional.mse_loss(predicted, x_start)
    assert torch.allclose(stage.loss(stage.model(), batch)[0], expected, rtol=1e-6)


def test_min_snr_and_p2_weigh_the_same_error(staged: Staged) -> None:
    """On x_start the first is min(SNR, gamma) and the second SNR / (k + SNR)^gamma."""
    plain, clamped, coarse = (
        staged(**changes) for changes in ({}, {"model__min_snr_gamma": 5.0}, {"model__p2_gamma": 1.0})
    )
    batch = first_batch(plain)
    snr = plain.prior.noise_schedule.log_snr((batch.draw.uniform(1) * 20).long()).exp()
    single = [replace_rows(batch, row) for row in range(4)]
    t, keep = (batch.draw.uniform(1) * 20).long(), torch.ones(1, dtype=torch.bool)
    for row, one in enumerate(single):
        errors = [
            float(stage._error(plain.model(), one, t[row : row + 1], keep, keep, None)[0].detach())
            for stage in (plain, clamped, coarse)
        ]
        assert errors[1] == pytest.approx(errors[0] * min(float(snr[row]), 5.0), rel=1e-4)
        assert errors[2] == pytest.approx(errors[0] * float(snr[row]) / (1 + float(snr[row])), rel=1e-4)
    both = staged(model__min_snr_gamma=5.0, model__p2_gamma=1.0)
    with pytest.raises(ConfigError, match=r"min_snr_gamma: found 5\.0 beside p2_gamma"):
        both.loss(both.model(), batch)


def replace_rows(batch: PriorBatch, row: int) -> PriorBatch:
    assert batch.text_encodings is not None
    part = slice(row, row + 1)
    return PriorBatch(
        batch.image_embed[part], batch.text_embed[part], batch.text_encodings[part], Draw(1, 0, row, 1)
    )


class Watcher(nn.Module):
    """Notes which conditions a network was asked to leave out, and what it was shown of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[Tensor] = []
        self.image: list[Tensor] = []
        self.shown: list[Tensor | None] = []

    def forward(self, x_t: Tensor, t: Tensor, *told: Tensor, self_cond: Tensor | None = None) -> Tensor:
        self.text.append(told[2])
        self.image.append(told[3])
        self.shown.append(self_cond)
        return torch.ones_like(x_t)


def test_text_and_image_are_dropped_by_sample_and_independently(staged: Staged) -> None:
    stage, watcher = staged(model__text_cond_drop_prob=0.4, model__image_cond_drop_prob=0.2), Watcher()
    for step in range(150):
        batch = replace(first_batch(stage), draw=Draw(1, step, 0, 16))
        stage.loss(watcher, batch)
    text, image = (~torch.cat(kept) for kept in (watcher.text, watcher.image))
    assert float(text.float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float(image.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((text & image).float().mean()) == pytest.approx(0.08, abs=0.02)
    mixed = [batch for batch in watcher.text if 0 < int(batch.sum()) < 16]
    assert len(mixed) > 140  # by sample, not by batch


def test_nothing_is_dropped_where_the_config_says_so(staged: Staged) -> None:
    stage, watcher = staged(model__text_cond_drop_prob=0.0), Watcher()
    stage.loss(watcher, first_batch(stage))
    assert bool(watcher.text[0].all())
    assert bool(watcher.image[0].all())


def test_own_guesses_are_shown_to_half_of_the_samples_and_without_what_was_dropped(staged: Staged) -> None:
    stage, watcher = staged(model__scratch={**SCRATCH, "self_cond": True}), Watcher()
    share = []
    for step in range(60):
        stage.loss(watcher, replace(first_batch(stage), draw=Draw(1, step, 0, 16)))
        shown = watcher.shown[-1]
        assert shown is not None
        assert not shown.requires_grad
        share.append((shown != 0).any(dim=1).float().mean())
    assert float(torch.stack(share).mean()) == pytest.approx(0.5, abs=0.05)
    # dalle2-pytorch makes the guess with all of the text and then trains as if it were dropped
    for guess, taken in zip(watcher.text[::2], watcher.text[1::2], strict=True):
        assert torch.equal(guess, taken)


def test_a_prior_learns_from_embeddings_without_words(
    embed: Embed, configured: Configured, command: Callable[..., int], tmp_path: Path
) -> None:
    """Upstream's script has no such path: its loader asks for a URL that the script never passes."""
    place = embed("wordless", encodings=False)
    values = configured(place, model__scratch={**SCRATCH, "text_encodings": False})
    assert command("prior_train", values, tmp_path) == 0
    prior, _, _ = load_prior(tmp_path / "run")
    assert prior.spec.text_encodings is False
    assert prior.spec.text_width is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/drawn_r_at_5" in line for line in lines)
    assert all(torch.isfinite(torch.tensor(list(line.values()), dtype=torch.float64)).all() for line in lines)
    # and goes on from there
    again = {
        **values,
        "run": {**values["run"], "dir": tmp_path / "again"},
        "model": {"start": tmp_path / "run"},
    }
    assert command("prior_train", again, tmp_path) == 0


def test_a_prior_that_reads_words_refuses_embeddings_without(embed: Embed, staged: Staged) -> None:
    place = embed("wordless", encodings=False)
    with pytest.raises(
        DataError, match=r"wordless.*holds no text_encodings, which this step reads; embed again"
    ):
        staged(place)


def test_a_trained_prior_that_reads_words_refuses_embeddings_without(
    embed: Embed, configured: Configured, staged: Staged, command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("prior_train", configured(embed()), tmp_path) == 0
    with pytest.raises(DataError, match="holds no text_encodings"):
        staged(embed("wordless", encodings=False), model__scratch=None, model__start=str(tmp_path / "run"))


def test_embeddings_of_another_dimension_are_refused(
    embed: Embed, configured: Configured, staged: Staged, command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("prior_train", configured(embed()), tmp_path) == 0
    with pytest.raises(WeightsError, match=r"has image_embed_dim 16, the embeddings in .*wide have 24; name"):
        staged(embed("wide", dim=24), model__scratch=None, model__start=str(tmp_path / "run"))
    with pytest.raises(
        ConfigError, match=r"model\.scratch\.image_embed_dim: found 24, but .* has 16; remove"
    ):
        staged(model__scratch={**SCRATCH, "image_embed_dim": 24})


def test_further_views_of_a_picture_are_trained_on_and_not_judged_on(embed: Embed, staged: Staged) -> None:
    stage = staged(embed("viewed", views=3))
    world = open_world("cpu", "fp32")
    seen = [batch.image_embed for batch, _ in zip(stage.batches("train", world, 0), range(12), strict=False)]
    plain = torch.cat(seen) @ stage.train.image_embed.T
    share = float((plain.amax(dim=1) > 0.999).float().mean())
    assert share == pytest.approx(0.25, abs=0.1)  # one of four views is the plain picture
    val = stage._val_rows(0, 12, 0, torch.device("cpu"))
    assert torch.equal(val.image_embed, stage.val.image_embed)


def test_adapters_alone_learn_and_travel_beside_the_weights(
    embed: Embed, configured: Configured, staged: Staged, command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("prior_train", configured(embed()), tmp_path) == 0
    start = {"scratch": None, "start": str(tmp_path / "run"), "lora": {"rank": 2}}
    stage = staged(**{f"model__{name}": value for name, value in start.items()})
    names = [name for name, _ in adapters(stage.model())]
    assert len(names) == 3  # to_q, to_kv and to_out of its layer
    learning = {name for name, weight in stage.model().named_parameters() if weight.requires_grad}
    assert all(name.endswith((".up", ".down")) for name in learning)
    begin, end = after(stage, 30, lr=0.03)
    assert end < begin
    values = configured(embed(), model__scratch=None, run__dir=tmp_path / "tuned")
    values["model"] = {"start": str(tmp_path / "run"), "lora": {"rank": 2}}
    assert command("prior_train", values, tmp_path) == 0
    assert (tmp_path / "tuned" / "adapter.safetensors").exists()
    base, tuned = (load_prior(tmp_path / name)[0].state_dict() for name in ("run", "tuned"))
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == set(names)


def test_adapters_need_weights(staged: Staged) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora: adapters need weights to adapt; name a start"):
        staged(model__lora={"rank": 2})


def test_the_card_says_what_was_dropped(staged: Staged) -> None:
    for text, image in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.1)):
        stage = staged(model__text_cond_drop_prob=text, model__image_cond_drop_prob=image)
        spec = stage.card(stage.model())["spec"]
        assert (spec["saw_dropped_conditions"], spec["saw_dropped_images"]) == (text > 0, image > 0)


def test_checkpointing_changes_no_gradient_and_keeps_less(staged: Staged) -> None:
    gradients, kept_bytes = [], []
    for checkpointing in (False, True):
        stage = staged(model__checkpointing=checkpointing)
        model, kept = stage.model().train(), 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = stage.loss(model, first_batch(stage))
        kept_bytes.append(kept)
        loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.allclose(plain, again, rtol=1e-5, atol=1e-7)
    assert kept_bytes[1] < 0.6 * kept_bytes[0]
