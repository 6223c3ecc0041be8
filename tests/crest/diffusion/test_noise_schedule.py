"""Noise schedules against their papers' formulas and against dalle2-pytorch's."""

import math
from typing import get_args

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import NoiseScheduler

from crest.config import ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise, spaced_timesteps

NAMES: tuple[ScheduleName, ...] = get_args(ScheduleName)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [20, 1000])
def test_variance_is_preserved_and_noise_only_grows(name: ScheduleName, timesteps: int) -> None:
    schedule = NoiseSchedule(name, timesteps)
    t = torch.arange(timesteps)
    alpha, sigma = schedule.alpha(t, 1), schedule.sigma(t, 1)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(timesteps), atol=1e-6)
    assert (schedule.log_snr(t).diff() < 0).all()
    assert torch.allclose(
        schedule.log_snr(t), 2 * (alpha.double().log() - sigma.double().log()).float(), atol=1e-3
    )


def test_cosine_is_nichol_and_dhariwals_equation_17() -> None:
    schedule = NoiseSchedule("cosine", 1000)
    for t in (0, 250, 500, 900):
        f = [math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in (t + 1, 0)]
        assert float(schedule.alpha_bar[t]) == pytest.approx(f[0] / f[1], rel=1e-9)
    assert float(schedule.alpha_bar[-1] / schedule.alpha_bar[-2]) == pytest.approx(
        0.001
    )  # no step ends all signal


def test_linear_is_hos_section_4() -> None:
    schedule = NoiseSchedule("linear", 1000)
    assert float(schedule.alpha_bar[0]) == pytest.approx(1 - 1e-4)
    assert float(schedule.alpha_bar[-1] / schedule.alpha_bar[-2]) == pytest.approx(1 - 0.02)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-3)


def test_quadratics_betas_have_evenly_spaced_roots() -> None:
    alpha_bar = NoiseSchedule("quadratic", 500).alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    expected = [(math.sqrt(2e-4) + t / 499 * (math.sqrt(0.04) - math.sqrt(2e-4))) ** 2 for t in range(1, 500)]
    assert betas.tolist() == pytest.approx(expected, rel=1e-9)


def test_sigmoids_betas_are_a_logistic_curve_between_linears_ends() -> None:
    alpha_bar = NoiseSchedule("sigmoid", 1000).alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    expected = [1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * t / 999)) for t in range(1, 1000)]
    assert betas.tolist() == pytest.approx(expected, rel=1e-9)


def test_jsds_signal_falls_by_as_much_at_each_timestep_until_none_is_left() -> None:
    alpha_bar = NoiseSchedule("jsd", 50).alpha_bar
    assert alpha_bar.tolist() == pytest.approx([1 - t / 50 for t in range(1, 51)], abs=1e-12)
    assert float(alpha_bar[-1]) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [40, 250, 1000])
def test_schedule_and_posterior_are_the_librarys(name: ScheduleName, timesteps: int) -> None:
    """Weights that dalle2-pytorch trained go on in the same arithmetic."""
    ours, t = NoiseSchedule(name, timesteps), torch.arange(timesteps)
    theirs = NoiseScheduler(beta_schedule=name, timesteps=timesteps, loss_type="l2")
    assert torch.allclose(ours.alpha_bar.float(), theirs.alphas_cumprod, rtol=0, atol=1e-6)
    assert torch.allclose(ours.alpha(t, 1), theirs.sqrt_alphas_cumprod, rtol=0, atol=1e-6)
    assert torch.allclose(ours.sigma(t, 1), theirs.sqrt_one_minus_alphas_cumprod, rtol=0, atol=1e-6)
    posterior = ours.posterior(t, 1)
    # the library computes "jsd" in float32, and its rounding grows with 1000 factors
    near = {"rtol": 1e-6, "atol": 5e-5 if name == "jsd" else 1e-6}
    assert torch.allclose(posterior.x_start_weight, theirs.posterior_mean_coef1, **near)
    assert torch.allclose(posterior.x_t_weight, theirs.posterior_mean_coef2, **near)
    assert torch.allclose(posterior.log_variance, theirs.posterior_log_variance_clipped, **near)
    assert torch.allclose(posterior.log_beta, theirs.betas.log(), **near)
    x_start, x_t = torch.randn(timesteps, 2), torch.randn(timesteps, 2)
    mean = ours.posterior(t, 2).mean(x_start, x_t)
    assert torch.allclose(mean, theirs.q_posterior(x_start, x_t, t)[0], atol=1e-4 if name == "jsd" else 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("time", "following"), [(70, 69), (70, 20), (99, 0), (1, 0), (40, 39)])
