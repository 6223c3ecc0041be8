"""Ranks by hand: ties, duplicates, both directions."""

import pytest
import torch

from clip_train.retrieval import ranks, recall, retrieval_metrics


def test_the_rank_counts_the_wrong_answers_before_the_right_one() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.9, 0.8, 0.1]])
    assert ranks(similarity, torch.arange(3)).tolist() == [1.0, 2.0, 3.0]


def test_a_tie_counts_half() -> None:
    assert ranks(torch.zeros(5, 5), torch.arange(5)).tolist() == [3.0] * 5  # the middle of five equals
    similarity = torch.tensor([[0.5, 0.5, 0.9], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    assert ranks(similarity, torch.arange(3)).tolist() == [2.5, 1.0, 1.0]


def test_every_picture_of_an_equal_caption_is_a_right_answer() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert ranks(similarity, torch.tensor([7, 7, 8])).tolist() == [1.0, 1.0, 3.0]


def test_a_model_that_says_the_same_of_all_is_at_chance() -> None:
    embed = torch.nn.functional.normalize(torch.ones(100, 4), dim=1)
    metrics = retrieval_metrics(embed, embed, torch.arange(100))
    assert metrics["r_at_1"] == 0.0  # not 1: a constant model gets no credit for ties
    assert metrics["text_to_image_median_rank"] == 50.5
    assert metrics["chance_r_at_1"] == pytest.approx(0.01)


def test_a_model_that_knows_every_pair_is_perfect_both_ways() -> None:
    embed = torch.eye(6)
    metrics = retrieval_metrics(embed, embed, torch.arange(6))
    assert metrics["text_to_image_r_at_1"] == metrics["image_to_text_r_at_1"] == metrics["r_at_1"] == 1.0
    assert metrics["image_to_text_median_rank"] == 1.0


def test_the_two_directions_are_told_apart() -> None:
    image, text = torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    metrics = retrieval_metrics(image, text, torch.arange(3))
    assert metrics["text_to_image_r_at_1"] == pytest.approx(2 / 3)
    assert metrics["image_to_text_r_at_1"] == pytest.approx(1 / 3)  # 0 ties with 1, and 1 ties with all


def test_recall_is_the_share_within_k() -> None:
    assert recall(torch.tensor([1.0, 1.5, 2.0, 6.0]), 1) == 0.25
    assert recall(torch.tensor([1.0, 1.5, 2.0, 6.0]), 5) == 0.75
