"""The near-copy distance: near 0 for a copy of one picture, near 1 for what is like many, blurred or not."""

import pytest
import torch
from torch import Tensor

from decoder_train.config import StopConfig
from decoder_train.copies import CopyWatch, looked_at, relative_distance


def pictures(count: int, seed: int) -> Tensor:
    """Smooth random pictures (N, 3, 32, 32), of one world for every seed."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def test_the_distance_is_a_share_of_the_usual_one() -> None:
    train = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    found = relative_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), train)
    usual = (1 + (9 + 9) ** 0.5 + (36 + 49) ** 0.5) / 3
    assert found.tolist() == pytest.approx([0, 0, 1 / usual])
    own = relative_distance(train, train, torch.arange(3))
    assert own.tolist() == pytest.approx([5 / 7.5, 1, 5 / 7.5])


def test_a_copy_is_near_a_new_picture_and_a_blur_are_not() -> None:
    train, new = pictures(30, 1), pictures(30, 2)
    blur = train.mean(dim=0, keepdim=True)
    shown = [relative_distance(looked_at(part), looked_at(train)) for part in (train + 0.01, new, blur)]
    assert float(shown[0].max()) < 0.2
    assert float(shown[1].min()) > 0.5
    # by plain distance a blur is nearer to training pictures than any new one is
    plain = [torch.cdist(looked_at(part), looked_at(train)).min(dim=1).values for part in (new, blur)]
    assert float(plain[1].max()) < float(plain[0].min())
    assert float(shown[2].max()) > float(shown[1].mean())


@pytest.mark.parametrize(("held_out", "is_joined"), [(30, False), (3, True)])
def test_few_held_out_pictures_are_joined_by_those_of_training(held_out: int, is_joined: bool) -> None:
    train, unseen = pictures(30, 1), pictures(held_out, 2)
    watch = CopyWatch(train, unseen, StopConfig(quantile=0.5))
    features = looked_at(train)
    real = relative_distance(looked_at(unseen), features)
    if is_joined:
        real = torch.cat([real, relative_distance(features, features, torch.arange(30))])
    assert watch.figures(unseen)["copy_pixels_real"] == pytest.approx(float(real.quantile(0.5)))


def test_copies_are_a_reason_to_stop_and_new_pictures_none() -> None:
    train = pictures(30, 1)
    watch = CopyWatch(train, pictures(30, 2), StopConfig(quantile=0.1))
    figures = watch.figures(pictures(16, 3))
    assert watch.reason(figures) == ""
    half = watch.figures(torch.cat([train[:9] + 0.005, pictures(7, 3)]))
    assert "drawings copy" in watch.reason(half)
    assert "in pixels" in watch.reason(half)
    fewer = watch.figures(torch.cat([train[:3] + 0.005, pictures(13, 3)]))
    assert watch.reason(fewer) == ""


def test_a_reference_clip_looks_too(tiny_world: object) -> None:
    from crest.models.clip import load_clip

    clip = load_clip(tiny_world.folder / "runs" / "clip_train")  # type: ignore[attr-defined]
    train = pictures(30, 1)
    watch = CopyWatch(train, pictures(30, 2), StopConfig(quantile=0.1), clip)
    figures = watch.figures(train[:8])
    assert set(figures) == {"copy_pixels", "copy_pixels_real", "copy_clip", "copy_clip_real"}
    assert figures["copy_clip"] == pytest.approx(0, abs=0.05)
