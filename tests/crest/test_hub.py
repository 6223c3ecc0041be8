import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crest.errors import FetchError
from crest.hub import fetch, is_hub_name, is_whole, wanted
from tests.crest.hub_server import HubServer


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in {
        "config.json": "{}",
        "model.safetensors": "weights",
        "pytorch_model.bin": "the same weights",
        "tf_model.h5": "the same weights",
        "modeling_own.py": "raise SystemExit",
        "README.md": "read me",
        "tokenizer.json": "{}",
    }.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({"club/captioner": repository}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_only_what_is_needed_to_load_is_fetched(hub: HubServer, repository: Path, tmp_path: Path) -> None:
    got = fetch("club/captioner", cache_dir=tmp_path / "cache")
    assert {path.name for path in got.folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert (got.folder / "model.safetensors").read_text() == "weights"
    assert got.commit == HubServer.commit(repository)


def test_a_tag_is_resolved_to_its_commit(hub: HubServer, repository: Path, tmp_path: Path) -> None:
    assert fetch("club/captioner", "v1", cache_dir=tmp_path).commit == HubServer.commit(repository)
    with pytest.raises(FetchError, match=r"has no revision v9; check caption.revision"):
        fetch("club/captioner", "v9", cache_dir=tmp_path)


def test_weights_are_fetched_once(hub: HubServer, tmp_path: Path) -> None:
    fetch("club/captioner", cache_dir=tmp_path)
    fetch("club/captioner", cache_dir=tmp_path)
    got = {
        name: count for name, count in hub.requests.items() if name.startswith("GET") and "resolve" in name
    }
    assert set(got.values()) == {1}


def test_what_was_had_before_serves_without_a_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [fetch("club/captioner", name, cache_dir=tmp_path) for name in (None, "v1")]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for revision in (None, before[0].commit):
        assert fetch("club/captioner", revision, cache_dir=tmp_path) == before[0]
    assert fetch("club/captioner", "v1", cache_dir=tmp_path) == before[1]


def test_a_dead_hub_is_told_at_once_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetch("club/captioner", cache_dir=tmp_path)
    assert time.monotonic() - started < 2
    assert "http://127.0.0.1:9 could not be asked for it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_whose_name_does_not_resolve_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    started = time.monotonic()
    with pytest.raises(
        FetchError, match=r"the name hub\.invalid does not resolve|hub\.invalid:443 does not answer"
    ):
        fetch("club/captioner", cache_dir=tmp_path)
    assert time.monotonic() - started < 2


def test_the_offline_switch_is_heeded_as_it_stands(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        fetch("club/captioner", cache_dir=tmp_path)
    assert not hub.requests


def test_a_name_that_no_repository_has_is_told(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"club/nobody: is no folder on this machine, and .* has no such"):
        fetch("club/nobody", cache_dir=tmp_path)


def test_a_repository_without_a_model_is_told(hub: HubServer, repository: Path, tmp_path: Path) -> None:
    (repository / "config.json").unlink()
    with pytest.raises(FetchError, match=r"holds no config\.json"):
        fetch("club/captioner", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("place", "is_name"),
    [
        ("nlpconnect/vit-gpt2-image-captioning", True),
        ("Qwen/Qwen2.5-VL-3B-Instruct", True),
        ("out/demo/runs/captioner", False),
        ("/srv/models/blip", False),
        ("./blip/base", False),
        ("../blip", False),
        ("blip", False),
        ("tests/crest", False),
    ],
)
def test_names_are_told_from_paths(place: str, is_name: bool) -> None:
    assert is_hub_name(place) is is_name


def test_pickled_weights_are_taken_only_where_there_are_no_others() -> None:
    split = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert wanted([*split, "pytorch_model.bin", "onnx/model.onnx", "optimizer.bin"]) == split
    assert wanted(["pytorch_model.bin", "training_args.bin"]) == ["pytorch_model.bin"]


def test_a_cache_that_lacks_a_part_of_the_weights_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert not is_whole(tmp_path)
    (tmp_path / "model-1.safetensors").write_text("")
    assert is_whole(tmp_path)
