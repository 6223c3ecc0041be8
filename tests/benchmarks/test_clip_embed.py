"""The embedding benchmark: both sides run the same batches, and the files are gone afterwards."""

import pytest

from benchmarks.clip_embed import bare, cases, inputs, whole
from clip_train.encoding import plan_shards, ready_batches


def test_both_sides_run_over_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, splits, config = inputs("stock", 20)
    shapes: list[tuple[int, ...]] = []
    encode_image = clip.encode_image
    monkeypatch.setattr(
        clip, "encode_image", lambda seen: shapes.append(tuple(seen.shape)) or encode_image(seen)
    )
    sides = []
    for build in (bare, whole):
        step = build("stock", 20)
        shapes.clear()
        step()
        sides.append(list(shapes))
    assert sides[0] == sides[1]
    assert sum(shape[0] for shape in sides[0]) == 20
    assert not list(config.data.out.parent.glob("out-*"))
    shards = plan_shards(config.data.out, splits, splits, config.model.samples_per_shard)
    assert sum(len(b.entered) for shard in shards for b in ready_batches(clip, shard, config)) == 40


def test_the_case_is_called_embed() -> None:
    assert [case.name for case in cases()] == ["embed", "embed_stock"]
