"""Who computes, on what, in which arithmetic; and random numbers that belong to a sample alone."""

import itertools
import platform
import subprocess
import sys

import pytest
import torch

from crest.errors import ConfigError, DeviceError
from crest.world import DRAW_CHUNK, Draw, World, fast_bf16, mix_seed, open_world, pick_device, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("bounds", [(0, 8, 16, 24), (0, 12, 24), (0, 5, 6, 19, 24), tuple(range(25))])
def test_shares_of_a_batch_draw_what_the_whole_batch_draws(kind: str, bounds: tuple[int, ...]) -> None:
    whole = getattr(Draw(7, 3, 0, 24), kind)(1, 2, 5)
    shares = [
        getattr(Draw(7, 3, first, last - first), kind)(1, 2, 5) for first, last in itertools.pairwise(bounds)
    ]
    assert torch.equal(torch.cat(shares), whole)


def test_dropped_conditions_fall_on_the_same_samples_however_the_batch_is_shared() -> None:
    whole = Draw(7, 3, 0, 4096).keep(5, 0.3)
    assert torch.equal(
        torch.cat([Draw(7, 3, 0, 2048).keep(5, 0.3), Draw(7, 3, 2048, 2048).keep(5, 0.3)]), whole
    )
    assert 0.67 < float(whole.float().mean()) < 0.73
    assert Draw(7, 3, 0, 64).keep(5, 0.0).all()


def test_a_draw_does_not_touch_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Draw(1, 2, 0, 9).normal(1, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [Draw(8, 3, 0, 8), Draw(7, 4, 0, 8), Draw(7, 3, DRAW_CHUNK, 8)])
def test_another_seed_step_or_place_draws_other_numbers(other: Draw) -> None:
    assert not torch.equal(other.normal(1, 4), Draw(7, 3, 0, 8).normal(1, 4))


def test_another_purpose_draws_other_numbers() -> None:
    draw = Draw(7, 3, 0, 8)
    assert not torch.equal(draw.normal(1, 4), draw.normal(2, 4))


def test_draws_are_normal_and_uniform() -> None:
    draw = Draw(1, 1, 0, 4000)
    normal, uniform = draw.normal(1, 8), draw.uniform(1, 8)
    assert float(normal.mean().abs()) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01


def test_mixed_seeds_differ_for_neighbours_and_fit_into_63_bits() -> None:
    seeds = {mix_seed(seed, step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert mix_seed(1) == 0x910A2DEC89025CC1 >> 1  # splitmix64's first number after state 1


def test_auto_precision_on_a_cpu_is_bf16_or_fp32_as_the_processor_likes() -> None:
    assert pick_precision("auto", CPU) == ("bf16" if fast_bf16(CPU) else "fp32")


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'run\.precision: "fp16" on a CPU .* take "auto"'):
        pick_precision("fp16", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(
        DeviceError, match=f'run.device: "{name}" was asked for, but this machine has no CUDA'
    ):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "mps", "cpu:x", ""])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match='expected "auto", "cpu", "cuda" or "cuda:N"'):
        pick_device(name)


def shared(size: int) -> World:
    return World(0, size, CPU, "fp32", open_world("cpu", "fp32").accelerator)


@pytest.mark.parametrize(
    ("size", "batch_size", "device_batch_size", "share"),
    [(1, 32, None, (32, 32)), (1, 32, 8, (32, 8)), (2, 32, 8, (16, 8)), (4, 32, 64, (8, 8))],
)
def test_accumulation_is_derived(
    size: int, batch_size: int, device_batch_size: int, share: tuple[int, int]
) -> None:
    assert shared(size).share(batch_size, device_batch_size) == share


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size: 32 over 3 processes"):
        shared(3).share(32, None)
    with pytest.raises(ConfigError, match=r"optim\.device_batch_size: 5 does not divide the 32 samples"):
        shared(1).share(32, 5)


def test_one_process_is_a_world_of_its_own() -> None:
    world = open_world("cpu", "bf16")
    assert (world.rank, world.size, world.is_main, world.device.type) == (0, 1, True, "cpu")
    with world.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert world.mean({"loss": 2.5}) == {"loss": 2.5}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees as it likes")
def test_freed_memory_serves_the_next_tensor() -> None:
    """Pages that the system hands out a second time are counted by it."""
    code = """
import resource, torch
from crest.world import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = pages()
keep_freed_memory()
pages()  # the first round finds room
print(given_back, pages())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given_back, kept = map(int, ran.stdout.split())
    assert kept < given_back / 10
