"""Samplers on a Gaussian, whose denoiser and probability flow are known exactly."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from crest.config import SamplerName
from crest.diffusion.noise_schedule import NoiseSchedule
from crest.diffusion.sampling import SAMPLERS, Denoiser

MEAN, DEVIATION = 0.7, 0.5
NAMES: tuple[SamplerName, ...] = tuple(SAMPLERS)


def gaussian(schedule: NoiseSchedule) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim)
        gain = DEVIATION**2 * alpha / (alpha**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return denoise


def flow(schedule: NoiseSchedule, x: Tensor) -> Tensor:
    """Where the probability flow takes x_T: standard scores stay, and the last step lands on E[x_0 | it]."""

    def spread(t: int) -> tuple[float, float]:
        alpha_bar = float(schedule.alpha_bar[t])
        return math.sqrt(alpha_bar), math.sqrt(alpha_bar * DEVIATION**2 + 1 - alpha_bar)

    (alpha_last, wide), (alpha_first, narrow) = spread(schedule.timesteps - 1), spread(0)
    at_first = alpha_first * MEAN + narrow * (x - alpha_last * MEAN) / wide
    return gaussian(schedule)(at_first, torch.zeros(len(x), dtype=torch.long))


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_variance_of_the_data_are_reached(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 1000)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = SAMPLERS[name](gaussian(schedule), noise, schedule, 50)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(drawn.std()) == pytest.approx(DEVIATION, abs=0.015)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_error_falls_with_the_samplers_order(name: SamplerName, order: int) -> None:
    # a linear schedule, whose log-SNR is finite and smooth down to t = 0
    schedule = NoiseSchedule("linear", 8001)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = flow(schedule, noise)
    errors = [
        float((SAMPLERS[name](gaussian(schedule), noise, schedule, steps + 1) - exact).abs().max())
        for steps in (125, 250, 500)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_come_close_although_log_snr_leaps_at_the_end(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 1000)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    error = (SAMPLERS[name](gaussian(schedule), noise, schedule, 20) - flow(schedule, noise)).abs().max()
    assert float(error) < {"ddim": 0.1, "dpmpp_2m": 0.01}[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_that_knows_the_picture_is_believed(name: SamplerName) -> None:
    schedule = NoiseSchedule("cosine", 50)
    picture = torch.rand(2, 3, 4, 4)
    drawn = SAMPLERS[name](lambda x, t: picture, torch.randn(2, 3, 4, 4), schedule, 7)
    assert torch.equal(drawn, picture)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_each_step_asks_the_denoiser_once_and_leaves_the_noise_alone(name: SamplerName, steps: int) -> None:
    schedule = NoiseSchedule("cosine", 50)
    asked: list[list[int]] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return x * 0.5

    noise = torch.randn(2, 3)
    before = noise.clone()
    drawn = SAMPLERS[name](denoise, noise, schedule, steps)
    assert len(asked) == steps
    assert all(times == [times[0]] * 2 for times in asked)
    assert torch.isfinite(drawn).all()
    assert torch.equal(noise, before)
