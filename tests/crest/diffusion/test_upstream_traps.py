"""Where dalle2-pytorch 1.15.6 computes something else than its papers: each is shown, and ours is free of it.

Its methods run as they are on a stand-in for their class, which holds the few things they look at: no network
is built. Should a release mend one, its test fails and tells.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import Decoder, DiffusionPrior, NoiseScheduler
from torch import Tensor

from crest.config import Prediction
from crest.diffusion.learned_variance import hybrid_loss, split_prediction, variational_bound
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.diffusion.prediction import from_x_start, target, to_x_start
from crest.diffusion.sampling import SAMPLERS, ddim, ddpm
from crest.diffusion.self_conditioning import self_condition
from tests.crest.diffusion.one_gaussian import DEVIATION, MEAN, exact_denoiser, moments

KINDS: tuple[Prediction, ...] = ("epsilon", "x_start", "v")
T = 100


def scheduler(name: str = "cosine", timesteps: int = T) -> NoiseScheduler:
    return NoiseScheduler(beta_schedule=name, timesteps=timesteps, loss_type="l2")


class StandIn(SimpleNamespace):
    """What a network and its diffusion class are asked for, and nothing else."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.can_classifier_guidance = False
        self.self_cond = given.get("self_cond", False)

    def forward_with_cond_scale(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        said: Tensor = self.says(x, t, told)
        return said

    def __call__(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        said: Tensor = self.says(x, t, told)
        return said


def library_decoder(**given: Any) -> StandIn:
    decoder = StandIn(
        device="cpu",
        normalize_img=lambda picture: picture,
        unnormalize_img=lambda picture: picture,
        dynamic_threshold=lambda x: x,
        learned_variance_constrain_frac=False,
        image_cond_drop_prob=0.0,
        text_cond_drop_prob=0.0,
        vb_loss_weight=1.0,
        ddim_sampling_eta=0.0,
    )
    vars(decoder).update(given)
    decoder.parse_unet_output = partial(Decoder.parse_unet_output, decoder)
    decoder.p_mean_variance = partial(Decoder.p_mean_variance, decoder)
    return decoder


def library_bound(kind: Prediction, output: Tensor, x_start: Tensor, noise: Tensor, t: Tensor) -> float:
    """The bound alone out of the library's loss: the loss less its simple part, batch mean, in bits."""
    unet = StandIn(says=lambda x, t, told: output)
    arguments = {
        "image_embed": None,
        "noise_scheduler": scheduler(),
        "noise": noise,
        "predict_x_start": kind == "x_start",
        "predict_v": kind == "v",
        "learned_variance": True,
    }
    losses = [
        Decoder.p_losses(library_decoder(vb_loss_weight=weight), unet, x_start, t, **arguments)
        for weight in (0.0, 1.0)
    ]
    return float(losses[1] - losses[0])


def bound_case(kind: Prediction, times: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    schedule, t = NoiseSchedule("cosine", T), torch.tensor(times)
    shape = (len(times), 3, 4, 4)
    x_start = torch.randint(0, 256, shape, generator=draw) / 127.5 - 1
    noise = torch.randn(shape, generator=draw)
    x_t = add_noise(schedule, x_start, noise, t)
    x_start_hat = x_start + 0.05 * torch.randn(shape, generator=draw)
    predicted = from_x_start(kind, x_start_hat, x_t, schedule.alpha(t, 4), schedule.sigma(t, 4))
    fraction = torch.rand(shape, generator=draw) * 2 - 1
    return torch.cat((predicted, fraction), dim=1), x_start, noise, x_t, t


@pytest.mark.parametrize("times", [[1, 30, 60, 90], [0, 0]])
def test_the_bound_is_the_librarys_for_epsilon(times: list[int]) -> None:
    output, x_start, noise, x_t, t = bound_case("epsilon", times)
    ours = variational_bound(
        "epsilon", *split_prediction(output), x_start, x_t, t, NoiseSchedule("cosine", T)
    )
    theirs = library_bound("epsilon", output, x_start, noise, t)
    # at t = 0 the library takes tanh for the normal distribution function
    assert float(ours.mean()) == pytest.approx(theirs, rel=1e-4 if times[0] else 0.02)


@pytest.mark.parametrize("kind", ["x_start", "v"])
def test_the_librarys_bound_has_the_wrong_mean_for_x_start_and_v(kind: Prediction) -> None:
    """It reads any prediction as epsilon. One mistake in x_0 must have one bound, whatever is predicted."""
    times = [10, 30, 60]
    schedule = NoiseSchedule("cosine", T)
    output, x_start, noise, x_t, t = bound_case("epsilon", times)
    right = library_bound("epsilon", output, x_start, noise, t)
    predicted, fraction = split_prediction(output)
    alpha, sigma = schedule.alpha(t, 4), schedule.sigma(t, 4)
    same = from_x_start(kind, to_x_start("epsilon", predicted, x_t, alpha, sigma), x_t, alpha, sigma)
    theirs = library_bound(kind, torch.cat((same, fraction), dim=1), x_start, noise, t)
    ours = float(variational_bound(kind, same, fraction, x_start, x_t, t, schedule).mean())
    assert ours == pytest.approx(right, rel=1e-4)
    assert theirs > 2 * right


def test_the_library_weighs_the_bound_a_t_th_of_equation_16() -> None:
    output, x_start, noise, x_t, t = bound_case("epsilon", [10, 30, 60])
    schedule = NoiseSchedule("cosine", T)
    unet, library = StandIn(says=lambda x, t, told: output), library_decoder(vb_loss_weight=0.001)
    theirs = Decoder.p_losses(
        library,
        unet,
        x_start,
        t,
        image_embed=None,
        noise_scheduler=scheduler(),
        noise=noise,
        learned_variance=True,
    )
    predicted, fraction = split_prediction(output)
    simple = (predicted - noise).square().flatten(1).mean(dim=1)
    bound = variational_bound("epsilon", predicted, fraction, x_start, x_t, t, schedule)
    assert float(hybrid_loss(simple, bound, T, 0.001 / T).mean()) == pytest.approx(float(theirs), rel=1e-5)
    paper = float((simple + 0.001 * T * bound).mean())
    assert float(hybrid_loss(simple, bound, T).mean()) == pytest.approx(paper, rel=1e-6)
    assert paper > 1.01 * float(theirs)


def knowing(schedule: NoiseSchedule, **given: Any) -> StandIn:
    """A library network that predicts x_0 of the Gaussian exactly."""
    denoise = exact_denoiser(schedule)
    return StandIn(says=lambda x, t, told: denoise(x, t), **given)


def drawn_by(sample: Callable[[], Tensor], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the library draws from x instead of its own noise."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **told: x)
        patch.setattr(torch, "randn_like", lambda like: torch.zeros_like(like))
        return sample()


@pytest.mark.parametrize("steps", [250, 500])
def test_the_priors_ddim_steps_with_other_levels_than_it_inverts_with(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves to alphas_cumprod_prev[s] and then tells the network that x is at alphas_cumprod[s].

    More steps make it worse: each is a timestep short, and the samples come out shifted and too narrow.
    """
    schedule = NoiseSchedule("cosine", 1000)
    prior = StandIn(
        device="cpu",
        noise_scheduler=scheduler("cosine", 1000).double(),
        init_image_embed_l2norm=False,
        predict_v=False,
        predict_x_start=True,
        sampling_clamp_l2norm=False,
        sampling_final_clamp_l2norm=False,
        net=knowing(schedule),
    )
    sample = DiffusionPrior.p_sample_loop_ddim

    def library(x: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
        return drawn_by(lambda: sample(prior, x.shape, {}, timesteps=steps, eta=0.0), x, monkeypatch)

    mean, deviation = moments(library, 1)
    assert abs(mean - MEAN) > 0.08
    assert deviation < 0.85 * DEVIATION
    mean, deviation = moments(lambda x, fresh: ddim(exact_denoiser(schedule), x, schedule, steps), 1)
    assert mean == pytest.approx(MEAN, abs=0.001)
    assert deviation == pytest.approx(DEVIATION, rel=0.01)


def test_the_decoders_ddim_ends_at_the_first_timesteps_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows the picture gets it back from ours, and from the library with noise left in it."""
    schedule = NoiseSchedule("linear", 20)
    picture, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    asked: list[int] = []

    def says(x: Tensor, t: Tensor, told: Any) -> Tensor:
        asked.append(int(t[0]))
        return picture

    arguments = {"image_embed": None, "noise_scheduler": scheduler("linear", 20), "predict_x_start": True}
    theirs = drawn_by(
        lambda: Decoder.p_sample_loop_ddim(
            library_decoder(), StandIn(says=says), noise.shape, timesteps=5, **arguments
        ),
        noise,
        monkeypatch,
    )
    left = theirs - picture * schedule.alpha_bar[0].sqrt().float()
    assert float(left.std()) == pytest.approx(float((1 - schedule.alpha_bar[0]).sqrt()), rel=0.2)
    assert asked[0] < 19  # pure noise, shown as if it were less
    for sampler in SAMPLERS.values():
        assert torch.equal(sampler(lambda x, t: picture, noise, schedule, 5), picture)


@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_sampling_is_the_librarys(kind: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all timesteps, with the network's own variance: here the library is right for every kind."""
    ours, theirs = NoiseSchedule("cosine", 30), scheduler("cosine", 30)
    noise = torch.randn(2, 3, 4, 4)
    draws = [torch.randn(2, 3, 4, 4) for _ in range(30)]

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_start = torch.tanh(x + t.view(-1, 1, 1, 1) / 30)
        alpha, sigma = ours.alpha(t, 4), ours.sigma(t, 4)
        return from_x_start(kind, x_start, x, alpha, sigma), torch.sin(3 * x)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        predicted, fraction = network(x, t)
        return to_x_start(kind, predicted, x, ours.alpha(t, 4), ours.sigma(t, 4)), fraction

    unet = StandIn(says=lambda x, t, told: torch.cat(network(x, t), dim=1))
    library = library_decoder()
    library.p_sample = partial(Decoder.p_sample, library)
    fresh = iter(draws)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **told: noise)
        patch.setattr(torch, "randn_like", lambda like: next(fresh))
        drawn = Decoder.p_sample_loop_ddpm(
            library,
            unet,
            noise.shape,
            image_embed=None,
            noise_scheduler=theirs,
            predict_x_start=kind == "x_start",
            predict_v=kind == "v",
            learned_variance=True,
        )
    again = iter(draws)
    mine = ddpm(denoise, noise, ours, 30, fresh=lambda: next(again))
    assert torch.allclose(mine, drawn, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_the_library_trains_self_conditioning_on_its_prediction_and_samples_with_x_0(
    kind: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, t = NoiseSchedule("cosine", T), torch.tensor([20, 60])
    x_start, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    alpha, sigma = schedule.alpha(t, 4), schedule.sigma(t, 4)
    said = target(kind, x_start, noise, alpha, sigma)
    shown: list[Tensor | None] = []

    def says(x: Tensor, t: Tensor, told: Any) -> Tensor:
        shown.append(told.get("self_cond"))
        return said

    monkeypatch.setattr("random.random", lambda: 0.0)
    Decoder.p_losses(
        library_decoder(),
        StandIn(says=says, self_cond=True),
        x_start,
        t,
        image_embed=None,
        noise_scheduler=scheduler(),
        noise=noise,
        predict_v=kind == "v",
    )
    assert shown[-1] is not None
    assert torch.equal(shown[-1], said)
    assert not torch.allclose(shown[-1], x_start, atol=0.5)
    x_t = add_noise(schedule, x_start, noise, t)
    ours = self_condition(lambda: to_x_start(kind, said, x_t, alpha, sigma), True)
    assert ours is not None
    assert torch.allclose(ours, x_start, atol=1e-4)
