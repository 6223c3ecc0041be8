"""Weights of Crest in plain OpenCLIP, and OpenCLIP's folders in Crest: the same embeddings on both sides."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import transform
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from crest.checkpoint import export_weights
from crest.errors import WeightsError
from crest.images import square, to_array
from crest.models.clip import ClipEncoder, ClipModel, load_clip, load_clip_model, load_pretrained
from crest.models.clip_files import MERGES, OPEN_CLIP_CONFIG, SAFE, write_open_clip
from tests.conftest import draw_logo
from tests.crest.hub_server import HubServer
from tests.crest.models.clip_zoo import KINDS, TEXTS, card, embeddings, plain_tokens, same, tiny


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_folders_file_loads_in_plain_open_clip(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, tmp_path / "words")
    path = export_weights(tmp_path / "run", model, card(model))
    assert set(load_file(path)) == set(model.clip.state_dict())  # OpenCLIP's own names
    name = f"plain-{tmp_path.name}"
    (tmp_path / f"{name}.json").write_text(json.dumps(model.spec.custom), encoding="utf-8")
    open_clip.add_model_config(tmp_path / f"{name}.json")
    plain, _, _ = open_clip.create_model_and_transforms(name, pretrained=str(path))
    compare(plain.eval(), model, plain_tokens(model, tmp_path / "words", model.fit_texts(TEXTS)[0]))


@torch.no_grad()
def compare(plain: Any, model: ClipModel, tokens: Tensor) -> None:
    """Embeddings of OpenCLIP's model against those of Crest's."""
    pictures = torch.rand(2, 3, model.side_px, model.side_px, generator=torch.Generator().manual_seed(1))
    images, texts = embeddings(model)
    theirs = F.normalize(plain.encode_image((pictures - model.mean) / model.std), dim=-1)
    assert torch.allclose(images, theirs, atol=1e-5)
    assert torch.allclose(texts, F.normalize(plain.encode_text(tokens), dim=-1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_in_plain_open_clip_and_sees_a_picture_alike(kind: str, tmp_path: Path) -> None:
    """By the way that OpenCLIP 2.32 has: an architecture is added from a file, weights are named by path."""
    scaled = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}
    model = tiny(kind, tmp_path / "words", **scaled)
    folder = tmp_path / f"folder-{tmp_path.name}"
    write_open_clip(folder, model)
    open_clip.add_model_config(folder / f"{folder.name}.json")
    prepared = json.loads((folder / OPEN_CLIP_CONFIG).read_text())["preprocess_cfg"]
    plain, _, prepare = open_clip.create_model_and_transforms(
        folder.name,
        pretrained=str(folder / SAFE),
        image_mean=tuple(prepared["mean"]),
        image_std=tuple(prepared["std"]),
        image_interpolation=prepared["interpolation"],
        image_resize_mode=prepared["resize_mode"],
    )
    compare(plain.eval(), model, plain_tokens(model, tmp_path / "words", model.fit_texts(TEXTS)[0]))
    picture = draw_logo(3, model.side_px)
    ours = ClipEncoder(model, "0" * 16, {}).encode_image(
        torch.from_numpy(to_array(square(picture, model.side_px)).astype(np.float32))[None] / 255
    )
    with torch.no_grad():
        theirs = F.normalize(plain.encode_image(prepare(picture)[None]), dim=-1)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_open_clips_form_is_a_place_to_start_from(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, tmp_path / "words", image_mean=(0.5, 0.4, 0.3), interpolation="bilinear")
    write_open_clip(tmp_path / "folder", model)
    for path in (tmp_path / "words").glob("*"):
        path.unlink()
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    back, digest, parents = load_clip_model(tmp_path / "elsewhere")
    assert same(back.eval(), model)
    assert (len(digest), parents) == (16, {})
    assert back.spec.image_mean == (0.5, 0.4, 0.3)
    assert back.spec.interpolation == "bilinear"
    assert same(load_pretrained(str(tmp_path / "elsewhere")).eval(), model)


def test_a_wordmark_keeps_its_ends_in_plain_open_clip_too(tmp_path: Path, wordmark: Image.Image) -> None:
    model = tiny("vit", tmp_path)
    write_open_clip(tmp_path / "folder", model)
    config = json.loads((tmp_path / "folder" / OPEN_CLIP_CONFIG).read_text())["preprocess_cfg"]
    plain = transform.image_transform_v2(
        transform.PreprocessCfg(**{**config, "size": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}),
        is_train=False,
    )
    theirs, ours = plain(wordmark), torch.from_numpy(to_array(square(wordmark, 64)).astype(np.float32)) / 255
    assert (theirs - ours).abs().mean() < 0.02  # other filters, the same picture
    assert torch.equal(theirs[:, 0, 0], torch.ones(3))  # padded white, not black
    assert theirs[0, 32, 2] > 0.9 > theirs[1, 32, 2]  # red at its left end
    assert theirs[2, 32, 61] > 0.9 > theirs[1, 32, 61]  # blue at its right


def test_a_shortened_byte_pair_table_goes_with_the_folder(tmp_path: Path) -> None:
    model = tiny("vit", tmp_path)
    write_open_clip(tmp_path / "folder", model)
    words = SimpleTokenizer(bpe_path=str(tmp_path / "folder" / MERGES), context_length=16)
    assert torch.equal(words(TEXTS), model.tokenizer(TEXTS))
    (tmp_path / "folder" / MERGES).write_bytes((tmp_path / "folder" / MERGES).read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"merges\.txt\.gz: is no beginning of CLIP's own"):
        load_clip(tmp_path / "folder")


@pytest.mark.slow
def test_a_published_folder_loads_by_its_name_in_plain_open_clip(hub: HubServer, tmp_path: Path) -> None:
    model = tiny("vit", tmp_path / "words", image_mean=(0.5, 0.4, 0.3))
    write_open_clip(tmp_path / "folder", model, home="club/crests")
    hub.repositories["club/crests"] = tmp_path / "folder"
    tokens = tmp_path / "tokens.pt"
    torch.save(model.tokenizer(model.fit_texts(TEXTS)[0]), tokens)
    script = (
        "import open_clip, torch\n"
        "model, _, transform = open_clip.create_model_and_transforms('hf-hub:club/crests')\n"
        f"text = model.eval().encode_text(torch.load({str(tokens)!r}), normalize=True)\n"
        f"torch.save((text.detach(), list(model.visual.image_mean)), {str(tmp_path / 'out.pt')!r})\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "theirs")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    text, mean = torch.load(tmp_path / "out.pt")
    assert torch.allclose(text, embeddings(model)[1], atol=1e-5)
    assert mean == [0.5, 0.4, 0.3]
    assert same(load_clip("hf-hub:club/crests").model, model)


def test_a_siglip_of_the_hub_brings_its_tokenizer_from_its_own_repository(
    hub: HubServer, tmp_path: Path
) -> None:
    model = tiny("siglip", tmp_path / "words")
    write_open_clip(tmp_path / "folder", model, home="club/crests")
    hub.repositories["club/crests"] = tmp_path / "folder"
    assert same(load_clip("hf-hub:club/crests").model, model)
    assert not any("words" in request for request in hub.requests)