def test_posterior_is_bayes_rule(name: ScheduleName, time: int, following: int) -> None:
    """q(x_s | x_t, x_0) is the product of q(x_t | x_s) and q(x_s | x_0): their precisions add up."""
    schedule = NoiseSchedule(name, 100)
    high, low = float(schedule.alpha_bar[time]), float(schedule.alpha_bar[following])
    kept, x_start, x_t = high / low, 0.3, -1.7
    precision = kept / (1 - kept) + 1 / (1 - low)
    mean = (math.sqrt(kept) * x_t / (1 - kept) + math.sqrt(low) * x_start / (1 - low)) / precision
    posterior = schedule.posterior_at(time, following)
    told = posterior.mean(torch.tensor(x_start).double(), torch.tensor(x_t).double())
    assert float(told) == pytest.approx(mean, rel=1e-6)
    assert float(posterior.log_variance) == pytest.approx(-math.log(precision), abs=1e-9)
    assert float(posterior.log_beta) == pytest.approx(math.log(1 - kept), abs=1e-9)
    if time - following == 1:
        gathered = schedule.posterior(torch.tensor([time]), 3)
        for field in vars(posterior):
            assert getattr(gathered, field).shape == (1, 1, 1)
            assert float(getattr(gathered, field)) == pytest.approx(
                float(getattr(posterior, field)), rel=1e-6
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_last_step_back_is_x_0_itself(name: ScheduleName) -> None:
    schedule = NoiseSchedule(name, 100)
    for posterior in (schedule.posterior(torch.tensor([0]), 1), schedule.posterior_at(0, -1)):
        assert float(posterior.x_start_weight) == pytest.approx(1, abs=1e-6)
        assert float(posterior.x_t_weight) == 0
        assert float(posterior.log_variance) == pytest.approx(math.log(1e-20), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jsd"])
@pytest.mark.parametrize("timesteps", [4, 20, 1000])
def test_some_signal_is_left_at_the_last_timestep(name: ScheduleName, timesteps: int) -> None:
    assert 0 < float(NoiseSchedule(name, timesteps).alpha_bar[-1]) < 0.01


@pytest.mark.parametrize("shift", [-1.5, 2.0])
def test_a_shift_moves_the_log_snr_of_every_timestep(shift: float) -> None:
    t = torch.arange(100)
    moved, still = NoiseSchedule("cosine", 100, shift), NoiseSchedule("cosine", 100)
    assert torch.allclose(moved.log_snr(t), still.log_snr(t) + shift, atol=1e-4)
    assert torch.allclose(moved.alpha(t, 1) ** 2 + moved.sigma(t, 1) ** 2, torch.ones(100), atol=1e-6)
    posterior = moved.posterior_at(60, 59)
    kept = float(moved.alpha_bar[60] / moved.alpha_bar[59])
    assert float(posterior.log_beta) == pytest.approx(math.log(1 - kept), abs=1e-9)


def test_a_devices_tables_are_copied_to_it_once() -> None:
    schedule = NoiseSchedule("cosine", 100)
    t = torch.zeros(2, dtype=torch.long, device="meta")
    assert schedule.alpha(t, 4).shape == (2, 1, 1, 1)
    assert schedule.alpha(t, 4).device.type == "meta"
    tables = schedule._tables[t.device]
    schedule.posterior(t, 4)
    assert schedule._tables[t.device] is tables


def test_noised_samples_are_the_weighted_sum() -> None:
    schedule = NoiseSchedule("cosine", 100)
    x_start, noise = torch.full((2, 3, 4, 4), 2.0), torch.full((2, 3, 4, 4), -1.0)
    noised = add_noise(schedule, x_start, noise, torch.tensor([10, 90]))
    for row, t in enumerate((10, 90)):
        alpha_bar = float(schedule.alpha_bar[t])
        assert torch.allclose(noised[row], torch.tensor(2 * alpha_bar**0.5 - (1 - alpha_bar) ** 0.5))


@pytest.mark.parametrize(
    ("timesteps", "steps", "times"),
    [(1000, 1, [999]), (1000, 2, [999, 0]), (1000, 4, [999, 666, 333, 0]), (4, 9, [3, 2, 1, 0])],
)
def test_steps_are_spread_over_all_timesteps(timesteps: int, steps: int, times: list[int]) -> None:
    assert spaced_timesteps(timesteps, steps) == times


def test_no_timestep_is_visited_twice() -> None:
    for steps in range(2, 101):
        times = spaced_timesteps(100, steps)
        assert len(set(times)) == len(times) == steps
        assert times == sorted(times, reverse=True)
