"""A published ViT-GPT2 is fine-tuned, whole or by adapters, and comes out as a folder of the same kind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from crest.adapters import load_adapter
from crest.checkpoint import read_card
from crest.errors import WeightsError
from crest.models.captioner import (
    END,
    CaptionerModel,
    CaptionerSpec,
    learn_vocabulary,
    load_captioner,
)
from crest.models.hub_captioner import HubCaptioner
from crest.models.published_captioner import (
    KIND,
    PublishedModel,
    load_published_model,
    publish,
    published_folder,
)

TEXTS = [f"a {word} crest with a charge" for word in ("red", "navy", "gold", "green", "black", "purple")]


@pytest.fixture(scope="module")
def vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT-GPT2 with random weights, saved as a hub has it: network, tokenizer, image processor."""
    folder = tmp_path_factory.mktemp("hub") / "vit-gpt2"
    torch.manual_seed(0)
    spec = {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "heads": 2}
    words = CaptionerModel(CaptionerSpec.model_validate({**spec, **learn_vocabulary(TEXTS, 300)})).tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, eos_token=END, bos_token=END, pad_token=END, unk_token=END
    )
    vit = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=16,
        n_layer=1,
        n_head=2,
        add_cross_attention=True,
        is_decoder=True,
    )
    network = VisionEncoderDecoderModel(
        encoder=ViTModel(vit, add_pooling_layer=False), decoder=GPT2LMHeadModel(gpt2)
    )
    end = tokenizer.convert_tokens_to_ids(END)
    for settings in (network.config, network.generation_config):
        settings.decoder_start_token_id = settings.pad_token_id = settings.eos_token_id = end
    for part in (network, tokenizer, ViTImageProcessor(size={"height": 16, "width": 16})):
        part.save_pretrained(folder)
    return folder


def tune(tiny_world: Any, command: Any, folder: Path, vit_gpt2: Path, **changes: Any) -> Path:
    start = {"model__scratch": None, "model__start": str(vit_gpt2), **changes}
    values = tiny_world.config("caption_train", folder / "run", **start)
    assert command("caption_train", values, folder) == 0
    return folder / "run"


@pytest.fixture(scope="module", params=[None, 2], ids=["whole", "adapters"])
def run_dir(
    request: pytest.FixtureRequest,
    tiny_world: Any,
    command: Any,
    tmp_path_factory: pytest.TempPathFactory,
    vit_gpt2: Path,
) -> Path:
    """A finished run that started from it."""
    folder = tmp_path_factory.mktemp("tuned")
    return tune(tiny_world, command, folder, vit_gpt2, model__lora_rank=request.param)


def test_the_library_reads_what_the_run_learned(run_dir: Path, vit_gpt2: Path) -> None:
    back = VisionEncoderDecoderModel.from_pretrained(run_dir / "published")
    start = VisionEncoderDecoderModel.from_pretrained(vit_gpt2)
    ours, before = back.state_dict(), start.state_dict()
    assert ours.keys() == before.keys()
    assert any(not torch.equal(ours[name], before[name]) for name in before)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "published")
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_the_run_folder_is_a_captioner_like_any(run_dir: Path) -> None:
    captioner = load_captioner(run_dir)
    assert isinstance(captioner, HubCaptioner)
    assert len(captioner.caption([Image.new("RGB", (30, 20), (200, 16, 46))])) == 1
    card = read_card(run_dir / "weights.safetensors", KIND)
    assert card["parents"]["start"]
    assert card["spec"]["model_type"] == "vision-encoder-decoder"


def test_training_goes_on_from_what_a_run_left(
    run_dir: Path, tiny_world: Any, command: Any, tmp_path: Path
) -> None:
    again = tune(tiny_world, command, tmp_path, run_dir)
    assert isinstance(load_captioner(again), HubCaptioner)


def test_adapters_fit_the_start_and_make_what_was_exported(
    tiny_world: Any, command: Any, tmp_path: Path, vit_gpt2: Path
) -> None:
    run_dir = tune(tiny_world, command, tmp_path, vit_gpt2, model__lora_rank=2)
    adapted, _ = load_published_model(vit_gpt2)
    load_adapter(run_dir / "adapter.safetensors", adapted)
    tuned, _ = load_published_model(run_dir / "published")
    images, labels = torch.rand(2, 3, 16, 16), tuned.tokenize(TEXTS[:2])
    with torch.no_grad():
        left, right = (model.eval()(images, labels)[0] for model in (adapted, tuned))
    assert torch.allclose(left, right, atol=1e-6)


def test_an_interruption_before_publishing_is_made_good(
    run_dir: Path, vit_gpt2: Path, tmp_path: Path
) -> None:
    for name in ("weights.safetensors", "weights.json"):
        os.link(run_dir / name, tmp_path / name)
    (tmp_path / "published.part").mkdir()
    folder = publish(tmp_path, vit_gpt2)
    assert not (tmp_path / "published.part").exists()
    ours, theirs = (load_published_model(place)[0].state_dict() for place in (folder, run_dir / "published"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pictures_are_scaled_as_the_processor_does(vit_gpt2: Path) -> None:
    model = PublishedModel(vit_gpt2)
    picture = Image.new("RGB", (16, 16), (200, 16, 46))
    wanted = model.processor(images=picture, return_tensors="pt")["pixel_values"]
    pixels = torch.tensor([200, 16, 46]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    assert torch.allclose(model.look(pixels)[0], wanted, atol=1e-5)


def test_a_text_starts_and_ends_with_the_models_own_tokens(vit_gpt2: Path) -> None:
    model = PublishedModel(vit_gpt2)
    (row,) = model.tokenize([TEXTS[0]])
    assert int(row[-1]) == model.end == model.start
    assert model.tokenize(["x" * 500]).shape[1] == 64


def test_other_folders_are_none_of_these(tmp_path: Path) -> None:
    assert published_folder(tmp_path) is None
    assert published_folder("stock/captioner") is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}), encoding="utf-8")
    assert published_folder(tmp_path) is None


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, vit_gpt2: Path) -> None:
    (tmp_path / "config.json").write_bytes((vit_gpt2 / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        load_published_model(tmp_path)
    os.link(vit_gpt2 / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="is no captioner that transformers can read"):
        load_published_model(tmp_path)
