"""Which sample stands where: groups in equal parts, classes at a fixed share, all from seed and step."""

from collections import Counter

import numpy as np
import pytest
import torch

from crest.errors import DataError
from crest.mixing import Mix, grouped, weighed
from crest.preservation_config import PreservationConfig


def test_groups_are_drawn_equally_often_however_many_pictures_they_have() -> None:
    mix = Mix(grouped(["a", "b", "b", "a", "b", "b", "b"]))
    drawn = np.concatenate([mix.at(5, 6, step)[0] for step in range(70)])
    counts = Counter(drawn.tolist())
    assert counts[0] == counts[3] == 105  # two pictures of "a" share 210 places
    assert [counts[number] for number in (1, 2, 4, 5, 6)] == [42] * 5


def test_a_group_is_seen_whole_before_any_of_it_comes_again() -> None:
    mix = Mix(grouped(["only"] * 5))
    drawn = np.concatenate([mix.at(1, 4, step)[0] for step in range(5)])
    for first in range(0, 20, 5):
        assert sorted(drawn[first : first + 5]) == [0, 1, 2, 3, 4]
    assert drawn[:5].tolist() != drawn[5:10].tolist()


@pytest.mark.parametrize(("share", "batch_size", "count"), [(0.5, 16, 8), (0.25, 16, 4), (0.5, 6, 3)])
def test_every_batch_has_the_same_share_of_classes(share: float, batch_size: int, count: int) -> None:
    mix = Mix(grouped("aabb"), class_count=10, class_share=share)
    for step in range(20):
        numbers, is_class = mix.at(3, batch_size, step)
        assert is_class.sum() == count
        assert numbers[is_class].max() < 10
        assert numbers[~is_class].max() < 4


def test_no_place_of_a_batch_belongs_to_classes_for_good() -> None:
    """Timesteps are spread over the places; a kind of sample that kept its places would never see some."""
    mix = Mix(grouped("ab"), class_count=10, class_share=0.5)
    often = np.mean([mix.at(0, 16, step)[1] for step in range(400)], axis=0)
    assert (abs(often - 0.5) < 0.1).all()


def test_a_batch_follows_from_seed_and_step() -> None:
    mix = Mix(grouped("aabbb"), class_count=7, class_share=0.5)
    again = Mix(grouped("aabbb"), class_count=7, class_share=0.5)
    for first, second in zip(mix.at(9, 8, 31), again.at(9, 8, 31), strict=True):
        assert first.tolist() == second.tolist()
    assert any(mix.at(9, 8, step)[0].tolist() != mix.at(8, 8, step)[0].tolist() for step in range(3))


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_of_no_sample_is_refused(share: float) -> None:
    with pytest.raises(DataError, match=r"preservation\.share"):
        Mix(grouped("ab"), class_count=3, class_share=share).at(0, 8, 0)


def test_class_samples_count_by_their_weight() -> None:
    error, is_class = torch.tensor([1.0, 3.0, 10.0, 20.0]), torch.tensor([False, False, True, True])
    loss, figures = weighed(error, is_class, PreservationConfig(prompts=("x",), weight=0.5), 4)
    # half of the sum of two means, the second at its weight
    assert float(loss) == pytest.approx((2 + 0.5 * 15) / 2)
    assert float(figures["subject_loss"]) == pytest.approx(2)
    assert float(figures["class_loss"]) == pytest.approx(15)
    plain, nothing = weighed(error, None, None, 4)
    assert float(plain) == pytest.approx(8.5)
    assert nothing == {}
