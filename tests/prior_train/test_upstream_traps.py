"""Where dalle2-pytorch 1.15.6 trains a prior otherwise than it says: each is shown, and ours is free of it.

Should a release mend one, its test fails and tells. Its sampler's and its self-conditioning's faults stand in
tests/crest/diffusion/test_upstream_traps.py.
"""

import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork
from dalle2_pytorch.trainer import DiffusionPriorTrainer
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from crest.loop import fit
from crest.models.clip import TextFeatures
from crest.models.prior import load_prior, sample_image_embed
from crest.models.published_configs import translate
from crest.records import Split
from crest.world import World, open_world
from prior_train.config import PriorTrainConfig
from prior_train.data import PriorBatch
from prior_train.stage import PriorStage
from scraper.config import PackConfig

B, D = 4, 16
Staged = Callable[..., PriorStage]
Configured = Callable[..., dict[str, Any]]
Command = Callable[..., int]


def upstream(**settings: Any) -> DiffusionPrior:
    torch.manual_seed(0)
    net = DiffusionPriorNetwork(dim=D, max_text_len=4, depth=1, heads=2, dim_head=8)
    return DiffusionPrior(
        net, image_embed_dim=D, timesteps=20, **{"condition_on_text_encodings": False, **settings}
    )


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(seed)), dim=1)


class StoppedError(Exception):
    pass


class StoppingStage(PriorStage):
    """A stage whose power fails before its fourth batch."""

    def batches(self, split: Split, world: World, start: int) -> Iterator[PriorBatch]:
        yield from itertools.islice(super().batches(split, world, start), 3)
        raise StoppedError


def test_the_callers_embedding_is_scaled_in_place(staged: Staged) -> None:
    image_embed, prior = unit(0), upstream()
    for _ in range(2):
        prior(image_embed=image_embed, text_embed=unit(1))
    assert torch.allclose(image_embed.norm(dim=1), torch.full((B,), float(D)), rtol=1e-5)  # D^(2/2), not 1

    stage = staged()
    batch = next(stage.batches("train", open_world("cpu", "fp32"), 0))
    before = batch.image_embed.clone(), batch.text_embed.clone()
    for _ in range(2):
        stage.loss(stage.model(), batch)
    assert torch.equal(batch.image_embed, before[0])
    assert torch.equal(batch.text_embed, before[1])


def test_conditions_are_dropped_from_losses_in_evaluation_too(staged: Staged) -> None:
    prior = upstream(cond_drop_prob=0.5).eval()
    t, told = torch.full((B,), 9), {"text_embed": unit(1)}
    losses = {float(prior.p_losses(unit(0), t, told, noise=unit(2)).detach()) for _ in range(12)}
    assert len(losses) > 1  # of the same embedding, timestep and noise

    world = open_world("cpu", "fp32")
    figures = []
    for probability in (0.0, 0.9):
        stage = staged(model__text_cond_drop_prob=probability, model__image_cond_drop_prob=probability)
        figures += [stage.validate(stage.model().eval(), world) for _ in range(2)]
    assert figures[0] == figures[1] == figures[2] == figures[3]


def test_what_is_guessed_is_cut_to_a_pictures_range_unless_x_start_is_predicted() -> None:
    """Scaled embeddings have entries of variance 1: a third of them lie beyond 1."""
    prior = upstream(predict_x_start=False)
    x_start = unit(0) * D**0.5
    t = torch.zeros(B, dtype=torch.long)
    noise = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    x_t = prior.noise_scheduler.q_sample(x_start=x_start, t=t, noise=noise)
    prior.net.forward_with_cond_scale = lambda *_, **__: noise  # a perfect network
    *_, guessed = prior.p_mean_variance(x_t, t, {"text_embed": unit(1)}, clip_denoised=True)
    assert float((guessed - x_start).abs().max()) > 0.5
    assert float(guessed.abs().max()) <= 1.0


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_ours_draws_what_a_perfect_network_knows(staged: Staged, kind: str) -> None:
    spec = {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20, "prediction": kind}
    prior: Any = staged(model__scratch=spec).model().eval()
    true = unit(0)

    def perfect(_: Any, x_t: Tensor, t: Tensor, *__: Any, **___: Any) -> Tensor:
        alpha, sigma = prior.noise_schedule.alpha(t, 2), prior.noise_schedule.sigma(t, 2)
        x_start = true * D**0.5
        epsilon = (x_t - alpha * x_start) / sigma
        return epsilon if kind == "epsilon" else alpha * epsilon - sigma * x_start

    prior.step = perfect
    drawn = sample_image_embed(
        prior, TextFeatures(unit(1), torch.zeros(B, 3, 10)), seeds=range(B), steps=10, candidates=1
    )
    assert float((drawn * true).sum(dim=1).min()) > 0.999


def test_a_run_with_a_warm_up_cannot_go_on(tmp_path: Path) -> None:
    trainer = DiffusionPriorTrainer(upstream(), warmup_steps=2, use_ema=False, accelerator_cpu=True)
    trainer.save(tmp_path / "prior.pth")
    with pytest.raises(pickle.UnpicklingError, match="LinearWarmup"):
        trainer.load(str(tmp_path / "prior.pth"))


