"""OpenCLIP behind its door: any architecture, exact crops, true widths, gradients of the whole batch."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from crest.checkpoint import export_weights
from crest.errors import WeightsError
from crest.images import square, to_array
from crest.models.clip import ClipEncoder, ClipModel, ClipSpec, load_clip, load_pretrained, vocabulary_size
from crest.models.clip_tokenizers import BytePairs

TEXTS = ["a red shield", "a navy disc with a gold star above it", "", "x" * 200]
VISION = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
TEXT = {"context_length": 16, "vocab_size": 714, "width": 24, "heads": 2, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}


def model_of(vision: dict[str, Any] = VISION, text: dict[str, Any] = TEXT, **further: Any) -> ClipModel:
    torch.manual_seed(0)
    custom = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **further}
    return ClipModel(ClipSpec(custom=custom, bpe_merges=200)).eval()


@pytest.fixture(params=["vit", "resnet", "custom text tower"])
def model(request: pytest.FixtureRequest) -> ClipModel:
    if request.param == "resnet":
        return model_of(RESNET)
    return model_of(custom_text=True) if request.param == "custom text tower" else model_of()


def encoder(model: ClipModel) -> ClipEncoder:
    return ClipEncoder(model, "0" * 16, {})


def pictures(count: int, side_px: int) -> Tensor:
    return torch.rand(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def test_widths_are_the_true_ones_where_text_and_latent_differ(model: ClipModel) -> None:
    assert (model.image_embed_dim, model.text_width, model.context_length) == (12, 24, 16)
    text = encoder(model).encode_text(TEXTS)
    assert text.text_embed.shape == (4, 12)
    assert text.text_encodings.shape[2] == 24
    assert encoder(model).encode_image(pictures(2, model.side_px)).shape == (2, 12)


def test_embeddings_are_float32_and_unit_length(model: ClipModel) -> None:
    images, text = encoder(model).encode_image(pictures(3, model.side_px)), encoder(model).encode_text(TEXTS)
    for embed in (images, text.text_embed):
        assert embed.dtype == torch.float32
        assert torch.allclose(embed.norm(dim=1), torch.ones(len(embed)), atol=1e-5)


def test_embeddings_are_the_librarys_own(model: ClipModel) -> None:
    tokens = model.tokenizer(model.fit_texts(TEXTS)[0])
    theirs = model.clip.encode_text(tokens, normalize=True)
    assert torch.allclose(encoder(model).encode_text(TEXTS).text_embed, theirs, atol=1e-5)
    images = pictures(2, model.side_px)
    theirs = model.clip.encode_image((images - model.mean) / model.std, normalize=True)
    assert torch.allclose(encoder(model).encode_image(images), theirs, atol=1e-6)


def test_cropping_the_text_to_its_longest_changes_nothing() -> None:
    model = model_of()
    short = model.tokenize(TEXTS[:1])
    assert short.shape[1] < model.context_length
    cropped, whole = model.embed_tokens(short), model.embed_tokens(model.tokenizer(TEXTS[:1]))
    assert torch.allclose(cropped[0], whole[0], atol=1e-6)
    assert torch.allclose(cropped[1], whole[1][:, : short.shape[1]], atol=1e-5)


def test_encodings_are_zero_after_the_end_of_the_text_and_nowhere_before(model: ClipModel) -> None:
    text = encoder(model).encode_text(TEXTS, length=16)
    assert text.text_encodings.shape == (4, 16, 24)
    for row, tokens in zip(text.text_encodings, model.tokenizer(model.fit_texts(TEXTS)[0]), strict=True):
        used = int((tokens != 0).sum())  # start, words, end
        assert (row[:used].abs().sum(dim=1) > 0).all()
        assert not row[used:].any()


@pytest.mark.parametrize("length", [3, 40])
def test_encodings_are_cut_or_padded_to_the_wanted_length(length: int) -> None:
    text, whole = (encoder(model_of()).encode_text(TEXTS, length=size) for size in (length, None))
    assert text.text_encodings.shape == (4, length, 24)
    kept = min(length, whole.text_encodings.shape[1])
    assert torch.equal(text.text_encodings[:, :kept], whole.text_encodings[:, :kept])
    assert torch.equal(text.text_embed, whole.text_embed)


def test_a_text_longer_than_the_context_is_cut_behind_a_word_as_in_training() -> None:
    model = model_of()
    room = model.context_length
    long = " ".join(["a gold star"] * room)
    (cut,), _ = model.fit_texts([long])
    assert model.tokenizer.length(f"{cut} {long.removeprefix(cut).split()[0]}") > room
    # by tokens alone the last word would be cut in its middle
    assert not torch.equal(model.tokenizer([cut]), model.tokenizer([long]))
    text, whole = (encoder(model).encode_text([one], length=room) for one in (long, cut))
    assert torch.equal(text.text_embed, whole.text_embed)
    assert torch.equal(text.text_encodings, whole.text_encodings)


def test_a_text_means_the_same_in_any_company() -> None:
    alone, together = (encoder(model_of()).encode_text(texts) for texts in (TEXTS[:1], TEXTS))
    assert torch.allclose(alone.text_embed[0], together.text_embed[0], atol=1e-6)


def test_a_string_equals_its_tokens(model: ClipModel) -> None:
    tokens = model.tokenize(model.fit_texts(TEXTS)[0])
    embed, _ = model.embed_tokens(tokens)
    assert torch.allclose(encoder(model).encode_text(TEXTS).text_embed, embed, atol=1e-6)


def test_a_shortened_vocabulary_spells_every_text() -> None:
    model = model_of()
    assert model.tokenizer.vocab_size == vocabulary_size(200) == 714
    for text in ('a gold crown above the wordmark "atlanta" in white.', "déjà-vu № 7"):
        tokens = model.tokenizer.encode(text)
        assert max(tokens) < 712
        assert model.tokenizer.decode(tokens).strip() == text.replace('"', ' " ').replace("  ", " ") or text
    (row,) = model.tokenizer(["a crown"])
    assert row[0] == 712  # start
    assert int(row.max()) == 713  # end, the largest number, by which the library finds it
    assert len(open_clip.get_tokenizer("ViT-B-32").encode("wordmark")) < len(
        model.tokenizer.encode("wordmark")
    )


def test_the_gradient_of_chunks_is_the_gradient_of_the_batch() -> None:
    images, tokens = pictures(8, 16), model_of().tokenize([f"a crest number {index}" for index in range(8)])
    found = {}
    for chunk in (8, 4, 3):
        model = model_of().train()
        image_embed, text_embed, scale, _ = model(images, tokens, chunk)
        logits = scale * image_embed @ text_embed.T
        (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))).backward()
        found[chunk] = {name: weight.grad for name, weight in model.named_parameters()}
    assert "clip.logit_scale" in found[8]
    assert all(gradient is not None for gradient in found[8].values())
    for chunk in (4, 3):
        for name, gradient in found[8].items():
            limit = 1e-5 * float(gradient.abs().max()) + 1e-8
            assert float((found[chunk][name] - gradient).abs().max()) <= limit, name


def test_a_picture_of_another_size_is_resized_with_antialiasing() -> None:
    model = model_of()
    large = pictures(1, 16).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    small, resized = encoder(model).encode_image(pictures(1, 16)), encoder(model).encode_image(large)
    assert float((small * resized).sum()) > 0.9
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert float((encoder(model).encode_image(stripes) * encoder(model).encode_image(grey)).sum()) > 0.99


def test_both_ends_of_a_wordmark_are_seen(wordmark: Image.Image) -> None:
    other = wordmark.copy()
    other.paste((0, 128, 0), (224, 8, 256, 56))

    def seen(picture: Image.Image) -> Tensor:
        return encoder(model_of()).encode_image(torch.from_numpy(to_array(square(picture, 64)))[None] / 255)

    assert torch.equal(seen(wordmark), seen(wordmark.copy()))
    assert not torch.allclose(seen(wordmark), seen(other), atol=1e-4)


def test_weights_travel_with_tokenizer_and_preprocessing(tmp_path: Path) -> None:
    model = model_of()
    spec = model.spec.model_dump(mode="json")
    export_weights(tmp_path, model, {"kind": "clip", "spec": spec, "parents": {"start": "s" * 16}})
    back = load_clip(tmp_path)
    assert torch.equal(back.encode_text(TEXTS).text_embed, encoder(model).encode_text(TEXTS).text_embed)
    images = pictures(2, 16)
    assert torch.equal(back.encode_image(images), encoder(model).encode_image(images))
    assert back.parents == {"start": "s" * 16}
    assert len(back.hash) == 16


def test_an_unknown_architecture_is_refused_with_its_neighbours() -> None:
    with pytest.raises(WeightsError, match=r'OpenCLIP has no "ViT-B-33"; near it are .*ViT-B'):
        ClipModel(ClipSpec(architecture="ViT-B-33"))
    with pytest.raises(WeightsError, match='OpenCLIP has no "None"'):
        ClipModel(ClipSpec())


@pytest.mark.parametrize(
    "custom", [{"embed_dim": 4}, {"embed_dim": 4, "vision_cfg": {"colour": 1}, "text_cfg": {}}]
)
def test_a_custom_architecture_that_is_none_is_refused(custom: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"model\.custom: is no OpenCLIP architecture"):
        ClipModel(ClipSpec(custom=custom))


def test_a_token_table_smaller_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"text_cfg\.vocab_size: found 700, expected at least 714"):
        model_of(text={**TEXT, "vocab_size": 700})


@pytest.fixture
def tiny_architecture(tmp_path: Path) -> str:
    """An architecture that OpenCLIP knows by name, as if it had shipped it."""
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": 49408, "width": 8}}
    (tmp_path / "crest-tiny.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    return "crest-tiny"


def test_published_weights_from_a_local_file(tiny_architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    published = open_clip.create_model(tiny_architecture).eval()
    path = tmp_path / "published.safetensors"
    save_file(published.state_dict(), path)
    model = load_pretrained(tiny_architecture, str(path)).eval()
    assert model.spec.architecture == tiny_architecture
    images, tokens = pictures(2, 16), open_clip.get_tokenizer(tiny_architecture)(TEXTS)
    ours = encoder(model).encode_text(TEXTS).text_embed
    assert torch.allclose(ours, published.encode_text(tokens, normalize=True), atol=1e-5)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (model.spec.image_mean, model.spec.image_std)
    )
    theirs = published.encode_image((images - mean) / std, normalize=True)
    assert torch.allclose(encoder(model).encode_image(images), theirs, atol=1e-5)
    export_weights(tmp_path, model, {"kind": "clip", "spec": model.spec.model_dump(mode="json")})
    assert torch.equal(load_clip(tmp_path).encode_text(TEXTS).text_embed, ours)


@pytest.mark.parametrize("pretrained", ["no_such_tag", "missing.safetensors", "foreign.safetensors"])
def test_published_weights_that_cannot_be_had_are_refused(
    tiny_architecture: str, tmp_path: Path, pretrained: str
) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    place = str(tmp_path / pretrained) if pretrained.endswith("s") else pretrained
    with pytest.raises(
        WeightsError, match=r"(tiny|foreign).*: the weights can't be had \(.*name a local file"
    ):
        load_pretrained(tiny_architecture, place)


def test_a_shortened_table_leaves_nothing_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tokens = BytePairs(321, context_length=16)(["a red shield"])
    assert tokens.shape == (1, 16)
    assert list(tmp_path.iterdir()) == []
