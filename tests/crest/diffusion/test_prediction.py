"""What a network predicts, back and forth, and how its error is weighed."""

from collections.abc import Callable

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import NoiseScheduler

from crest.config import Prediction, ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.prediction import (
    from_x_start,
    loss_weight,
    refuse_blind_epsilon,
    target,
    to_epsilon,
    to_x_start,
)
from crest.errors import ConfigError

KINDS: tuple[Prediction, ...] = ("epsilon", "x_start", "v")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.999, 0.6, 0.05])
def test_a_perfect_prediction_gives_back_sample_and_noise(kind: Prediction, alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x_start, epsilon = (torch.randn(4, 3, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    a = torch.tensor(alpha, dtype=torch.float64)
    s = (1 - a**2).sqrt()
    x_t = a * x_start + s * epsilon
    back = to_x_start(kind, target(kind, x_start, epsilon, a, s), x_t, a, s)
    assert torch.allclose(back, x_start, atol=1e-12)
    assert torch.allclose(to_epsilon(back, x_t, a, s), epsilon, atol=1e-10)


def test_v_is_salimans_and_hos() -> None:
    three, five = torch.tensor(3.0), torch.tensor(5.0)
    assert float(target("v", three, five, torch.tensor(0.8), torch.tensor(0.6))) == pytest.approx(
        0.8 * 5 - 0.6 * 3
    )


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("epsilon", [1.0, 1.0, 0.5]), ("x_start", [0.1, 5.0, 5.0]), ("v", [0.1 / 1.1, 5 / 6, 5 / 11])],
)
def test_min_snr_weights_are_hangs(kind: Prediction, weights: list[float]) -> None:
    log_snr = torch.tensor([0.1, 5.0, 10.0]).log()
    assert loss_weight(kind, log_snr, 5.0).tolist() == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_every_timestep_weighs_alike(kind: Prediction) -> None:
    assert loss_weight(kind, torch.tensor([-8.0, 0.0, 8.0]), None).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.99, 0.7, 0.1])
