"""CLIP weights from anywhere OpenCLIP publishes them, and back into OpenCLIP, embeddings equal."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as tags
from safetensors.torch import load_file, save_file

from crest.checkpoint import export_weights
from crest.errors import CrestError, FetchError, WeightsError
from crest.models.clip import ClipModel, ClipSpec, load_clip, load_pretrained
from crest.models.clip_files import SAFE, read_state
from tests.crest.hub_server import HubServer
from tests.crest.models.clip_zoo import TEXTS, card, config_of, embeddings, same, tiny, tokenizer_folder

DEAD_HUB = "http://127.0.0.1:9"


@pytest.fixture
def named(tmp_path: Path) -> Callable[..., str]:
    """Call with a kind: OpenCLIP knows its architecture by a name, as if it had shipped it."""

    def add(kind: str = "vit", **further: Any) -> str:
        config = {**config_of(kind, tmp_path / "words"), **further}
        name = f"crest-{kind}-{tmp_path.name.replace('_', '-')}"
        if "hf_tokenizer_name" not in config["text_cfg"]:
            config["text_cfg"] = {**config["text_cfg"], "vocab_size": 49408}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
        return name

    return add


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def published(name: str, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return open_clip.create_model(name).eval()


@pytest.mark.parametrize("form", ["safetensors", "bare", "checkpoint", "parallel", "compiled"])
def test_local_weights_of_every_form(form: str, named: Callable[..., str], tmp_path: Path) -> None:
    name = named()
    clip = published(name)
    state, path = clip.state_dict(), tmp_path / "weights.pt"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif form == "bare":
        torch.save(state, path)
    else:
        before = {"checkpoint": "", "parallel": "module.", "compiled": "_orig_mod."}[form]
        state = {before + key: value for key, value in state.items()}
        optimizer = torch.optim.AdamW(clip.parameters())
        kept = {
            "epoch": 3,
            "name": "a run",
            "state_dict": state,
            "optimizer": optimizer.state_dict(),
        }
        torch.save(kept, path)
    model = load_pretrained(name, str(path)).eval()
    with torch.no_grad():
        theirs = clip.encode_text(open_clip.get_tokenizer(name, context_length=16)(TEXTS), normalize=True)
    assert torch.allclose(embeddings(model)[1], theirs, atol=1e-5)
    assert set(model.clip.state_dict()) == set(clip.state_dict())


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "args": Trap(tmp_path / "sprung")}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=r"bad\.pt: holds more than tensors, which could run code"):
        read_state(tmp_path / "bad.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(WeightsError, match=r"program\.pt: is a TorchScript program.* by their tag"):
        read_state(tmp_path / "program.pt")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_file_that_was_cut_short_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    state = {"weight": torch.zeros(1000)}
    save_file(state, path) if name.endswith("s") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(WeightsError, match=r"cut\..*: is not a whole checkpoint") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_named_by_the_first_difference(
    named: Callable[..., str], tmp_path: Path
) -> None:
    name = named()
    state = published(name).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({**state, "ln_final.weight": torch.zeros(7)}, path)
    with pytest.raises(WeightsError, match=r"ln_final\.weight is \(7,\), expected \(24,\)"):
        load_pretrained(name, str(path))
    save_file({**state, "text.head": torch.zeros(7)}, path)
    with pytest.raises(WeightsError, match=r"holds text\.head, which the architecture has not"):
        load_pretrained(name, str(path))


@pytest.mark.parametrize("kind", ["vit", "custom", "siglip", "roberta"])
def test_an_architecture_from_a_json_file(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, tmp_path / "words")
    path = tmp_path / "own.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    merges = None if "hf_tokenizer_name" in config["text_cfg"] else 200
    torch.manual_seed(0)
    model = ClipModel(ClipSpec(architecture=str(path), bpe_merges=merges)).eval()
    path.unlink()  # the spec is whole without it
    assert model.spec.architecture is None
    again = ClipModel(ClipSpec.model_validate(model.spec.model_dump(mode="json"))).eval()
    again.load_state_dict(model.state_dict())
    assert same(model, again)
    if merges is None:  # whose weights can be had with an architecture from a file
        path.write_text(json.dumps(config), encoding="utf-8")
        save_file(model.clip.state_dict(), tmp_path / "weights.safetensors")
        assert same(load_pretrained(str(path), str(tmp_path / "weights.safetensors")).eval(), model)


@pytest.mark.parametrize("content", ["[]", "{}", '{"embed_dim": 4}', "no json"])
def test_a_json_file_that_is_no_architecture_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(CrestError, match=r"own\.json: is no"):
        ClipModel(ClipSpec(architecture=str(path)))
    with pytest.raises(WeightsError, match=r"none\.json: there is no such file"):
        ClipModel(ClipSpec(architecture=str(tmp_path / "none.json")))


def test_a_tag_is_had_once_and_then_without_a_hub(
    named: Callable[..., str], hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = named()
    folder = tmp_path / "repository"
    folder.mkdir()
    quick = {**open_clip.get_model_config(name), "quick_gelu": True}
    torch.manual_seed(3)
    clip = open_clip.CLIP(**quick).eval()
    save_file(clip.state_dict(), folder / SAFE)
    hub.repositories["club/crests"] = folder
    tag = {
        "url": "",
        "hf_hub": "club/crests/",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.4, 0.4, 0.4),
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    monkeypatch.setitem(tags._PRETRAINED, name, {"club2b": tag})
    model = load_pretrained(name, "club2b").eval()
    assert model.spec.image_mean == (0.5, 0.5, 0.5)
    assert (model.spec.interpolation, model.spec.resize_mode) == ("bilinear", "squash")
    with torch.no_grad():  # the activation that the weights were trained with, of which OpenCLIP only warns
        theirs = clip.encode_text(model.tokenizer(model.fit_texts(TEXTS)[0]), normalize=True)
    assert torch.allclose(embeddings(model)[1], theirs, atol=1e-5)
    asked = sum(hub.requests.values())
    monkeypatch.setenv("HF_ENDPOINT", DEAD_HUB)
    assert same(load_pretrained(name, "club2b").eval(), model)
    assert sum(hub.requests.values()) == asked
    save_file(clip.state_dict(), tmp_path / "local.safetensors")
    local = load_pretrained(name, str(tmp_path / "local.safetensors"))
    assert local.spec.image_mean == (0.5, 0.5, 0.5)  # all tags of the architecture agree in it


def test_a_tokenizer_of_the_hub_is_stored_with_the_weights(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("siglip", tmp_path / "words")
    hub.repositories["club/words"] = tmp_path / "words"
    config["text_cfg"]["hf_tokenizer_name"] = "club/words"
    torch.manual_seed(0)
    model = ClipModel(ClipSpec(custom=config)).eval()
    export_weights(tmp_path / "run", model, card(model))
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").exists()
    monkeypatch.setenv("HF_ENDPOINT", DEAD_HUB)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another machine"))
    assert same(load_clip(tmp_path / "run").model, model)


@pytest.mark.parametrize(
    ("architecture", "pretrained", "named_in_it"),
    [
        ("ViT-B-16-SigLIP", None, "timm/ViT-B-16-SigLIP"),
        ("roberta-ViT-B-32", None, "roberta-base"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("RN50", "openai", "timm/resnet50_clip.openai"),
        ("hf-hub:club/crests", None, "club/crests"),
    ],
)
def test_what_is_not_here_and_cannot_be_had_is_told_within_a_second(
    architecture: str,
    pretrained: str | None,
    named_in_it: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub  # noqa: F401  (its import is not what is timed)

    def load() -> None:
        if pretrained or architecture.startswith("hf-hub:"):
            load_pretrained(architecture, pretrained)
        else:
            ClipModel(ClipSpec(architecture=architecture))

    monkeypatch.setenv("HF_ENDPOINT", DEAD_HUB)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(FetchError, match=f"{named_in_it}: is no folder on this machine") as caught:
        load()
    assert time.monotonic() - started < 1
    assert f"{DEAD_HUB} could not be asked for it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_from_before_names_were_open_clips_still_load(tmp_path: Path) -> None:
    model = tiny("vit", tmp_path)
    path = export_weights(tmp_path, model, card(model))
    save_file({f"clip.{name}": value for name, value in load_file(path).items()}, path)
    assert same(load_clip(tmp_path).model, model)


def test_an_unknown_tag_names_those_that_there_are() -> None:
    with pytest.raises(WeightsError, match=r"RN50/nonesuch: .* OpenCLIP knows openai, yfcc15m"):
        load_pretrained("RN50", "nonesuch")
    with pytest.raises(WeightsError, match=r"model\.pretrained is missing; RN50 needs a tag or a local file"):
        load_pretrained("RN50")


def test_the_tokenizer_of_a_kind_is_read_from_any_of_its_files(tmp_path: Path) -> None:
    from crest.models.clip_tokenizers import has_tokenizer

    assert not has_tokenizer(tmp_path)
    assert has_tokenizer(tokenizer_folder(tmp_path, "bert"))
