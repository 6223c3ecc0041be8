"""Pictures and embeddings, joined by id and by nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from crest.embeddings import (
    EmbeddingShard,
    embeddings_parents,
    finish_embeddings,
    read_embeddings,
    write_embedding_shard,
)
from crest.errors import DataError
from crest.world import Draw
from decoder_train.data import DecoderData


def rewritten(folder: Path, whole: EmbeddingShard, order: list[int], parents: dict[str, str]) -> Path:
    shard = EmbeddingShard(
        [whole.ids[row] for row in order],
        whole.image_embed[order],
        whole.text_embed[order],
        whole.text_encodings[order],
    )
    write_embedding_shard(folder / "train-000000.safetensors", shard)
    finish_embeddings(folder, {"train": len(order)}, parents)
    return folder


def test_embeddings_in_any_order_meet_their_pictures(tiny_world: Any, tmp_path: Path) -> None:
    whole = read_embeddings(tiny_world.embeddings, "train")
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    folder = rewritten(tmp_path, whole, shuffled, embeddings_parents(tiny_world.embeddings))
    straight = DecoderData(tiny_world.shards, tiny_world.embeddings, "train", 16)
    data = DecoderData(tiny_world.shards, folder, "train", 16)
    assert torch.allclose(data.image_embed, straight.image_embed, atol=1e-3)
    numbers = torch.tensor([5, 0, 23])
    batch = data.rows(numbers, Draw(0, 0, 0, 3), torch.device("cpu"))
    rows = [whole.ids.index(data.pictures.ids[number]) for number in numbers]
    assert torch.allclose(batch.image_embed, whole.image_embed[rows], atol=1e-3)
    assert torch.equal(batch.images[1], torch.from_numpy(data.pictures.pixels[0] / 255).float())


def test_embeddings_of_other_shards_are_refused(tiny_world: Any, tmp_path: Path) -> None:
    whole = read_embeddings(tiny_world.embeddings, "train")
    folder = rewritten(tmp_path, whole, list(range(24)), {"clip": "c", "shards": "0123"})
    with pytest.raises(
        DataError, match=r"made from shards 0123, but .*shards is \w{16}; run python -m clip_train"
    ):
        DecoderData(tiny_world.shards, folder, "train", 16)


def test_a_picture_without_an_embedding_is_named(tiny_world: Any, tmp_path: Path) -> None:
    whole = read_embeddings(tiny_world.embeddings, "train")
    folder = rewritten(tmp_path, whole, list(range(20)), embeddings_parents(tiny_world.embeddings))
    with pytest.raises(DataError, match=rf"lacks 4 of the logos in .* \({whole.ids[20]} …\); embed again"):
        DecoderData(tiny_world.shards, folder, "train", 16)
