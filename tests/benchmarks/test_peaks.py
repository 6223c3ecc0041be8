"""Work is counted exactly, and a peak is a speed that this machine reached."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import peaks
from benchmarks.harness import Case, measure, report, table


def test_work_is_two_operations_a_multiplication_on_the_way_back_too() -> None:
    left, right = torch.randn(30, 20, requires_grad=True), torch.randn(20, 40, requires_grad=True)
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert peaks.gflop(lambda: left @ right) == pytest.approx(2 * 30 * 20 * 40 / 1e9)
    assert peaks.gflop(lambda: (left @ right).sum().backward()) == pytest.approx(3 * 2 * 30 * 20 * 40 / 1e9)
    assert peaks.gflop(lambda: F.conv2d(image, kernel, padding=1)) == pytest.approx(
        2 * 2 * 64 * 5 * 3 * 9 / 1e9
    )


@pytest.mark.parametrize("kind", ["product", "convolution"])
def test_a_peak_is_measured(kind: peaks.Kind) -> None:
    assert 0.1 < peaks.peak_gflops(kind, "fp32", seconds=0.0) < 1e6


def test_a_share_is_the_works_speed_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "peak_gflops", lambda *_: 100.0)
    square = torch.randn(1000, 1000)
    found = peaks.share_of_peak("product", "bf16")(
        {"crest": lambda: square @ square}, {"crest": [0.1, 0.04, 9]}
    )
    assert found == {"gflop": 2.0, "gflops": 20.0, "peak_gflops_bf16_product": 100.0, "share_of_peak": 0.2}


def test_the_work_of_steps_that_differ_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "peak_gflops", lambda *_: 100.0)
    widths = iter((1000, 2000))
    square = torch.ones(1000, 1000)
    tell = peaks.share_of_peak("product", "fp32", counted=2)
    found = tell({"crest": lambda: square @ torch.ones(1000, next(widths))}, {"crest": [0.03]})
    assert (found["gflop"], found["share_of_peak"]) == (3.0, 1.0)


def test_a_cases_figures_are_in_its_report_and_its_table() -> None:
    case = Case(
        "toy",
        {"upstream": lambda: list, "crest": lambda: list},
        memory=False,
        rounds=1,
        figures=lambda steps, seconds: {
            "variants": float(len(steps)),
            "rounds_seen": float(len(seconds["crest"])),
        },
    )
    result = measure("toy", case)
    flat = report([result], {})
    assert (flat["variants.toy"], flat["rounds_seen.toy"]) == (2, 1)
    assert table([result]).endswith("toy: variants 2, rounds_seen 1")
