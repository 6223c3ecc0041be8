"""What a network predicts, back and forth, and how its error is weighed."""

import pytest
import torch

from crest.config import Prediction
from crest.diffusion.prediction import loss_weight, target, to_epsilon, to_x_start

KINDS: tuple[Prediction, ...] = ("epsilon", "x_start", "v")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.999, 0.6, 0.05])
def test_a_perfect_prediction_gives_back_sample_and_noise(kind: Prediction, alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x_start, epsilon = (torch.randn(4, 3, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    a = torch.tensor(alpha, dtype=torch.float64)
    s = (1 - a**2).sqrt()
    x_t = a * x_start + s * epsilon
    back = to_x_start(kind, target(kind, x_start, epsilon, a, s), x_t, a, s)
    assert torch.allclose(back, x_start, atol=1e-12)
    assert torch.allclose(to_epsilon(back, x_t, a, s), epsilon, atol=1e-10)


def test_v_is_salimans_and_hos() -> None:
    three, five = torch.tensor(3.0), torch.tensor(5.0)
    assert float(target("v", three, five, torch.tensor(0.8), torch.tensor(0.6))) == pytest.approx(
        0.8 * 5 - 0.6 * 3
    )


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("epsilon", [1.0, 1.0, 0.5]), ("x_start", [0.1, 5.0, 5.0]), ("v", [0.1 / 1.1, 5 / 6, 5 / 11])],
)
def test_min_snr_weights_are_hangs(kind: Prediction, weights: list[float]) -> None:
    log_snr = torch.tensor([0.1, 5.0, 10.0]).log()
    assert loss_weight(kind, log_snr, 5.0).tolist() == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_every_timestep_weighs_alike(kind: Prediction) -> None:
    assert loss_weight(kind, torch.tensor([-8.0, 0.0, 8.0]), None).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.99, 0.7, 0.1])
def test_weighted_errors_of_one_mistake_are_equal_whatever_is_predicted(
    kind: Prediction, alpha: float
) -> None:
    """min-SNR weighs the error of x_0; the other two weights only translate it."""
    a = torch.tensor([alpha], dtype=torch.float64)
    s = (1 - a**2).sqrt()
    x_start, epsilon, mistake = (torch.tensor([value], dtype=torch.float64) for value in (0.3, -1.2, 0.25))
    x_t = a * x_start + s * epsilon
    wrong = x_start + mistake
    predicted = target(kind, wrong, to_epsilon(wrong, x_t, a, s), a, s)
    error = (predicted - target(kind, x_start, epsilon, a, s)).square()
    log_snr = (a**2 / s**2).log()
    weighted = float(error * loss_weight(kind, log_snr, 5.0))
    assert weighted == pytest.approx(float(mistake.square() * (a**2 / s**2).clamp(max=5.0)), rel=1e-9)