@pytest.mark.parametrize(
    ("settings", "on_x_start"),
    [
        ({"min_snr_gamma": 5.0}, lambda snr: min(snr, 5.0)),
        ({"p2_gamma": 0.5, "p2_k": 2.0}, lambda snr: snr * (2.0 + snr) ** -0.5),
    ],
)
def test_weighted_errors_of_one_mistake_are_equal_whatever_is_predicted(
    kind: Prediction, alpha: float, settings: dict[str, float], on_x_start: Callable[[float], float]
) -> None:
    """Both schemes weigh the error of x_0; the weights of the other kinds only translate it."""
    a = torch.tensor([alpha], dtype=torch.float64)
    s = (1 - a**2).sqrt()
    x_start, epsilon, mistake = (torch.tensor([value], dtype=torch.float64) for value in (0.3, -1.2, 0.25))
    x_t = a * x_start + s * epsilon
    predicted = from_x_start(kind, x_start + mistake, x_t, a, s)
    error = (predicted - target(kind, x_start, epsilon, a, s)).square()
    weighted = float(error * loss_weight(kind, (a**2 / s**2).log(), **settings))
    assert weighted == pytest.approx(0.25**2 * on_x_start(alpha**2 / (1 - alpha**2)), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cosine", "linear", "quadratic", "sigmoid", "jsd"])
def test_conversions_are_inverse_to_each_other_at_every_timestep(
    kind: Prediction, name: ScheduleName
) -> None:
    schedule = NoiseSchedule(name, 100)
    alpha_bar = schedule.alpha_bar if kind != "epsilon" else schedule.alpha_bar[schedule.alpha_bar > 0]
    alpha, sigma = alpha_bar.sqrt()[:, None], (1 - alpha_bar).sqrt()[:, None]
    x_t, predicted = torch.randn(2, len(alpha), 5, dtype=torch.float64)
    x_start = to_x_start(kind, predicted, x_t, alpha, sigma)
    assert torch.allclose(from_x_start(kind, x_start, x_t, alpha, sigma), predicted, atol=1e-6)
    if kind == "v":  # the noise that v implies needs no division
        epsilon = alpha * predicted + sigma * x_t
        assert torch.allclose(to_epsilon(x_start, x_t, alpha, sigma), epsilon, atol=1e-10)


def test_conversions_are_the_librarys() -> None:
    ours = NoiseSchedule("cosine", 100)
    theirs = NoiseScheduler(beta_schedule="cosine", timesteps=100, loss_type="l2")
    t = torch.arange(99)
    alpha, sigma = ours.alpha(t, 2), ours.sigma(t, 2)
    x_t, said = torch.randn(2, 99, 4)
    near = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(
        to_x_start("epsilon", said, x_t, alpha, sigma), theirs.predict_start_from_noise(x_t, t, said), **near
    )
    assert torch.allclose(
        to_x_start("v", said, x_t, alpha, sigma), theirs.predict_start_from_v(x_t, t, said), **near
    )
    assert torch.allclose(
        to_epsilon(said, x_t, alpha, sigma), theirs.predict_noise_from_start(x_t, t, said), **near
    )
    assert torch.allclose(target("v", x_t, said, alpha, sigma), theirs.calculate_v(x_t, t, said), **near)


def test_epsilon_is_refused_where_noise_is_all_there_is() -> None:
    blind = NoiseSchedule("jsd", 10)
    with pytest.raises(ConfigError, match='found "epsilon" with noise_schedule "jsd"'):
        refuse_blind_epsilon("epsilon", blind)
    for kind in ("x_start", "v"):
        refuse_blind_epsilon(kind, blind)
    refuse_blind_epsilon("epsilon", NoiseSchedule("cosine", 10))


def test_the_library_draws_nan_from_epsilon_where_noise_is_all_there_is() -> None:
    theirs = NoiseScheduler(beta_schedule="jsd", timesteps=10, loss_type="l2")
    t, x_t = torch.tensor([9]), torch.randn(1, 4)
    assert theirs.predict_start_from_noise(x_t, t, noise=x_t).isnan().all()


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("epsilon", [1.1**-0.5, 6**-0.5]),
        ("x_start", [0.1 * 1.1**-0.5, 5 * 6**-0.5]),
        ("v", [0.1 * 1.1**-1.5, 5 * 6**-1.5]),
    ],
)
def test_p2_weights_are_chois(kind: Prediction, weights: list[float]) -> None:
    log_snr = torch.tensor([0.1, 5.0]).log()
    assert loss_weight(kind, log_snr, p2_gamma=0.5).tolist() == pytest.approx(weights, rel=1e-5)


def test_p2_is_the_librarys_for_epsilon_which_the_paper_is_about() -> None:
    schedule, t = NoiseSchedule("cosine", 100), torch.arange(100)
    theirs = NoiseScheduler(
        beta_schedule="cosine", timesteps=100, loss_type="l2", p2_loss_weight_gamma=1.0, p2_loss_weight_k=2
    )
    ours = loss_weight("epsilon", schedule.log_snr(t), p2_gamma=1.0, p2_k=2.0)
    assert torch.allclose(ours, theirs.p2_loss_weight, rtol=1e-3)
    # the library gives other predictions the same weight, which is another weight of the same mistake
    for kind in ("x_start", "v"):
        other = loss_weight(kind, schedule.log_snr(t), p2_gamma=1.0, p2_k=2.0)
        assert not torch.allclose(other, theirs.p2_loss_weight, rtol=0.5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"min_snr_gamma": 5.0, "p2_gamma": 1.0}, "min_snr_gamma: found 5.0 beside p2_gamma 1.0"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma: found 0.0, expected a number above 0"),
        ({"p2_gamma": -1.0}, "p2_gamma: found -1.0"),
        ({"p2_gamma": 1.0, "p2_k": 0.0}, "p2_k: found 0.0"),
    ],
)
def test_weights_without_a_meaning_are_refused(settings: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        loss_weight("v", torch.zeros(2), **settings)


@pytest.mark.parametrize("kind", ["x_start", "v"])
@pytest.mark.parametrize("settings", [{"min_snr_gamma": 5.0}, {"p2_gamma": 1.0}])
def test_weights_are_finite_without_signal(kind: Prediction, settings: dict[str, float]) -> None:
    weight = loss_weight(kind, NoiseSchedule("jsd", 10).log_snr(torch.arange(10)), **settings)
    assert torch.isfinite(weight).all()
    assert float(weight[-1]) == 0  # nothing of x_0 is in x_T, so its mistakes there cannot be told
