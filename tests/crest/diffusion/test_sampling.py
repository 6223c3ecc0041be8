"""Samplers on a Gaussian, whose denoiser and probability flow are known exactly."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from crest.config import SamplerName, ScheduleName
from crest.diffusion.noise_schedule import NoiseSchedule, spaced_timesteps
from crest.diffusion.sampling import SAMPLERS, FreshNoise, ddim, ddpm, noise_after
from tests.crest.diffusion.one_gaussian import DEVIATION, MEAN, exact_denoiser, flow, moments, spread

NAMES: tuple[SamplerName, ...] = tuple(SAMPLERS)
DETERMINISTIC: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m")
ANCESTRAL = {"ddpm": ddpm, "ddpm_large": SAMPLERS["ddpm_large"]}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_mean_and_variance_of_the_data_are_reached(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 1000)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = SAMPLERS[name](exact_denoiser(schedule), noise, schedule, 50)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(drawn.std()) == pytest.approx(DEVIATION, abs=0.015)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddims_moments_close_in_on_the_datas_at_first_order(eta: float) -> None:
    schedule = NoiseSchedule("linear", 8001)
    errors = []
    for steps in (126, 251, 501):
        mean, deviation = moments(
            lambda x, fresh, steps=steps: ddim(
                exact_denoiser(schedule), x, schedule, steps, eta=eta, fresh=fresh
            ),
            steps,
        )
        assert mean == pytest.approx(MEAN, abs=0.01)
        errors.append(abs(deviation - DEVIATION))
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["ddpm", "ddpm_large"])
def test_ancestral_moments_close_in_on_the_datas_at_first_order(name: str) -> None:
    schedule = NoiseSchedule("linear", 8001)
    errors = []
    for steps in (126, 251, 501):
        mean, deviation = moments(
            lambda x, fresh, steps=steps: ANCESTRAL[name](
                exact_denoiser(schedule), x, schedule, steps, fresh=fresh
            ),
            steps,
        )
        assert mean == pytest.approx(MEAN, abs=0.01)
        errors.append(abs(deviation - DEVIATION))
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("steps", [2, 5, 40])
@pytest.mark.parametrize("schedule_name", ["cosine", "linear", "quadratic", "sigmoid", "jsd"])
def test_a_network_that_knows_the_reverse_variance_is_exact_in_few_steps(
    schedule_name: ScheduleName, steps: int
) -> None:
    """For a Gaussian every reverse step is Gaussian: a learned variance that is right leaves no error."""
    schedule = NoiseSchedule(schedule_name, 1000)
    times = spaced_timesteps(1000, steps)
    denoise = exact_denoiser(schedule)

    def knowing(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        time = int(t[0])
        x_start = denoise(x_t, t)
        assert isinstance(x_start, Tensor)
        if time == 0:
            return x_start, torch.zeros_like(x_t)
        step = schedule.posterior_at(time, times[times.index(time) + 1])
        alpha_bar = float(schedule.alpha_bar[time])
        unsure = 1 / (1 / DEVIATION**2 + alpha_bar / (1 - alpha_bar))  # Var[x_0 | x_t]
        variance = float(step.log_variance.exp() + step.x_start_weight**2 * unsure)
        v = (math.log(variance) - float(step.log_variance)) / float(step.log_beta - step.log_variance)
        return x_start, torch.full_like(x_t, 2 * v - 1)

    mean, deviation = moments(lambda x, fresh: ddpm(knowing, x, schedule, steps, fresh=fresh), steps)
    # x_T is taken for standard normal, which it is but for the little signal left at T - 1; then x_0's exact
    # marginal at t = 0, and the mean of x_0 given it
    alpha_bar_first = float(schedule.alpha_bar[0])
    gain = DEVIATION**2 * math.sqrt(alpha_bar_first) / spread(schedule, 0)[1] ** 2
    tolerance = 2 * math.sqrt(float(schedule.alpha_bar[-1]))
    assert mean == pytest.approx(MEAN, abs=1e-9 + tolerance)
    assert deviation == pytest.approx(gain * spread(schedule, 0)[1], abs=1e-9 + tolerance**2)


def test_small_variance_is_exact_for_one_point_and_large_for_a_standard_normal() -> None:
    """Ho et al. 2020, section 3.2: the two extreme choices, on the data for which each is optimal."""
    schedule = NoiseSchedule("jsd", 200)  # x_T is pure noise
    heard: list[Tensor] = []

    def listening(deviation: float, mean: float):
        inner = exact_denoiser(schedule, mean, deviation)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            heard.append(x_t)
            answer = inner(x_t, t)
            assert isinstance(answer, Tensor)
            return answer

        return denoise

    steps = 7
    times = spaced_timesteps(200, steps)
    for name, deviation, mean in (("ddpm", 0.0, MEAN), ("ddpm_large", 1.0, 0.0)):
        heard.clear()
        moments(
            lambda x, fresh, name=name, deviation=deviation, mean=mean: ANCESTRAL[name](
                listening(deviation, mean), x, schedule, steps, fresh=fresh
            ),
            steps,
        )
        for time, x in zip(times, heard, strict=True):
            alpha_bar = float(schedule.alpha_bar[time])
            assert float(x[0]) == pytest.approx(math.sqrt(alpha_bar) * mean, abs=1e-9)
            variance = float((x[1:] - x[0]).square().sum())
            assert variance == pytest.approx(alpha_bar * deviation**2 + 1 - alpha_bar, abs=1e-9)


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance() -> None:
    schedule = NoiseSchedule("cosine", 100)
    noise = torch.randn(3, 2, dtype=torch.float64)
    for steps in (2, 13, 100):
        one = ddim(exact_denoiser(schedule), noise, schedule, steps, eta=1.0)
        other = ddpm(exact_denoiser(schedule), noise, schedule, steps)
        assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_error_falls_with_the_samplers_order(name: SamplerName, order: int) -> None:
    # a linear schedule, whose log-SNR is finite and smooth down to t = 0
    schedule = NoiseSchedule("linear", 8001)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = flow(schedule, noise)
    errors = [
        float((SAMPLERS[name](exact_denoiser(schedule), noise, schedule, steps + 1) - exact).abs().max())
        for steps in (125, 250, 500)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_twenty_steps_come_close_although_log_snr_leaps_at_the_end(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 1000)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    error = SAMPLERS[name](exact_denoiser(schedule), noise, schedule, 20) - flow(schedule, noise)
    assert float(error.abs().max()) < {"ddim": 0.1, "dpmpp_2m": 0.01}[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule_name", ["cosine", "jsd"])
def test_a_denoiser_that_knows_the_picture_is_believed(
    name: SamplerName, schedule_name: ScheduleName
) -> None:
    schedule = NoiseSchedule(schedule_name, 50)
    picture = torch.rand(2, 3, 4, 4)
    drawn = SAMPLERS[name](lambda x, t: picture, torch.randn(2, 3, 4, 4), schedule, 7)
    assert torch.equal(drawn, picture)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("schedule_name", ["cosine", "jsd"])
def test_each_step_asks_the_denoiser_once_and_leaves_the_noise_alone(
    name: SamplerName, steps: int, schedule_name: ScheduleName
) -> None:
    schedule = NoiseSchedule(schedule_name, 50)
    asked: list[list[int]] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return x * 0.5

    noise = torch.randn(2, 3)
    before = noise.clone()
    drawn = SAMPLERS[name](denoise, noise, schedule, steps)
    assert [times[0] for times in asked] == spaced_timesteps(50, steps)
    assert all(times == [times[0]] * 2 for times in asked)
    assert torch.isfinite(drawn).all()
    assert drawn.dtype == noise.dtype
    assert torch.equal(noise, before)


@pytest.mark.parametrize("name", NAMES)
def test_self_conditioning_shows_the_estimate_of_the_step_before(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 50)
    shown: list[Tensor | None] = []
    said: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor, before: Tensor | None) -> Tensor:
        shown.append(before)
        said.append(x * 0.5 if before is None else x * 0.3 + before * 0.1)
        return said[-1]

    sampler = SAMPLERS[name]
    for _ in range(2):  # a second drawing begins without an estimate too
        shown.clear()
        said.clear()
        drawn = sampler(denoise, torch.randn(2, 3), schedule, 5, self_cond=True)
        assert shown[0] is None
        assert all(one is other for one, other in zip(shown[1:], said, strict=False))
        assert drawn is said[-1]


@pytest.mark.parametrize("name", ["ddpm", "ddpm_large"])
def test_a_sample_follows_from_its_own_row_of_noise(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 50)
    noise = torch.randn(3, 2)
    together = SAMPLERS[name](exact_denoiser(schedule), noise, schedule, 9)
    again = SAMPLERS[name](exact_denoiser(schedule), noise, schedule, 9)
    alone = SAMPLERS[name](exact_denoiser(schedule), noise[1:2], schedule, 9)
    assert torch.equal(together, again)
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_fresh_noise_is_standard_normal_and_never_the_same() -> None:
    noise = torch.randn(4, 5000)
    fresh: FreshNoise = noise_after(noise)
    draws = [noise, fresh(), fresh()]
    assert all(draw.shape == noise.shape for draw in draws)
    correlation = torch.corrcoef(torch.cat(draws)) - torch.eye(12)
    assert float(correlation.abs().max()) < 0.07
    assert all(float(draw.std()) == pytest.approx(1, abs=0.03) for draw in draws)
