"""Sizes are stepped alone and shared, and what was measured is what is drawn."""

import html

import pytest

from benchmarks import cost
from benchmarks.cost import Cost

MEASURED = [
    Cost("decoder", 64, 1, 4_000_000, 0.5, 900.0),
    Cost("decoder", 128, 1, 16_000_000, 1.5, 1900.0),
    Cost("decoder", 64, 2, 4_000_000, 0.375, 800.0),
    Cost("prior", 64, 1, 1_000_000, 0.125, 500.0),
]


@pytest.mark.parametrize("model", cost.MODELS)
def test_a_step_moves_all_weights_that_are_counted(model: cost.Model) -> None:
    step, weights = cost.step_of(model, 32, 2)
    step()
    trained = [weight for weight in cost.network(model, 32).parameters() if weight.requires_grad]
    assert weights == sum(weight.numel() for weight in trained) > 1e4


def test_every_figure_is_on_the_page_and_a_size_that_was_not_run_is_not() -> None:
    page = html.unescape(cost.drawn(MEASURED, "a machine, commit abc"))
    for one in MEASURED:
        for cell in (f"{one.seconds:.3f}", f"{one.peak_mb:.0f}", f"{one.weights / 1e6:.1f}"):
            assert f">{cell}</td>" in page
    assert page.count("<polyline") == 6  # two curves of decoders and one of priors, in seconds and in memory
    assert "prior 128" not in page
    assert "a machine, commit abc" in page


@pytest.mark.slow
def test_two_processes_share_a_step() -> None:
    found = cost.measure("prior", 32, 2, steps=1)
    assert (found.model, found.dim, found.processes) == ("prior", 32, 2)
    assert found.seconds > 0
    assert found.peak_mb > 100
