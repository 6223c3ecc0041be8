"""Noise schedules against their papers' formulas."""

import math

import pytest
import torch

from crest.config import ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise, spaced_timesteps


@pytest.mark.parametrize("name", ["cosine", "linear"])
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


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("timesteps", [4, 20, 1000])
def test_some_signal_is_left_at_the_last_timestep(name: ScheduleName, timesteps: int) -> None:
    assert 0 < float(NoiseSchedule(name, timesteps).alpha_bar[-1]) < 0.01


@pytest.mark.parametrize("shift", [-1.5, 2.0])
def test_a_shift_moves_the_log_snr_of_every_timestep(shift: float) -> None:
    t = torch.arange(100)
    moved, still = NoiseSchedule("cosine", 100, shift), NoiseSchedule("cosine", 100)
    assert torch.allclose(moved.log_snr(t), still.log_snr(t) + shift, atol=1e-4)
    assert torch.allclose(moved.alpha(t, 1) ** 2 + moved.sigma(t, 1) ** 2, torch.ones(100), atol=1e-6)


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
