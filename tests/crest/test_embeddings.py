"""Embedding shards: what a CLIP made of a split, joined by id."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crest.embeddings import (
    EmbeddingShard,
    drawn_image_embed,
    embeddings_parents,
    finish_embeddings,
    is_embedding_shard,
    read_embedding_shard,
    read_embeddings,
    write_embedding_shard,
)
from crest.errors import DataError
from crest.records import file_hash, read_manifest
from crest.world import Draw

PARENTS = {"clip": "c" * 16, "shards": "s" * 16}


def shard(first: int, count: int, length: int = 4) -> EmbeddingShard:
    draw = torch.Generator().manual_seed(first)
    image, text = (F.normalize(torch.randn(count, 6, generator=draw), dim=-1) for _ in range(2))
    encodings = torch.randn(count, length, 5, generator=draw)
    encodings[:, length - 1 :] = 0
    return EmbeddingShard([f"id{first + row}" for row in range(count)], image, text, encodings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training shards of 3 and 2 rows, texts of 4 and 6 tokens, and one of validation."""
    write_embedding_shard(tmp_path / "train-000000.safetensors", shard(0, 3))
    write_embedding_shard(tmp_path / "train-000001.safetensors", shard(3, 2, length=6))
    write_embedding_shard(tmp_path / "val-000000.safetensors", shard(5, 2))
    finish_embeddings(tmp_path, {"train": 5, "val": 2, "test": 0}, PARENTS)
    return tmp_path


def test_a_split_is_joined_in_order_and_texts_are_padded(folder: Path) -> None:
    whole = read_embeddings(folder, "train")
    assert whole.ids == ["id0", "id1", "id2", "id3", "id4"]
    assert whole.image_embed.shape == (5, 6)
    assert whole.text_encodings.shape == (5, 6, 5)
    assert torch.allclose(whole.image_embed[3:], shard(3, 2, 6).image_embed, atol=1e-3)
    assert not whole.text_encodings[:3, 4:].any()


def test_half_precision_on_disk_is_unit_length_in_memory(folder: Path) -> None:
    whole = read_embeddings(folder, "train")
    for embed in (whole.image_embed, whole.text_embed):
        assert embed.dtype == torch.float32
        assert torch.allclose(embed.norm(dim=1), torch.ones(5), atol=1e-6)
    assert whole.text_encodings.dtype == torch.float16


def test_the_folder_names_the_clip_and_the_shards_it_was_made_from(folder: Path) -> None:
    assert embeddings_parents(folder) == PARENTS


def test_a_split_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds no test split \(it has train, val\)"):
        read_embeddings(folder, "test")


def test_unfinished_embeddings_are_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(
        DataError, match=r"is not finished \(no manifest\.json\); run python -m clip_train\.embed"
    ):
        read_embeddings(folder, "train")


def test_a_shard_cut_in_half_is_refused(folder: Path) -> None:
    path = folder / "train-000001.safetensors"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError, match=r"train-000001\.safetensors: is 150 bytes, expected \d+"):
        read_embeddings(folder, "train")
    with pytest.raises(DataError, match=r"is not a whole embedding shard .* run python -m clip_train\.embed"):
        read_embedding_shard(path)


def test_foreign_tensors_are_no_embedding_shard(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"image_embed": torch.zeros(1, 2)}, tmp_path / "train-000000.safetensors")
    with pytest.raises(DataError, match="is not a whole embedding shard"):
        read_embedding_shard(tmp_path / "train-000000.safetensors")


def test_equal_shards_are_equal_files_and_their_hash_is_known(tmp_path: Path) -> None:
    made = dataclasses.replace(shard(0, 3), captions_cut=2)
    hashes = [write_embedding_shard(tmp_path / f"{number}.safetensors", made) for number in range(8)]
    assert set(hashes) == {file_hash(tmp_path / "0.safetensors")}


def test_known_hashes_give_the_same_manifest(folder: Path) -> None:
    read = read_manifest(folder, "embeddings", "x")
    known = {path.name: file_hash(path) for path in folder.glob("*.safetensors")}
    assert finish_embeddings(folder, {"train": 5, "val": 2, "test": 0}, PARENTS, hashes=known) == read
    other = finish_embeddings(folder, {"train": 5}, PARENTS, hashes={**known, "val-000000.safetensors": "0"})
    assert other.hash != read.hash


