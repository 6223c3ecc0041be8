"""Timesteps of training and validation, and the loss in bands of them."""

import pytest
import torch

from crest.diffusion.timesteps import even_timesteps, loss_by_band, stratified_timesteps


@pytest.mark.parametrize("first", [0, 3, 8])
def test_each_eight_neighbours_cover_all_eighths(first: int) -> None:
    t = stratified_timesteps(first, torch.rand(32), 1000)
    assert t.dtype == torch.int64
    for start in range(0, 32 - 8 + 1):
        assert sorted((t[start : start + 8] // 125).tolist()) == list(range(8))


def test_over_many_places_every_timestep_is_as_likely() -> None:
    t = stratified_timesteps(0, torch.rand(80_000, generator=torch.Generator().manual_seed(0)), 20)
    counts = torch.bincount(t, minlength=20) / 80_000
    assert counts.tolist() == pytest.approx([0.05] * 20, abs=0.004)


def test_devices_draw_what_one_would_have_drawn() -> None:
    draws = torch.rand(12)
    whole = stratified_timesteps(0, draws, 100)
    assert torch.equal(whole[5:], stratified_timesteps(5, draws[5:], 100))


def test_the_largest_draw_is_still_a_timestep() -> None:
    draws = torch.full((8,), 1 - 2**-24)
    assert stratified_timesteps(0, draws, 1000).tolist()[-1] == 999
    assert int(stratified_timesteps(0, draws, 10**7).max()) < 10**7


def test_validation_has_the_same_even_timesteps_in_any_chunks() -> None:
    whole = even_timesteps(0, 10, 10, 1000, "cpu")
    assert whole.tolist() == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    assert torch.equal(whole[3:7], even_timesteps(3, 4, 10, 1000, "cpu"))


def test_bands_are_means_of_what_falls_into_them() -> None:
    errors = torch.tensor([1.0, 3.0, 10.0, 7.0])
    t = torch.tensor([0, 249, 250, 999])
    assert loss_by_band(errors, t, 1000) == {"loss_t1of4": 2.0, "loss_t2of4": 10.0, "loss_t4of4": 7.0}
    assert loss_by_band(errors, t, 1000, [1, 250]) == {
        "loss_t1of3": 1.0,
        "loss_t2of3": 3.0,
        "loss_t3of3": 8.5,
    }
    assert loss_by_band(errors[:0], t[:0], 1000) == {}
