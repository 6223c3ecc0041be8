"""Losses by closed forms, and the contrastive step: in chunks and processes it is that of one big batch."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from clip_train.losses import contrastive_logits, gather, sigmoid_loss, softmax_loss
from crest.models.clip import ClipModel
from tests.clip_train.contrastive_ranks import LOSSES, SAMPLES, batch, build, gradients, loss_of, run_ranks

EYE = torch.eye(4, dtype=torch.bool)


def test_equal_logits_cost_the_logarithm_of_the_batch() -> None:
    assert float(softmax_loss(torch.zeros(4, 4), EYE)) == pytest.approx(math.log(4))
    assert float(sigmoid_loss(torch.zeros(4, 4), EYE)) == pytest.approx(4 * math.log(2))


def test_without_duplicates_it_is_the_loss_of_the_papers() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) * 5
    index, right = torch.arange(6), torch.eye(6, dtype=torch.bool)
    plain = (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
    assert float(softmax_loss(logits, right)) == pytest.approx(float(plain), rel=1e-6)
    signs = 2 * torch.eye(6) - 1
    by_hand = sum(
        math.log1p(math.exp(-float(signs[i, j] * logits[i, j]))) for i in range(6) for j in range(6)
    )
    assert float(sigmoid_loss(logits, right)) == pytest.approx(by_hand / 6, rel=1e-6)


def test_target_mass_is_shared_over_right_answers() -> None:
    right = EYE.clone()
    right[0, 1] = right[1, 0] = True
    logits = 50.0 * torch.eye(4)
    # rows 0 and 1 want half their weight on each other, where the log-probability is -50
    assert float(softmax_loss(logits, right)) == pytest.approx(0.5 * 0.5 * 50, rel=1e-4)
    assert float(softmax_loss(50.0 * right, right)) == pytest.approx(0.5 * math.log(2), rel=1e-4)


def test_each_direction_shares_by_its_own_rows() -> None:
    """Positives need not be symmetric for the maths: columns are divided by their own sums."""
    right = EYE.clone()
    right[0, 1] = True
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    by_picture = -(rows.diagonal()[1:].sum() + (rows[0, 0] + rows[0, 1]) / 2) / 4
    by_text = -(columns.diagonal()[[0, 2, 3]].sum() + (columns[0, 1] + columns[1, 1]) / 2) / 4
    assert float(softmax_loss(logits, right)) == pytest.approx(float(by_picture + by_text) / 2, rel=1e-6)


def test_a_right_answer_is_no_negative_of_the_sigmoid_loss() -> None:
    logits = torch.full((4, 4), -20.0)
    right = EYE.clone()
    right[0, 1] = right[1, 0] = True
    assert float(sigmoid_loss(logits, right)) == pytest.approx(6 * 20 / 4)
    logits[right] = 20.0
    assert float(sigmoid_loss(logits, right)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients_attract_right_answers_and_repel_the_others(loss: Any) -> None:
    right = EYE.clone()
    right[0, 1] = right[1, 0] = True
    logits = torch.zeros(4, 4, requires_grad=True)
    loss(logits, right).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad < 0, right)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_losses_are_computed_in_full_precision(loss: Any) -> None:
    logits = torch.randn(8, 8, generator=torch.Generator().manual_seed(2)) * 20
    right = torch.eye(8, dtype=torch.bool)
    whole = loss(logits, right)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(logits, right)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, whole)
    assert loss(logits.bfloat16(), right).dtype == torch.float32


def test_extreme_logits_stay_finite() -> None:
    logits = 1e4 * (2 * torch.eye(4) - 1)
    for loss in LOSSES.values():
        for sign in (1, -1):
            assert torch.isfinite(loss(sign * logits, EYE))


def test_logits_are_scaled_cosines_and_a_bias() -> None:
    generator = torch.Generator().manual_seed(5)
    image, text = (F.normalize(torch.randn(3, 8, generator=generator), dim=1) for _ in range(2))
    expected = 7 * image @ text.T
    assert torch.allclose(contrastive_logits(image, text, torch.tensor(7.0)), expected)
    biased = contrastive_logits(image, text, torch.tensor(7.0), torch.tensor(-10.0))
    assert torch.allclose(biased, expected - 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(contrastive_logits(image, text, torch.tensor(7.0)), 7 * (image @ text.T).float())
            is False
        )
        assert torch.allclose(contrastive_logits(image, text, torch.tensor(7.0)), expected, atol=1e-6)


def test_a_capped_scale_can_learn_to_be_smaller() -> None:
    """Published weights begin at the cap, or a rounding above it, where a plain clamp has no gradient."""
    embed = torch.eye(2)
    for value, right, moves in (
        (100.1, EYE[:2, :2], False),  # to be larger would be better: it stays
        (100.1, ~EYE[:2, :2], True),  # it is wrong with all its weight
        (99.0, ~EYE[:2, :2], True),
    ):
        scale = torch.tensor(value, requires_grad=True)
        logits = contrastive_logits(embed, embed, scale)
        assert float(logits.detach().max()) == pytest.approx(min(value, 100.0))
        softmax_loss(logits, right).backward()
        assert scale.grad is not None
        assert (float(scale.grad) > 1e-3) is moves
    assert float(contrastive_logits(embed, embed, torch.tensor(120.0), cap=None).max()) == 120.0


def test_alone_nothing_is_gathered() -> None:
    share = torch.arange(3)
    assert gather(share) is share


def direct(model: ClipModel, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole batch at once: no forward, no chunks, no processes."""
    images, tokens, right = batch(model)
    image_embed, text_embed = model.embed_images(images), model.embed_tokens(tokens)[0]
    logits = model.clip.logit_scale.exp() * image_embed @ text_embed.T + model.clip.logit_bias
    loss = LOSSES[name](logits, right)
    loss.backward()
    return loss.detach(), gradients(model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of each parameter's own largest gradient, where rounding does not hide it."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [1, 3, 4, 16, 100])
def test_a_step_in_chunks_is_one_big_batch(name: str, chunk: int) -> None:
    model = build()
    loss = loss_of(model, name, 0, 1, chunk)
    loss.backward()
    whole, expected = direct(build(), name)
    assert float(loss.detach()) == pytest.approx(float(whole), rel=1e-6)
    found = gradients(model)
    assert_equal(found, expected)
    assert float(found["clip.logit_scale"]) != 0
    # a bias moves all logits of a row alike, of which softmax knows nothing
    assert (abs(float(found["clip.logit_bias"])) > 1e-3) is (name == "sigmoid")


@pytest.mark.parametrize("name", LOSSES)
def test_a_custom_text_tower_too_is_one_big_batch(name: str) -> None:
    model = build(custom_text=True)
    loss_of(model, name, 0, 1, 4).backward()
    assert_equal(gradients(model), direct(build(custom_text=True), name)[1])


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 2 and of 4 processes: a folder for each, of the gradients that it ended with."""
    return run_ranks(tmp_path_factory.mktemp("ranks"), request.param)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [SAMPLES, 2])
def test_a_step_over_processes_is_one_big_batch(ranks: list[Path], name: str, chunk: int) -> None:
    whole, expected = direct(build(), name)
    for folder in ranks:
        found = load_file(folder / f"{name}-{chunk}.safetensors")
        assert float(found.pop("loss")) == pytest.approx(float(whole), rel=1e-6)
        assert_equal(found, expected)


class Kept(torch.optim.SGD):
    """An optimizer that keeps the gradients of its step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model, self.gradients = model, {}  # type: ignore[var-annotated]

    def step(self, closure: Any = None) -> None:
        weights = self.model.named_parameters()
        self.gradients = {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


class Pairs(list[Any]):
    """A loader as open_clip's script wants it."""

    num_samples = SAMPLES

    @property
    def num_batches(self) -> int:
        return len(self)


def upstream(accum_freq: int) -> dict[str, Tensor]:
    """The gradients of one step of open_clip's own script, its chunks accumulated its way."""
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    model = build()
    images, tokens, _ = batch(model)
    clip = model.clip
    clip.output_dict = True
    clip.logit_bias.requires_grad_(False)
    args = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=accum_freq, skip_scheduler=True,
        horovod=False, grad_clip_norm=None, rank=0, local_rank=0, log_every_n_steps=1,
        batch_size=SAMPLES // accum_freq, world_size=1, wandb=False,
    )  # fmt: skip
    pictures = ((images - model.mean) / model.std).chunk(accum_freq)
    loader = Pairs(zip(pictures, tokens.chunk(accum_freq), strict=True))
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
    optimizer = Kept(clip)

    class Loss(ClipLoss):  # the script hands the bias on, which this loss of the library knows nothing of
        def forward(self, image_features: Any, text_features: Any, logit_scale: Any, **rest: Any) -> Any:
            return super().forward(image_features, text_features, logit_scale, output_dict=True)

    train_one_epoch(clip, data, Loss(), 0, optimizer, None, None, None, args)
    return optimizer.gradients


def test_the_script_of_open_clip_counts_the_logit_scale_once_a_chunk_and_ours_once() -> None:
    whole, accumulated = upstream(1), upstream(4)
    ratio = float(accumulated["logit_scale"] / whole["logit_scale"])
    assert ratio == pytest.approx(4.0, rel=1e-4)
    model = build()
    images, tokens, _ = batch(model)
    scales = []
    for chunk in (SAMPLES, SAMPLES // 4):
        model.zero_grad()
        image_embed, text_embed, scale, _ = model(images, tokens, chunk)
        softmax_loss(
            contrastive_logits(image_embed, text_embed, scale), torch.eye(SAMPLES, dtype=torch.bool)
        ).backward()
        scales.append(float(model.clip.logit_scale.grad))
    assert scales[1] / scales[0] == pytest.approx(1.0, abs=1e-5)
    assert scales[0] == pytest.approx(float(whole["logit_scale"]), rel=1e-4)  # without accumulation we agree