def test_captions_that_were_cut_are_counted_over_all_files(tmp_path: Path) -> None:
    for number, cut in enumerate((2, 0, 3)):
        made = dataclasses.replace(shard(3 * number, 3), captions_cut=cut)
        write_embedding_shard(tmp_path / f"train-{number:06d}.safetensors", made)
    assert finish_embeddings(tmp_path, {"train": 9}, PARENTS).dropped == {"captions_cut": 5}
    assert read_embeddings(tmp_path, "train").captions_cut == 5


def test_files_of_before_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    made = shard(0, 3)
    tensors = {"image_embed": made.image_embed, "text_embed": made.text_embed}
    halves = {
        name: tensor.half() for name, tensor in {**tensors, "text_encodings": made.text_encodings}.items()
    }
    save_file(halves, tmp_path / "train-000000.safetensors", {"ids": json.dumps(made.ids)})
    assert finish_embeddings(tmp_path, {"train": 3}, PARENTS).dropped == {}
    found = read_embeddings(tmp_path, "train", views=True)
    assert (found.ids, found.views, found.captions_cut) == (made.ids, 1, 0)


def test_a_shard_is_known_by_its_samples_and_their_order(folder: Path) -> None:
    path = folder / "train-000000.safetensors"
    assert is_embedding_shard(path, ["id0", "id1", "id2"])
    assert not is_embedding_shard(path, ["id0", "id2", "id1"])
    assert not is_embedding_shard(folder / "train-000009.safetensors", [])
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_embedding_shard(path, ["id0", "id1", "id2"])


def test_files_without_text_encodings_need_them_left_out(tmp_path: Path) -> None:
    bare = dataclasses.replace(shard(0, 3), text_encodings=torch.empty(3, 0, 0))
    write_embedding_shard(tmp_path / "train-000000.safetensors", bare)
    finish_embeddings(tmp_path, {"train": 3}, PARENTS)
    with pytest.raises(
        DataError, match=r"holds no text_encodings, .* embed again with model\.text_encodings"
    ):
        read_embeddings(tmp_path, "train")
    found = read_embeddings(tmp_path, "train", encodings=False)
    assert torch.allclose(found.text_embed, bare.text_embed, atol=1e-3)
    assert found.text_encodings.shape == (3, 0, 0)


@pytest.fixture
def viewed(tmp_path: Path) -> EmbeddingShard:
    """Four views of 400 pictures, read back."""
    further = F.normalize(torch.randn(400, 3, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    made = dataclasses.replace(shard(0, 400), further_views=further)
    write_embedding_shard(tmp_path / "train-000000.safetensors", made)
    finish_embeddings(tmp_path, {"train": 400}, PARENTS)
    assert read_embeddings(tmp_path, "train").further_views is None  # only when asked for
    found = read_embeddings(tmp_path, "train", views=True)
    assert found.further_views is not None
    assert torch.allclose(found.further_views, further, atol=1e-3)
    return found


def test_a_view_is_drawn_evenly_and_as_a_pure_function_of_the_draw(viewed: EmbeddingShard) -> None:
    assert viewed.further_views is not None
    views = torch.cat([viewed.image_embed[:, None], viewed.further_views], dim=1)
    numbers = torch.arange(399, -1, -1)
    drawn = drawn_image_embed(viewed, numbers, Draw(3, 7, 0, 400))
    which = (views[numbers] == drawn[:, None]).all(dim=-1)
    assert which.sum(dim=1).tolist() == [1] * 400
    assert which.float().mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.08)
    parts = [drawn_image_embed(viewed, numbers[i : i + 100], Draw(3, 7, i, 100)) for i in (0, 100, 200, 300)]
    assert torch.equal(torch.cat(parts), drawn)
    assert not torch.equal(drawn_image_embed(viewed, numbers, Draw(3, 8, 0, 400)), drawn)


def test_without_further_views_the_plain_picture_is_drawn() -> None:
    made, numbers = shard(0, 5), torch.tensor([4, 0])
    assert torch.equal(drawn_image_embed(made, numbers, Draw(0, 0, 0, 2)), made.image_embed[numbers])
