"""Figures of drawn embeddings: exact where the draws are known, and never flattered by what is broken."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prior_train.figures import similarities


def unit(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_truth_is_found_every_time() -> None:
    image, text = unit(20, 8, 0), unit(20, 8, 1)
    figures = similarities(image, image, text)
    assert figures["drawn_to_image"] == pytest.approx(1.0, abs=1e-6)
    assert (figures["drawn_r_at_1"], figures["drawn_r_at_5"]) == (1.0, 1.0)
    assert figures["drawn_to_text"] == pytest.approx(figures["text_to_image"], abs=1e-6)


def test_a_shuffled_draw_is_told_from_a_true_one() -> None:
    image = unit(20, 8, 0)
    figures = similarities(image.roll(1, dims=0), image, unit(20, 8, 1))
    assert figures["drawn_r_at_1"] == 0.0
    assert figures["drawn_to_image"] < 0.5


def test_what_a_shuffle_would_give_is_the_mean_over_all_others() -> None:
    drawn, image = unit(4, 3, 2), unit(4, 3, 3)
    others = [float(drawn[i] @ image[j]) for i in range(4) for j in range(4) if i != j]
    found = similarities(drawn, image, drawn)["drawn_to_other_image"]
    assert found == pytest.approx(sum(others) / 12, abs=1e-6)


def test_chance_is_what_blind_draws_find() -> None:
    image = unit(1000, 24, 4)
    figures = similarities(unit(1000, 24, 5), image, unit(1000, 24, 6))
    assert figures["chance_r_at_5"] == pytest.approx(0.005)
    assert figures["drawn_r_at_5"] == pytest.approx(0.005, abs=0.008)
    assert similarities(image[:3], image[:3], image[:3])["chance_r_at_5"] == 1.0


def test_ranks_count_the_nearest() -> None:
    image = torch.eye(8)
    drawn = F.normalize(torch.eye(8) + 2 * torch.eye(8).roll(1, dims=1), dim=1)
    figures = similarities(drawn, image, image)
    assert (figures["drawn_r_at_1"], figures["drawn_r_at_5"]) == (0.0, 1.0)


def test_a_picture_that_is_there_twice_is_found_either_time() -> None:
    image = unit(6, 8, 0)
    image[3] = image[0]
    assert similarities(image, image, image)["drawn_r_at_1"] == 1.0


def test_what_is_no_number_is_found_nowhere() -> None:
    image = unit(6, 8, 0)
    figures = similarities(torch.full_like(image, float("nan")), image, image)
    assert (figures["drawn_r_at_1"], figures["drawn_r_at_5"]) == (0.0, 0.0)
