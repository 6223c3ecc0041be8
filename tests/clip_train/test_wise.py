"""Interpolated weights: exact at both ends, chosen by held-out figures, refused past the drift allowed."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clip_train.probe import Probe, drift
from clip_train.wise import Sweep, interpolate, sweep
from crest.errors import ConfigError, WeightsError
from crest.models.clip import ClipModel, ClipSpec

SPEC = ClipSpec(
    custom={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 714, "width": 24, "heads": 2, "layers": 1},
    },
    bpe_merges=200,
)


def tiny(seed: int) -> ClipModel:
    torch.manual_seed(seed)
    return ClipModel(SPEC)


@pytest.fixture(scope="module")
def ends() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start, tuned = tiny(0), tiny(1)
    with torch.no_grad():
        for module in tuned.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.num_batches_tracked is not None
                module.running_mean += 0.3
                module.num_batches_tracked += 7
    return start.state_dict(), tuned.state_dict()


def test_the_ends_are_exact_and_the_middle_is_the_mean() -> None:
    start = {"a": torch.tensor([1.0, 0.1, 1e30]), "n": torch.tensor(3)}
    tuned = {"a": torch.tensor([3.0, 0.7, 1.0]), "n": torch.tensor(9)}
    for alpha, end in ((0.0, start), (1.0, tuned)):
        assert torch.equal(interpolate(start, tuned, alpha)["a"], end["a"])
    half = interpolate(start, tuned, 0.5)
    assert half["a"].tolist() == pytest.approx([2.0, 0.4, 5e29])
    assert interpolate(start, tuned, 0.25)["a"][0] == 1.5
    assert [int(interpolate(start, tuned, alpha)["n"]) for alpha in (0.0, 0.5, 1.0)] == [9, 9, 9]


def test_locked_weights_stay_as_they_are_bit_by_bit() -> None:
    locked = torch.randn(1000) * 10 ** torch.linspace(-30, 30, 1000)
    for alpha in (0.1, 0.3, 1 / 3, 0.77):
        assert torch.equal(interpolate({"w": locked}, {"w": locked.clone()}, alpha)["w"], locked)


def test_inputs_are_not_touched_and_not_shared() -> None:
    start, tuned = {"a": torch.zeros(2), "n": torch.tensor(1)}, {"a": torch.ones(2), "n": torch.tensor(2)}
    for alpha in (0.0, 0.5, 1.0):
        mixed = interpolate(start, tuned, alpha)
        mixed["a"] += 5
        mixed["n"] += 5
    assert start["a"].tolist() == [0, 0]
    assert tuned["a"].tolist() == [1, 1]
    assert (int(start["n"]), int(tuned["n"])) == (1, 2)


def test_a_half_precision_start_mixes_in_float32() -> None:
    start, tuned = {"a": torch.tensor([1.0]).half()}, {"a": torch.tensor([1.0001])}
    mixed = interpolate(start, tuned, 0.5)["a"]
    assert mixed.dtype == torch.float32
    assert float(mixed) == pytest.approx(1.00005, abs=1e-7)


def test_running_statistics_are_interpolated_and_counters_are_the_tuned_ones(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    start, tuned = ends
    mixed = interpolate(start, tuned, 0.5)
    means = [name for name in mixed if name.endswith("running_mean")]
    counters = [name for name in mixed if name.endswith("num_batches_tracked")]
    assert means
    assert counters
    for name in means:
        assert torch.allclose(mixed[name], (start[name] + tuned[name]) / 2)
    assert all(int(mixed[name]) == int(tuned[name]) == 7 for name in counters)
    tiny(2).load_state_dict(mixed, strict=True)


def test_weights_of_two_architectures_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"^a: is \(2,\) in the start's weights and \(3,\) in the tuned"):
        interpolate({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, 0.5)
    with pytest.raises(WeightsError, match=r"^b: is \(2,\) in the start's weights and None in the tuned"):
        interpolate({"b": torch.zeros(2)}, {}, 0.5)
    with pytest.raises(WeightsError, match=r"^b: is None in the start's weights"):
        interpolate({}, {"b": torch.zeros(2)}, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_a_share_outside_of_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"judge\.wise_ft: found .*, expected shares from 0 to 1"):
        interpolate({}, {}, alpha)


def swept(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
    worth: Callable[[float], float],
    drifts: Callable[[float], float] = lambda alpha: alpha,
    alphas: tuple[float, ...] = (1.0, 0.0, 0.5, 0.25),
    **settings: object,
) -> tuple[Sweep, float]:
    """A sweep judged by where the model stands, and the share that the model holds afterwards."""
    start, tuned = ends
    name = "clip.text_projection"

    def share(model: ClipModel) -> float:
        whole = tuned[name] - start[name]
        return round(
            float(((model.state_dict()[name] - start[name]) * whole).sum() / whole.square().sum()), 4
        )

    def score(model: ClipModel) -> dict[str, float]:
        alpha = share(model)
        return {"r_at_5": worth(alpha), "median_rank": -worth(alpha), "drift": drifts(alpha)}

    model = tiny(5)
    chosen = {"best_by": "r_at_5", "max_drift": None, **settings}
    found = sweep(model, start, tuned, alphas, score, **chosen)  # type: ignore[arg-type]
    return found, share(model)


def test_the_best_share_is_chosen_and_left_in_the_model(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    found, left = swept(ends, lambda alpha: 1 - (alpha - 0.5) ** 2)
    assert (found.alpha, left, found.refused) == (0.5, 0.5, None)
    assert [row.alpha for row in found.rows] == [0.0, 0.25, 0.5, 1.0]
    assert [row.metrics["drift"] for row in found.rows] == [0.0, 0.25, 0.5, 1.0]
    assert swept(ends, lambda alpha: 1 - (alpha - 0.5) ** 2, best_by="median_rank")[0].alpha == 0.5


def test_of_equal_shares_the_one_that_moved_least_is_chosen(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    assert swept(ends, lambda alpha: min(alpha, 0.25))[0].alpha == 0.25
    found, left = swept(ends, lambda alpha: 0.3)
    assert (found.alpha, left, found.refused) == (0.0, 0.0, None)  # tuning gained nothing: the start is kept


def test_what_drifted_past_the_limit_is_not_chosen(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    found, left = swept(ends, lambda alpha: alpha, max_drift=0.5)
    assert (found.alpha, left, found.refused) == (0.5, 0.5, None)
    assert len(found.rows) == 4  # all are shown


def test_nothing_is_promoted_when_all_that_moved_drifted_too_far(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    found, left = swept(ends, lambda alpha: alpha, lambda alpha: 2 * alpha, max_drift=0.1)
    assert (found.alpha, left) == (0.0, 0.0)
    assert found.refused is not None
    assert (
        "drifted by 0.500 at a share of 0.25 of the tuned weights, expected at most judge.max_drift = 0.1"
        in (found.refused)
    )
    alone, left = swept(ends, lambda alpha: alpha, alphas=(1.0,), max_drift=0.1)  # without a sweep
    assert (alone.alpha, left) == (0.0, 0.0)
    assert alone.refused is not None


def test_a_drift_or_figure_that_is_no_number_is_not_promoted(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    found, _ = swept(ends, lambda alpha: alpha, lambda alpha: math.nan if alpha else 0.0, max_drift=0.1)
    assert found.alpha == 0.0
    assert found.refused is not None
    broken, _ = swept(ends, lambda alpha: math.nan if alpha else 0.2)
    assert broken.alpha == 0.0
    assert broken.refused is not None
    assert "have r_at_5 = nan on the validation split" in broken.refused
    partly, _ = swept(ends, lambda alpha: math.nan if alpha == 1 else alpha)
    assert (partly.alpha, partly.refused) == (0.5, None)


def test_a_sweep_of_nothing_is_refused(ends: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    with pytest.raises(ConfigError, match=r"judge\.wise_ft: is empty"):
        swept(ends, lambda alpha: alpha, alphas=())


def test_drift_grows_along_the_way_from_the_start_to_the_tuned_weights(
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    start, tuned = ends
    near = interpolate(start, tuned, 0.2)  # as far as fine-tuning goes, rather than another random network
    model, probe = tiny(5), Probe(32)
    model.load_state_dict(start)
    before = probe.embed(model)
    found = sweep(
        model,
        start,
        near,
        (0.0, 0.25, 0.5, 0.75, 1.0),
        lambda tried: {"r_at_5": 0.5, **drift(before, probe.embed(tried))},
        best_by="r_at_5",
        max_drift=None,
    )
    values = [row.metrics["drift"] for row in found.rows]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert len(set(values)) == 5
