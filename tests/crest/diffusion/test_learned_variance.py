"""The learned variance and its bound, against Gaussians written out and against dalle2-pytorch."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from crest.config import Prediction
from crest.diffusion.learned_variance import (
    constrain,
    hybrid_loss,
    log_variance,
    split_prediction,
    variational_bound,
)
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.diffusion.prediction import from_x_start

KINDS: tuple[Prediction, ...] = ("epsilon", "x_start", "v")
SCHEDULE = NoiseSchedule("cosine", 100)


def case(kind: Prediction, times: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """predicted, fraction, x_start, x_t, t, and the x_start that is predicted."""
    draw = torch.Generator().manual_seed(1)
    shape = (len(times), 2, 3, 3)
    # on the grid of 256 values
    x_start = torch.randint(0, 256, shape, generator=draw) / 127.5 - 1
    t = torch.tensor(times)
    x_t = add_noise(SCHEDULE, x_start, torch.randn(shape, generator=draw), t)
    x_start_hat = x_start + 0.1 * torch.randn(shape, generator=draw)
    predicted = from_x_start(kind, x_start_hat, x_t, SCHEDULE.alpha(t, 4), SCHEDULE.sigma(t, 4))
    fraction = torch.rand(shape, generator=draw) * 2 - 1
    return predicted, fraction, x_start, x_t, t, x_start_hat


def test_the_variance_lies_between_beta_tilde_and_beta_as_equation_15_says() -> None:
    posterior = SCHEDULE.posterior(torch.tensor([40, 80]), 2)
    low, high = posterior.log_variance, posterior.log_beta
    assert (low < high).all()
    for said, expected in (
        (-1.0, low),
        (1.0, high),
        (0.0, (low + high) / 2),
        (0.5, 0.75 * high + 0.25 * low),
    ):
        assert torch.allclose(log_variance(torch.full((2, 1), said), posterior), expected, atol=1e-5)


def test_a_constrained_fraction_stays_between_them() -> None:
    said = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3])
    kept = constrain(said)
    assert kept.tolist() == pytest.approx([-1, 0, 2 * torch.tensor(0.5).sigmoid().item() - 1, 0.4621172, 1])


def test_an_output_is_prediction_then_fraction() -> None:
    predicted, fraction = split_prediction(torch.arange(12.0).view(1, 6, 2))
    assert predicted.flatten().tolist() == list(range(6))
    assert fraction.flatten().tolist() == list(range(6, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_kl_of_the_two_reverse_steps(kind: Prediction) -> None:
    """Written out with torch.distributions, from the estimate of x_0 and not from the prediction."""
    predicted, fraction, x_start, x_t, t, x_start_hat = case(kind, [1, 30, 70, 90])
    bound = variational_bound(kind, predicted, fraction, x_start, x_t, t, SCHEDULE)
    for row, time in enumerate(t.tolist()):
        step = SCHEDULE.posterior_at(time, time - 1)
        beta, least = float(step.log_beta.exp()), float(step.log_variance.exp())
        v = (fraction[row].double() + 1) / 2
        true = Normal(step.mean(x_start[row].double(), x_t[row].double()), math.sqrt(least))
        model = Normal(
            step.mean(x_start_hat[row].double(), x_t[row].double()),
            torch.sqrt(beta**v * least ** (1 - v)),
        )
        expected = float(kl_divergence(true, model).mean()) / math.log(2)
        assert float(bound[row]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_first_timestep_it_is_the_pictures_likelihood(kind: Prediction) -> None:
    _, _, x_start, x_t, t, x_start_hat = case(kind, [0, 0])
    x_start[0, 0, 0, 0], x_start[0, 0, 0, 1] = 1, -1  # the open bins
    x_start_hat = x_start + 0.02 * (x_start_hat - x_start)
    predicted = from_x_start(kind, x_start_hat, x_t, SCHEDULE.alpha(t, 4), SCHEDULE.sigma(t, 4))
    fraction = torch.full_like(
        x_start, 0.9
    )  # below it, the library's cut of beta-tilde makes the step a point
    bound = variational_bound(kind, predicted, fraction, x_start, x_t, t, SCHEDULE)
    step = SCHEDULE.posterior_at(0, -1)
    deviation = math.exp(0.5 * float(0.95 * step.log_beta + 0.05 * step.log_variance))
    model = Normal(x_start_hat.double(), deviation)
    upper, lower = model.cdf(x_start.double() + 1 / 255), model.cdf(x_start.double() - 1 / 255)
    upper[x_start > 0.999], lower[x_start < -0.999] = 1, 0
    expected = -(upper - lower).clamp(min=1e-12).log2().flatten(1).mean(dim=1)
    assert (expected > 0.01).all()
    assert bound.tolist() == pytest.approx(expected.tolist(), rel=2e-3)


def bits_of_all_values(mean: float) -> Tensor:
    """Of the 256 values of a pixel under a first step that is coarse enough to reach several of them."""
    x_start = (torch.arange(256.0) / 127.5 - 1).view(256, 1, 1, 1)
    told = torch.full_like(x_start, mean), torch.ones_like(x_start), x_start, torch.zeros_like(x_start)
    t = torch.zeros(256, dtype=torch.long)
    return variational_bound("x_start", *told, t, NoiseSchedule("linear", 20))


@pytest.mark.parametrize("mean", [0.2, -0.99, 0.99, -1.2])
def test_the_likelihoods_of_all_256_values_add_up_to_one(mean: float) -> None:
    bits = bits_of_all_values(mean)
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-4)
    assert int((bits < 10).sum()) > (20 if abs(mean) < 0.9 else 5 if abs(mean) < 1 else 0)


def test_a_value_above_the_mean_is_as_likely_as_one_as_far_below() -> None:
    bits = bits_of_all_values(0.0)
    reached = bits < 38
    assert int(reached.sum()) > 100
    assert torch.allclose(bits[reached], bits.flip(0)[reached], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_miss_by_far_costs_forty_bits_and_no_nan(kind: Prediction) -> None:
    predicted, fraction, x_start, x_t, t, _ = case(kind, [0, 0, 1, 99])
    x_start = x_start.clamp(-0.9, 0.9)  # the outer values' bins are open
    for sign in (-1, 1):  # far below beta-tilde, far above beta
        said = (sign * (1 + 4 * fraction.abs())).requires_grad_()
        bound = variational_bound(kind, predicted + 100, said, x_start, x_t, t, SCHEDULE)
        assert torch.isfinite(bound).all()
        if sign < 0:
            assert bound[:2].tolist() == pytest.approx([-math.log2(1e-12)] * 2, rel=1e-4)
        bound.sum().backward()
        assert said.grad is not None
        assert torch.isfinite(said.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_goes_back_through_the_mean(kind: Prediction) -> None:
    predicted, fraction, x_start, x_t, t, _ = case(kind, [0, 40])
    predicted.requires_grad_()
    fraction.requires_grad_()
    bound = variational_bound(kind, predicted, fraction, x_start, x_t, t, SCHEDULE)
    hybrid_loss(torch.zeros(2), bound, 100).sum().backward()
    assert predicted.grad is None
    assert fraction.grad is not None
    assert float(fraction.grad[1].abs().min()) > 0


def test_the_bounds_gradient_points_to_the_variance_that_is_right() -> None:
    """The best variance is beta-tilde and what the errors of x_0 add to it."""
    t = torch.full((512,), 60)
    x_start, x_t = torch.zeros(512, 1), torch.randn(512, 1)
    error = 0.5 * torch.randn(512, 1)
    step = SCHEDULE.posterior_at(60, 59)
    right = float(step.log_variance.exp() + step.x_start_weight**2 * error.square().mean())
    v = (math.log(right) - float(step.log_variance)) / float(step.log_beta - step.log_variance)
    slopes = []
    for away in (-0.01, 0.01):
        fraction = torch.tensor([2 * v - 1 + away], requires_grad=True)
        variational_bound(
            "x_start", error, fraction.expand(512, 1), x_start, x_t, t, SCHEDULE
        ).mean().backward()
        assert fraction.grad is not None
        slopes.append(float(fraction.grad))
    assert slopes[0] < 0 < slopes[1]
    assert slopes[0] == pytest.approx(-slopes[1], rel=0.05)


def test_the_hybrid_weighs_the_sum_over_all_timesteps() -> None:
    """Equation 16: lambda L_vlb, of which a drawn term is one in T."""
    simple, bound = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    assert hybrid_loss(simple, bound, 1000).tolist() == pytest.approx([4.0, 7.0])
    assert hybrid_loss(simple, bound, 200, 0.01).tolist() == pytest.approx([7.0, 12.0])
