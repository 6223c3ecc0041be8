"""Embedding shards: what a CLIP made of a split, joined by id."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crest.embeddings import (
    EmbeddingShard,
    embeddings_parents,
    finish_embeddings,
    read_embedding_shard,
    read_embeddings,
    write_embedding_shard,
)
from crest.errors import DataError

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
