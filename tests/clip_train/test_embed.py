"""Embedding of shards: joined by id, made once, whole or not at all, at several views."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_train.config import ClipDataConfig
from clip_train.data import augmented
from clip_train.encoding import ahead, tokens_by_length
from crest.augment import cached_px
from crest.embeddings import embeddings_parents, read_embeddings
from crest.models.clip import load_clip
from crest.pixels import open_pictures
from crest.records import SPLITS, read_json, read_manifest
from crest.shards import read_samples, write_shards
from crest.world import Draw


@pytest.fixture
def config(tiny_world: Any, tmp_path: Path) -> dict[str, Any]:
    clip = tiny_world.folder / "runs" / "clip_train"
    return {
        "data": {"shards": tiny_world.shards, "out": tmp_path / "out"},
        "model": {"clip": str(clip), "device": "cpu", "batch_size": 5, "samples_per_shard": 10},
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_rows_are_what_the_clip_says_of_the_pictures(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    assert len(list((tmp_path / "out").glob("train-*.safetensors"))) == 3
    found, clip = (
        read_embeddings(tmp_path / "out", "train"),
        load_clip(tiny_world.folder / "runs" / "clip_train"),
    )
    samples = list(read_samples(tiny_world.shards, "train"))
    assert found.ids == [sample.id for sample in samples]
    pictures = open_pictures(tiny_world.shards, "train", 16)
    images = clip.encode_image(torch.from_numpy(pictures.pixels.astype("float32") / 255))
    captions, cut = clip.model.fit_texts([sample.caption for sample in samples])
    text = clip.encode_text(captions)
    assert torch.allclose(found.image_embed, images, atol=2e-3)
    assert torch.allclose(found.text_embed, text.text_embed, atol=2e-3)
    assert torch.allclose(found.text_encodings.float(), text.text_encodings, atol=5e-3)
    assert found.further_views is None
    assert found.captions_cut == cut == 24  # every caption of the tiny world is longer than 16 tokens
    assert embeddings_parents(tmp_path / "out")["clip"] == clip.hash
    assert read_manifest(tmp_path / "out", "embeddings", "x").dropped == {"captions_cut": 32}


@pytest.fixture
def ragged(tiny_world: Any, tmp_path: Path, config: dict[str, Any]) -> list[str]:
    """Shards whose captions are of very different lengths, in no order; returns those of train."""
    samples = list(read_samples(tiny_world.shards, "train"))
    lengths = [1, 6, 2, 5, 1, 3, 4, 2, 6, 1, 5, 3]
    words = list("abcdef")  # a token each
    made = [
        type(sample)(sample.id, sample.image, " ".join(words[:count]), sample.meta)
        for sample, count in zip(samples, lengths, strict=False)
    ]
    write_shards(
        tmp_path / "data" / "shards", {"train": made, "val": made[:2]}, samples_per_shard=9, parents={}
    )
    config["data"]["shards"] = tmp_path / "data" / "shards"
    return [sample.caption for sample in made]


def test_captions_are_batched_by_length_and_come_back_in_order(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any], ragged: list[str]
) -> None:
    config["model"]["batch_size"] = 3
    assert command("clip_train.embed", config, tmp_path) == 0
    found = read_embeddings(tmp_path / "out", "train")
    clip = load_clip(tiny_world.folder / "runs" / "clip_train")
    one_by_one = [clip.encode_text([caption]) for caption in ragged]
    for row, alone in enumerate(one_by_one):
        length = alone.text_encodings.shape[1]
        assert torch.allclose(found.text_embed[row], alone.text_embed[0], atol=2e-3)
        assert torch.allclose(found.text_encodings[row, :length].float(), alone.text_encodings[0], atol=5e-3)
        assert not found.text_encodings[row, length:].any()
    assert found.text_encodings.shape[1] == max(alone.text_encodings.shape[1] for alone in one_by_one)
    captions = tokens_by_length(clip, ragged)
    used = clip.model.tokenizer.inside(captions.tokens).sum(dim=1)
    assert used.tolist() == sorted(used.tolist())
    assert sorted(captions.order.tolist()) == list(range(len(ragged)))
    assert captions.cut == 0


def test_an_interrupted_folder_goes_on_and_a_finished_one_says_so(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    out = tmp_path / "out"
    whole, manifest = files(out), (out / "manifest.json").read_bytes()
    (out / "manifest.json").unlink()
    (out / "train-000001.safetensors").unlink()
    (out / "val-000000.safetensors").write_bytes(whole["val-000000.safetensors"][:200])  # cut on a bad disk
    (out / "train-000002.safetensors.part").write_bytes(b"half")
    kept = (out / "train-000000.safetensors").stat().st_mtime_ns
    assert command("clip_train.embed", config, tmp_path) == 0
    assert files(out) == whole
    assert (out / "manifest.json").read_bytes() == manifest
    assert (out / "train-000000.safetensors").stat().st_mtime_ns == kept
    assert not list(out.glob("*.part"))
    capsys.readouterr()
    assert command("clip_train.embed", config, tmp_path) == 0
    assert "finished before; nothing to do" in capsys.readouterr().out


class StopError(Exception):
    """Stands for whatever ends a run."""


def test_a_run_that_ends_in_the_middle_leaves_whole_shards_only(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    from clip_train.config import EmbedConfig
    from clip_train.embed import embed

    assert command("clip_train.embed", config, tmp_path) == 0
    whole = files(tmp_path / "out")
    clip = load_clip(tiny_world.folder / "runs" / "clip_train")
    encode, calls = clip.encode_image, []

    def stopping(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 4:  # the second batch of the second shard
            raise StopError
        return encode(images)

    clip.encode_image = stopping  # type: ignore[method-assign]
    config["data"]["out"] = tmp_path / "stopped"
    settings = EmbedConfig.model_validate_json(json.dumps(config, default=str))
    splits = {split: open_pictures(tiny_world.shards, split, 16) for split in SPLITS}
    with pytest.raises(StopError):
        embed(clip, splits, settings)
    assert set(files(tmp_path / "stopped")) == {"train-000000.safetensors"}
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert command("clip_train.embed", config, tmp_path) == 0
    assert files(tmp_path / "stopped") == whole


def test_another_clip_makes_all_of_them_again(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    before = (tmp_path / "out" / "val-000000.safetensors").read_bytes()
    other = tiny_world.config("clip_train", tmp_path / "other", run__seed=5, run__steps=1)
    assert command("clip_train", other, tmp_path) == 0
    config["model"]["clip"] = str(tmp_path / "other")
    assert command("clip_train.embed", config, tmp_path) == 0
    card = json.loads((tmp_path / "other" / "weights.json").read_text(encoding="utf-8"))
    assert embeddings_parents(tmp_path / "out")["clip"] == card["sha256"][:16]
    assert (tmp_path / "out" / "val-000000.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("model", "samples_per_shard", 7), ("model", "text_encodings", False), ("data", "views", 2)],
)
def test_other_settings_make_all_of_them_again(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any], section: str, name: str, value: Any
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    before = files(tmp_path / "out")
    config[section][name] = value
    assert command("clip_train.embed", config, tmp_path) == 0
    after = files(tmp_path / "out")
    assert all(before.get(file) != content for file, content in after.items())
    assert read_manifest(tmp_path / "out", "embeddings", "x").details[name] == value


def test_the_size_of_batches_does_not_make_them_again(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    config["model"]["batch_size"] = 3
    assert command("clip_train.embed", config, tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_without_text_encodings_the_files_are_small_and_readers_are_told(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command("clip_train.embed", config, tmp_path) == 0
    whole = read_embeddings(tmp_path / "out", "train")
    size = (tmp_path / "out" / "train-000000.safetensors").stat().st_size
    config["model"]["text_encodings"] = False
    assert command("clip_train.embed", config, tmp_path) == 0
    assert (tmp_path / "out" / "train-000000.safetensors").stat().st_size < size / 2
    found = read_embeddings(tmp_path / "out", "train", encodings=False)
    assert torch.equal(found.image_embed, whole.image_embed)
    assert torch.equal(found.text_embed, whole.text_embed)
    prior = tiny_world.config("prior_train", tmp_path / "prior", data__embeddings=tmp_path / "out")
    assert command("prior_train", prior, tmp_path) != 0
    assert "holds no text_encodings, which this step reads; embed again with" in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["shift", "crop", "resized_crop"])
def test_further_views_are_what_training_would_show(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any], augment: str
) -> None:
    assert command("clip_train.embed", config, tmp_path) == 0
    plain = read_embeddings(tmp_path / "out", "train")
    config["data"] |= {"views": 3, "augment": augment, "seed": 4}
    assert command("clip_train.embed", config, tmp_path) == 0
    found = read_embeddings(tmp_path / "out", "train", views=True)
    assert torch.equal(found.image_embed, plain.image_embed)  # view 0 is always the plain picture
    assert torch.equal(found.text_embed, plain.text_embed)
    assert found.views == 3
    clip = load_clip(tiny_world.folder / "runs" / "clip_train")
    kept_px = 16 if augment == "shift" else cached_px(16)
    pictures = open_pictures(tiny_world.shards, "train", kept_px)
    settings = ClipDataConfig(shards=tiny_world.shards, augment=augment)  # type: ignore[arg-type]
    assert found.further_views is not None
    for view in (1, 2):
        images = augmented(pictures, np.arange(24), Draw(4, -view, 0, 24), 16, settings)
        wanted = clip.encode_image(images)
        assert torch.allclose(found.further_views[:, view - 1], wanted, atol=2e-3)
    assert not torch.allclose(found.further_views[:, 0], found.further_views[:, 1], atol=2e-3)
    assert torch.allclose(found.further_views.norm(dim=-1), torch.ones(24, 2), atol=1e-5)
    similar = F.cosine_similarity(found.further_views[:, 0], found.image_embed)
    assert float(similar.min()) > 0.5


def test_views_do_not_depend_on_batches_and_change_with_the_seed(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    def views(**changes: Any) -> torch.Tensor:
        out = tmp_path / json.dumps(changes).replace('"', "")
        model = {**config["model"], **{k: v for k, v in changes.items() if k != "seed"}}
        data = {**config["data"], "out": out, "views": 2, "seed": changes.get("seed", 0)}
        assert command("clip_train.embed", {"data": data, "model": model}, tmp_path) == 0
        found = read_embeddings(out, "train", views=True).further_views
        assert found is not None
        return found

    first = views()
    assert torch.allclose(views(batch_size=7, samples_per_shard=11), first, atol=2e-3)
    assert not torch.allclose(views(seed=1), first, atol=2e-3)


def test_the_prior_learns_from_all_views_and_the_decoder_from_view_0(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], config: dict[str, Any]
) -> None:
    for views in (1, 2):
        config["data"] |= {"views": views, "out": tmp_path / f"views-{views}"}
        assert command("clip_train.embed", config, tmp_path) == 0
    for room in ("prior_train", "decoder_train"):
        hashes = []
        for views in (1, 2):
            run = tmp_path / f"{room}-{views}"
            changed = tiny_world.config(room, run, data__embeddings=tmp_path / f"views-{views}")
            assert command(room, changed, tmp_path) == 0
            hashes.append(read_json(run / "weights.json")["sha256"])
        assert (hashes[0] == hashes[1]) is (room == "decoder_train")


def test_reading_ahead_keeps_order_and_hands_errors_on() -> None:
    assert list(ahead(range(7), 3)) == list(range(7))
    assert list(ahead([], 2)) == []

    def broken() -> Iterator[int]:
        yield 1
        raise StopError

    items = ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(StopError):
        next(items)


def test_reading_ahead_stops_when_nobody_listens() -> None:
    taken = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield len(taken)

    items = ahead(endless(), 2)
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    assert len(taken) <= 4


def test_a_damaged_config_is_refused(
    tmp_path: Path, command: Callable[..., int], config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config["data"]["views"] = 0
    assert command("clip_train.embed", config, tmp_path) != 0
    assert "data.views" in capsys.readouterr().err
