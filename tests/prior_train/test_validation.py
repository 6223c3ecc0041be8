"""A validation can be trusted: fixed, nothing dropped, every noise level judged, baselines beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.embeddings import (
    EmbeddingShard,
    embeddings_parents,
    finish_embeddings,
    read_embeddings,
    write_embedding_shard,
)
from crest.errors import DataError
from crest.models.prior import Prior
from crest.world import open_world
from prior_train import stage as stage_module
from prior_train.stage import PriorStage

Staged = Callable[..., PriorStage]
SPEC: dict[str, Any] = {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20}
FIGURES = {
    "loss", "loss_t1of4", "loss_t2of4", "loss_t3of4", "loss_t4of4", "denoised_cosine",
    "drawn_to_image", "drawn_to_other_image", "drawn_to_text", "text_to_image", "text_to_other_image",
    "drawn_r_at_1", "drawn_r_at_5", "text_r_at_1", "text_r_at_5", "chance_r_at_1", "chance_r_at_5",
}  # fmt: skip


def judged(stage: PriorStage) -> dict[str, float]:
    return stage.validate(stage.model().eval(), open_world("cpu", "fp32"))


class Noting(Prior):
    """Notes at which timesteps each row was judged, and what was left out."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, *told: Any, **shown: Any) -> Tensor:
        self.asked.append((t, told[2], told[3]))
        return super().forward(x_t, t, *told, **shown)


def test_every_figure_is_there_and_every_row_is_judged_in_every_band(staged: Staged) -> None:
    stage = staged()
    model = Noting(stage.prior.spec).eval()
    figures = stage.validate(model, open_world("cpu", "fp32"))
    assert set(figures) == FIGURES
    judging = model.asked[: stage_module.BANDS]
    for band, (t, text, image) in enumerate(judging):
        assert len(t) == 12
        assert bool(text.all())
        assert bool(image.all())
        assert bool((t >= 5 * band).all())
        assert bool((t < 5 * (band + 1)).all())
    assert len({int(step) for t, _, _ in judging for step in t}) == 20  # of 20 timesteps
    assert figures["loss"] == pytest.approx(
        sum(figures[f"loss_t{band}of4"] for band in range(1, 5)) / 4, rel=1e-5
    )


def test_pieces_change_no_figure(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(staged())
    monkeypatch.setattr(stage_module, "AT_ONCE", 5)  # no multiple of what shares a stream of noise either
    pieces = judged(staged())
    assert pieces == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_training_leaves_the_figures_of_the_same_weights_alone(staged: Staged) -> None:
    stage = staged(model__scratch={**SPEC, "attn_dropout": 0.2, "ff_dropout": 0.2})
    before = judged(stage)
    stage.loss(stage.model().train(), next(stage.batches("train", open_world("cpu", "fp32"), 0)))
    torch.manual_seed(99)
    assert judged(stage) == before


@pytest.mark.parametrize("kind", ["x_start", "v"])
def test_a_trained_prior_beats_its_text_a_shuffle_and_chance(staged: Staged, kind: str) -> None:
    """The pictures of these embeddings are turned away from their captions: the text alone finds none."""
    stage = staged(model__scratch={**SPEC, "prediction": kind}, optim__batch_size=32)
    model, world = stage.model(), open_world("cpu", "fp32")
    untrained = judged(stage)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=4e-3)
    model.train()
    for batch, _ in zip(stage.batches("train", world, 0), range(80), strict=False):
        loss, _ = stage.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    figures = judged(stage)
    assert figures["loss"] < 0.8 * untrained["loss"]
    assert figures["drawn_to_image"] > figures["text_to_image"] + 0.4
    assert figures["drawn_to_image"] > figures["drawn_to_other_image"] + 0.4
    assert figures["drawn_r_at_5"] > 1.7 * figures["chance_r_at_5"]
    assert figures["drawn_r_at_5"] > figures["text_r_at_5"]


@pytest.fixture
def reversed_rows(tiny_world: Any, tmp_path: Path) -> Path:
    """The tiny world's embeddings with the rows of their validation in another order than their pictures."""
    folder = tmp_path / "reversed"
    for split in ("train", "val"):
        shard = read_embeddings(tiny_world.embeddings, split)  # type: ignore[arg-type]
        back = EmbeddingShard(
            shard.ids[::-1],
            *(rows.flip(0) for rows in (shard.image_embed, shard.text_embed, shard.text_encodings)),
        )
        write_embedding_shard(folder / f"{split}-000000.safetensors", back)
    finish_embeddings(folder, {"train": 24, "val": 8}, embeddings_parents(tiny_world.embeddings))
    return folder


def test_a_preview_shows_each_logo_and_those_nearest_to_its_draw(
    tiny_world: Any, reversed_rows: Path, staged: Staged
) -> None:
    stage = staged(reversed_rows, data__shards=tiny_world.shards)
    first, again = (stage.preview(stage.model().eval())["nearest"] for _ in range(2))
    assert first.shape == (8 * 6, 3, 64, 64)
    assert torch.equal(first, again)
    pictures = stage._pictures
    assert pictures is not None
    for row in (0, 3):
        place = pictures.ids.index(stage.val.ids[row])
        assert place != row  # joined by id, not by position
        assert torch.equal(first[6 * row], torch.from_numpy(pictures.pixels[place] / 255.0).float())
    stage.prior.sample = lambda text, **_: stage.val.image_embed[:8]  # type: ignore[method-assign]
    perfect = stage.preview(stage.model())["nearest"]
    assert all(torch.equal(perfect[6 * row], perfect[6 * row + 1]) for row in range(8))


def test_pictures_of_other_shards_are_refused(
    tiny_world: Any, embed: Callable[..., Path], staged: Staged
) -> None:
    with pytest.raises(
        DataError, match=r"lacks 12 of the logos in .*embeddings \(val00 …\); name the shards"
    ):
        staged(embed(), data__shards=tiny_world.shards)


def test_self_conditioned_priors_are_judged_as_they_draw(staged: Staged) -> None:
    stage = staged(model__scratch={**SPEC, "self_cond": True})
    blind = staged(model__scratch={**SPEC, "self_cond": True})
    shown: list[Tensor] = []
    whole, step = Prior.forward, Prior.step

    class Noticing(Prior):
        def forward(self, *told: Any, self_cond: Tensor | None = None) -> Tensor:
            if self_cond is not None:
                shown.append(self_cond)
            return whole(self, *told, self_cond=self_cond)

        def step(self, *told: Any, self_cond: Tensor | None = None) -> Tensor:
            if self_cond is not None:
                shown.append(self_cond)
            return step(self, *told, self_cond=self_cond)

    blind.validate(Noticing(stage.prior.spec).eval(), open_world("cpu", "fp32"))
    assert (
        len(shown) == stage_module.BANDS + stage_module.PREVIEW_STEPS - 5
    )  # T is 20, and first draws see none
    assert all(bool((F.normalize(guess, dim=1).norm(dim=1) > 0.99).all()) for guess in shown)