def test_ours_goes_on_in_the_midst_of_its_warm_up(
    embed: Callable[..., Path], configured: Configured, command: Command, tmp_path: Path
) -> None:
    values = configured(embed(), optim__warmup_steps=4, run__steps=5, run__save_every=2)
    stopped = {**values, "run": {**values["run"], "dir": tmp_path / "stopped"}}
    assert command("prior_train", values, tmp_path) == 0

    config = PriorTrainConfig.model_validate_json(json.dumps(stopped, default=str))
    recipe = config.model_dump(mode="json", exclude={"schema_"})
    with pytest.raises(StoppedError):
        fit(StoppingStage(config), config.run, config.optim, recipe=recipe)
    assert not (tmp_path / "stopped" / "weights.safetensors").exists()
    assert command("prior_train", stopped, tmp_path) == 0
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("run", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rates = [
        line["train/lr"]
        for line in map(json.loads, (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines())
        if "train/lr" in line
    ]
    assert rates[1] > rates[0]


def test_a_batch_of_draws_cannot_be_asked_for(staged: Staged) -> None:
    with pytest.raises(AttributeError, match="betas"):
        upstream().sample_batch_size(B, {"text_embed": unit(1)})
    prior: Any = staged().model().eval()
    drawn = sample_image_embed(prior, TextFeatures(unit(1), torch.zeros(B, 3, 10)), seeds=range(B), steps=2)
    assert drawn.shape == (B, D)


def test_a_configs_average_reaches_the_weights(
    embed: Callable[..., Path], configured: Configured, command: Command, tmp_path: Path
) -> None:
    """Upstream's script passes its ema_beta to nobody; its trainer averages by 0.9999, from step 100 on."""
    theirs = DiffusionPriorTrainer(upstream(), accelerator_cpu=True).ema_diffusion_prior
    assert (theirs.beta, theirs.update_every, theirs.update_after_step) == (0.9999, 10, 100)

    place, weights = embed(), {}
    for decay in (0.0, 0.9):
        values = configured(place, optim__ema_decay=decay, run__save_every=4)
        values["run"]["dir"] = tmp_path / f"run-{decay}"
        assert command("prior_train", values, tmp_path) == 0
        state = next((tmp_path / f"run-{decay}" / "state").iterdir())
        last = load_file(state / "model.safetensors")["net.learned_query"]
        weights[decay] = (
            load_file(tmp_path / f"run-{decay}" / "weights.safetensors")["net.learned_query"],
            last,
        )
    assert torch.equal(*weights[0.0])  # no average: the last step's weights
    assert not torch.equal(*weights[0.9])
    assert torch.equal(weights[0.0][1], weights[0.9][1])  # and what is averaged is the same


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shares_that_sum_to_one_are_refused_for_their_rounding() -> None:
    from dalle2_pytorch.train_configs import TrainSplitConfig

    with pytest.raises(ValidationError, match=r"0\.9999999999999999"):
        TrainSplitConfig(train=0.7, val=0.2, test=0.1)
    PackConfig(val_share=0.2, test_share=0.1)
    for shares in ((0.7, 0.2, 0.1), (0.6, 0.3, 0.1)):
        values = published(dict(zip(("train", "val", "test"), shares, strict=True)))
        assert translate(values, "theirs.json").splits == shares


def published(splits: dict[str, float]) -> dict[str, Any]:
    net = {"dim": D, "depth": 1, "num_timesteps": 20, "max_text_len": 8}
    prior = {"net": net, "image_embed_dim": D, "timesteps": 20, "condition_on_text_encodings": True}
    return {"prior": prior, "data": {"batch_size": 8, "splits": splits}}


def test_a_prior_cannot_be_trained_on_precomputed_embeddings_alone(staged: Staged) -> None:
    """Upstream's loader of embeddings does not even import beside today's setuptools."""
    with pytest.raises(ModuleNotFoundError, match="pkg_resources"):
        import dalle2_pytorch.dataloaders.prior_loader  # noqa: F401
    batch = next(staged().batches("train", open_world("cpu", "fp32"), 0))
    assert batch.text_embed.shape == (16, D)


def test_a_guided_draw_needs_both_conditions_dropped_there_and_text_alone_here(
    embed: Callable[..., Path], configured: Configured, command: Command, tmp_path: Path
) -> None:
    """The paper drops text; upstream guides only where the noised embedding was dropped as well."""
    assert not upstream(text_cond_drop_prob=0.1, image_cond_drop_prob=0.0).can_classifier_guidance
    assert command("prior_train", configured(embed()), tmp_path) == 0
    prior, _, _ = load_prior(tmp_path / "run")
    text = TextFeatures(unit(1), torch.zeros(B, 3, 10))
    drawn = sample_image_embed(prior.eval(), text, seeds=range(B), cond_scale=2.0, steps=2)
    assert torch.isfinite(drawn).all()
