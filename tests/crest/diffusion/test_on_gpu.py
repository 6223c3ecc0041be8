"""What runs in every training step never waits for the GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crest.config import SamplerName
from crest.diffusion.learned_variance import hybrid_loss, split_prediction, variational_bound
from crest.diffusion.lowres import augment, random_augmentation
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.diffusion.prediction import loss_weight, target, to_x_start
from crest.diffusion.sampling import SAMPLERS
from crest.diffusion.timesteps import stratified_timesteps

SCHEDULE = NoiseSchedule("cosine", 100)


def step(device: str) -> Tensor:
    """A training step's diffusion from given numbers, and its gradient."""
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(4, 8, generator=draw).to(device)
    x_start, noise = (torch.randn(8, 3, 8, 8, generator=draw).to(device) for _ in range(2))
    output = torch.randn(8, 6, 8, 8, generator=draw).to(device).requires_grad_()
    return counted(x_start, noise, output, uniform)


def counted(x_start: Tensor, noise: Tensor, output: Tensor, uniform: Tensor) -> Tensor:
    t = stratified_timesteps(0, uniform[0], SCHEDULE.timesteps)
    shown = augment(x_start, random_augmentation(*uniform[1:].unbind()), noise)
    x_t = add_noise(SCHEDULE, x_start, noise, t)
    alpha, sigma = SCHEDULE.alpha(t, 4), SCHEDULE.sigma(t, 4)
    predicted, fraction = split_prediction(output)
    error = (predicted - target("v", x_start, noise, alpha, sigma)).square().flatten(1).mean(dim=1)
    error = error * loss_weight("v", SCHEDULE.log_snr(t), 5.0)
    bound = variational_bound("v", predicted, fraction, x_start, x_t, t, SCHEDULE)
    loss = hybrid_loss(error, bound, SCHEDULE.timesteps) + shown.mean()
    loss.mean().backward()
    assert output.grad is not None
    return torch.cat((loss.detach(), output.grad.flatten()))


def drawn(name: SamplerName, device: str) -> Callable[[], Tensor]:
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return to_x_start("v", x.sin(), x, SCHEDULE.alpha(t, 4), SCHEDULE.sigma(t, 4))

    return lambda: SAMPLERS[name](denoise, noise, SCHEDULE, 6)


@pytest.mark.gpu
def test_a_step_is_the_cpus_and_waits_for_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(4, 8, generator=draw).cuda()
    x_start, noise = (torch.randn(8, 3, 8, 8, generator=draw).cuda() for _ in range(2))
    output = torch.randn(8, 6, 8, 8, generator=draw).cuda().requires_grad_()
    assert torch.allclose(step("cuda").cpu(), step("cpu"), rtol=1e-3, atol=1e-4)  # tables are copied here
    torch.cuda.set_sync_debug_mode("error")
    try:
        counted(x_start, noise, output, uniform)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_a_sampler_is_the_cpus_and_waits_for_nothing(name: SamplerName) -> None:
    draw = drawn(name, "cuda")
    assert torch.allclose(draw().cpu(), drawn(name, "cpu")(), rtol=1e-3, atol=1e-4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddpm", "ddpm_large"])
def test_noise_on_the_way_is_the_same_on_every_device(name: SamplerName) -> None:
    assert torch.allclose(drawn(name, "cuda")().cpu(), drawn(name, "cpu")(), rtol=1e-3, atol=1e-4)


def test_the_step_that_the_gpu_is_asked_for_is_deterministic() -> None:
    assert torch.equal(step("cpu"), step("cpu"))
    assert torch.isfinite(step("cpu")).all()
