"""Every kind of CLIP keeps one contract: the library's own embeddings, true widths, true ends of texts."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.checkpoint import export_weights
from crest.errors import WeightsError
from crest.models.clip import ClipEncoder, ClipModel, load_clip
from crest.models.clip_tokenizers import HubTokenizer
from tests.crest.models.clip_zoo import KINDS, LENGTH, TEXTS, plain_tokens, tiny

BYTE_PAIRS = ("vit", "resnet", "custom", "quick", "coca", "timm")
USED = {"siglip": (4, 10, 1, 16), "siglip2": (4, 10, 1, 16), "clipa": (4, 10, 1, 15)}
"""Tokens of each of TEXTS, marks included; the third is empty, the last is cut."""
TWO_MARKS = (5, 11, 2, 16)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> ClipModel:
    return tiny(kind, tmp_path / "words")


def pictures(model: ClipModel, count: int = 2) -> Tensor:
    return torch.rand(count, 3, model.side_px, model.side_px, generator=torch.Generator().manual_seed(1))


def encoder(model: ClipModel) -> ClipEncoder:
    return ClipEncoder(model, "0" * 16, {})


def test_embeddings_are_the_librarys_own(model: ClipModel, tmp_path: Path) -> None:
    tokens = plain_tokens(model, tmp_path / "words", model.fit_texts(TEXTS)[0])
    with torch.no_grad():
        theirs = F.normalize(model.clip.encode_text(tokens), dim=-1)
        seen = F.normalize(model.clip.encode_image((pictures(model) - model.mean) / model.std), dim=-1)
    assert (theirs[0] - theirs[1]).abs().max() > 1e-3  # the test could fail
    assert (seen[0] - seen[1]).abs().max() > 1e-4
    assert torch.allclose(encoder(model).encode_text(TEXTS).text_embed, theirs, atol=1e-5)
    assert torch.allclose(encoder(model).encode_image(pictures(model)), seen, atol=1e-5)


def test_a_text_means_the_same_in_any_company(model: ClipModel) -> None:
    together = encoder(model).encode_text(TEXTS, length=LENGTH)
    for row, text in enumerate(TEXTS):
        alone = encoder(model).encode_text([text], length=LENGTH)
        assert torch.allclose(alone.text_embed[0], together.text_embed[row], atol=1e-5)
        assert torch.allclose(alone.text_encodings[0], together.text_encodings[row], atol=1e-4)


def test_widths_are_the_true_ones(model: ClipModel, kind: str) -> None:
    latent = {"siglip": 96, "siglip2": 96, "coca": 16}.get(kind, 12)
    assert (model.image_embed_dim, model.text_width, model.context_length) == (latent, 24, LENGTH)
    text = encoder(model).encode_text(TEXTS)
    assert text.text_embed.shape == (4, latent)
    assert text.text_encodings.shape[2] == 24
    assert encoder(model).encode_image(pictures(model)).shape == (2, latent)


def test_encodings_end_where_the_text_ends(model: ClipModel, kind: str) -> None:
    encodings = encoder(model).encode_text(TEXTS, length=LENGTH).text_encodings
    texts, _ = model.fit_texts(TEXTS)
    tokens = model.tokenizer(texts)
    expected = USED.get(kind, TWO_MARKS)
    if kind in BYTE_PAIRS:  # whose table of 200 merges spells words in pieces
        expected = tuple(min(model.tokenizer.length(text), LENGTH) for text in texts)
    assert tuple(model.tokenizer.inside(tokens).sum(dim=1).tolist()) == expected
    for row, used in zip(encodings, expected, strict=True):
        assert (row[:used].abs().sum(dim=1) > 0).all()
        assert not row[used:].any()


def test_an_embedding_is_the_last_encoding_projected_where_the_library_does_so(tmp_path: Path) -> None:
    for kind in ("vit", "custom"):
        model = tiny(kind, tmp_path)
        tower = model.clip.text if kind == "custom" else model.clip
        text = encoder(model).encode_text(TEXTS[:2], length=LENGTH)
        lengths = [model.tokenizer.length(text) for text in model.fit_texts(TEXTS[:2])[0]]
        last = torch.stack([text.text_encodings[row, length - 1] for row, length in enumerate(lengths)])
        assert torch.allclose(F.normalize(last @ tower.text_projection, dim=-1), text.text_embed, atol=1e-5)


def test_weights_load_on_another_machine_without_a_network(
    model: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encoder(model).encode_text(TEXTS), encoder(model).encode_image(pictures(model))
    export_weights(tmp_path / "run", model, {"kind": "clip", "spec": model.spec.model_dump(mode="json")})
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "words", ignore_errors=True)

    def refuse(*_: Any) -> None:
        raise AssertionError("asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    back = load_clip(tmp_path / "elsewhere")
    assert torch.equal(back.encode_text(TEXTS).text_embed, before[0].text_embed)
    assert torch.equal(back.encode_text(TEXTS).text_encodings, before[0].text_encodings)
    assert torch.equal(back.encode_image(pictures(model)), before[1])


def test_preprocessing_travels_with_the_weights(tmp_path: Path) -> None:
    model = tiny(
        "vit", tmp_path, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4), interpolation="bilinear"
    )
    export_weights(tmp_path, model, {"kind": "clip", "spec": model.spec.model_dump(mode="json")})
    back = load_clip(tmp_path)
    assert back.model.spec == model.spec
    large = torch.rand(1, 3, 50, 50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(back.encode_image(large), encoder(model).encode_image(large))
    small = F.interpolate(large, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(back.encode_image(large), back.encode_image(small), atol=1e-6)
    cubic = F.interpolate(large, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert not torch.allclose(back.encode_image(large), back.encode_image(cubic), atol=1e-4)


def test_a_caption_longer_than_the_context_is_cut_behind_a_word_and_counted(model: ClipModel) -> None:
    long = "a red shield with a gold star above it, a navy disc with a crown above it and a gold star"
    texts, cut = model.fit_texts(["a red shield", long])
    assert cut == 1
    assert texts[0] == "a red shield"
    assert long.startswith(texts[1])
    assert long[len(texts[1])] in " ,"
    assert model.tokenizer.length(texts[1]) <= LENGTH
    further = " ".join(long.split()[: len(texts[1].split()) + 1])
    assert model.tokenizer.length(further) > LENGTH
    (row,) = model.tokenizer([texts[1]])
    assert int(model.tokenizer.inside(row[None]).sum()) <= LENGTH


def test_a_zero_within_a_text_is_no_padding(tmp_path: Path) -> None:
    model = tiny("vit", tmp_path)
    row = torch.tensor([712, 0, 5, 713, *[0] * 12])  # 0 is "!" too, as well as what fills the rest
    assert model.tokenizer.encode("!") != [0]
    assert torch.equal(model.crop(row[None])[0], row[:4])
    assert int(model.tokenizer.inside(row[None]).sum()) == 4


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    model_folder = tmp_path / "words"
    tiny("bert", model_folder)
    config = model_folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token": "[PAD]",', ""))
    with pytest.raises(WeightsError, match="has no padding token"):
        HubTokenizer(model_folder, 8)


def test_a_folder_that_holds_no_tokenizer_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"holds no tokenizer that transformers can read") as caught:
        HubTokenizer(tmp_path, 8)
    assert "\n" not in str(caught.value)
