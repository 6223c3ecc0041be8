"""A finished run goes to a hub whole, its card says what the files say, and every refusal is one sentence."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clip_train.model_card import read_facts
from clip_train.run_record import read_run
from crest.checkpoint import export_weights
from crest.errors import DataError
from crest.models.clip import ClipModel, load_clip
from crest.shards import Sample, write_shards
from tests.conftest import draw_logo, png, run_room
from tests.crest.hub_server import HubServer
from tests.crest.models.clip_zoo import embeddings, same, tiny

TOKEN = "hf_a_token_of_nobody"
BEFORE = {"r_at_1": 0.125, "r_at_5": 0.5, "r_at_1_low": 0.05, "r_at_1_high": 0.25, "samples": 8.0}
AFTER = {
    "r_at_1": 0.375,
    "r_at_1_low": 0.25,
    "r_at_1_high": 0.5,
    "text_to_image_r_at_1": 0.4375,
    "text_to_image_median_rank": 2.0,
    "chance_r_at_1": 0.0625,
    "samples": 8.0,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run by its files alone: weights, card, metrics, report, and the shards that it names."""
    samples = [
        Sample(
            f"{index:016x}",
            png(draw_logo(index, 16)),
            f"logo {index}",
            {
                "source": "league" if index < 5 else "fans | forum",
                "licence": "CC0" if index < 5 else "",
                "caption_origin": {"origin": "model", "model": "blip"} if index == 0 else {"origin": "human"},
            },
        )
        for index in range(8)
    ]
    shards = tmp_path / "shards"
    splits: Any = {"train": samples[:6], "val": samples[6:]}
    manifest = write_shards(shards, splits, samples_per_shard=4, parents={}, dropped={"no_caption": 3})
    folder = tmp_path / "runs" / "clip"
    folder.mkdir(parents=True)
    recipe = {
        "run": {"dir": str(folder), "steps": 4},
        "data": {"shards": str(shards)},
        "model": {"start": "/home/somebody/clip", "mode": "lora"},
        "optim": {"lr": 0.0003},
    }
    (folder / "config.json").write_text(json.dumps(recipe))
    model = tiny("vit", tmp_path / "words", image_mean=(0.5, 0.4, 0.3))
    card = {
        "kind": "clip",
        "spec": model.spec.model_dump(mode="json"),
        "parents": {"shards": manifest.hash},
        "recipe": recipe,
        "step": 3,
        "wise_ft": 0.75,
        "world": {"processes": 1, "device": "cpu"},
    }
    export_weights(folder, model, card)
    report = {
        "mode": "lora",
        "why": "8 pairs",
        "pairs": 6,
        "held_out": 8,
        "before": BEFORE,
        "after": AFTER,
        "probe": {"drift": 0.0123},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    import huggingface_hub.constants

    # the hub's own chunked storage has no server on this machine; HF_HUB_DISABLE_XET is read at import only
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer({}, home=tmp_path / "hub", token=TOKEN, datasets=("club/logos",)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def config_of(run_dir: Path, **hub: Any) -> dict[str, Any]:
    return {"data": {"run": run_dir}, "hub": {"repository": "club/crests", **hub}}


def publish(run_dir: Path, tmp_path: Path, *words: str, **hub: Any) -> int:
    return run_room("clip_train.publish", config_of(run_dir, **hub), tmp_path, *words)


def test_a_run_goes_to_the_hub_and_comes_back(run_dir: Path, hub: HubServer, tmp_path: Path) -> None:
    assert publish(run_dir, tmp_path) == 0
    there = tmp_path / "hub" / "club" / "crests"
    assert {path.name for path in there.iterdir()} == {
        "README.md",
        "crests.json",
        "merges.txt.gz",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    for path in there.iterdir():
        assert path.read_bytes() == (run_dir / "published" / path.name).read_bytes()
    made = hub.made["club/crests"]  # later releases of the library call it a visibility
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.messages == ["CLIP clip"]
    back, own = load_clip("hf-hub:club/crests").model, load_clip(run_dir).model
    assert same(back, own)
    assert back.spec.image_mean == (0.5, 0.4, 0.3)
    assert set(load_file(there / "open_clip_model.safetensors")) == set(own.clip.state_dict())


def test_publishing_again_replaces_what_was_there(run_dir: Path, hub: HubServer, tmp_path: Path) -> None:
    assert publish(run_dir, tmp_path) == 0
    assert publish(run_dir, tmp_path, limits=["Not for flags."]) == 0
    assert "- Not for flags." in (tmp_path / "hub" / "club" / "crests" / "README.md").read_text()
    assert len(hub.messages) == 2
    assert list(hub.made) == ["club/crests"]


def test_the_card_says_what_the_files_say(run_dir: Path, tmp_path: Path) -> None:
    assert publish(run_dir, tmp_path, upload=False, licence="cc-by-4.0") == 0
    card = (run_dir / "published" / "README.md").read_text()
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    fields = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert fields == {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "logos", "crest"],
        "license": "cc-by-4.0",
    }
    for line in (
        "tuned (lora) on 6 pairs",
        "train 6, val 2",
        "no_caption 3",
        "| league | CC0 | 5 |",
        "| fans \\| forum | not said | 3 |",
        "| model | blip | 1 |",
        "Mode `lora`; because 8 pairs; 0.75 of the way from the start to the tuned weights (WiSE-FT)",
        "Weights of step 3.",
        "| optim.lr | `0.0003` |",
        "| R@1 | 0.125 (0.05 to 0.25) | 0.375 (0.25 to 0.5) | 0.0625 |",
        "| R@5 | 0.5 | not measured |  |",
        "| text to image median rank | not measured | 2 |  |",
        "Drift on a fixed bank of general pictures and prompts: 0.0123.",
        "- Only 8 held-out pairs",
        "written by models too (blip)",
        "- The records name no licence for 3 pictures.",
    ):
        assert line in body, line


def test_the_card_names_no_place_of_this_machine(run_dir: Path, tmp_path: Path) -> None:
    assert publish(run_dir, tmp_path, upload=False) == 0
    for path in (run_dir / "published").glob("*[nd]"):  # .json and .md
        content = path.read_text()
        assert str(tmp_path) not in content
        assert "/home/somebody" not in content


def test_a_run_without_a_report_is_told_by_its_metrics_and_what_was_not_measured(
    run_dir: Path, tmp_path: Path
) -> None:
    (run_dir / "report.json").unlink()
    rows = [{"step": 0, "val/r_at_1": 0.1}, {"step": 3, "val/r_at_1": 0.2}, {"step": 4, "val/r_at_1": 0.15}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "config.json").write_text(json.dumps({"data": {"shards": "gone"}}))
    assert publish(run_dir, tmp_path, upload=False) == 0
    card = (run_dir / "published" / "README.md").read_text()
    assert "| R@1 | 0.1 | 0.2 |  |" in card
    assert "How much general knowledge it lost was not measured." in card
    assert "Sources and licences can't be told" in card


def test_shards_that_are_no_longer_those_of_the_run_are_refused(run_dir: Path) -> None:
    shards = run_dir.parents[1] / "shards"
    samples: Any = {"train": [Sample("0" * 16, png(draw_logo(1, 16)), "another", {})]}
    write_shards(shards, samples, samples_per_shard=4, parents={})
    with pytest.raises(DataError, match=r"but the run was trained on .*; name the folder of then"):
        read_facts(shards, read_run(run_dir))


def test_writing_the_folder_uploads_nothing_and_needs_no_token(
    run_dir: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert publish(run_dir, tmp_path, upload=False) == 0
    assert (run_dir / "published" / "open_clip_model.safetensors").exists()
    assert not hub.requests


def test_a_dry_run_writes_and_uploads_nothing(run_dir: Path, hub: HubServer, tmp_path: Path) -> None:
    assert publish(run_dir, tmp_path, "--dry-run") == 0
    assert not (run_dir / "published").exists()
    assert not hub.requests


def said(capsys: pytest.CaptureFixture[str]) -> str:
    sentence = capsys.readouterr().err.strip()
    assert "\n" not in sentence
    return sentence


def test_what_an_adapter_learned_goes_with_it(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "adapter.safetensors").write_bytes(b"what it learned")
    assert publish(run_dir, tmp_path, upload=False) == 0
    assert (run_dir / "published" / "adapter.safetensors").read_bytes() == b"what it learned"


@pytest.fixture
def refusal(
    run_dir: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Call with variables of the environment: the sentence that publishing then fails with."""

    def fail(**environment: str | None) -> str:
        for name, value in environment.items():
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        assert publish(run_dir, tmp_path) == 1
        return said(capsys)

    return fail


def test_no_token_is_told_before_anything_is_written(
    refusal: Callable[..., str], run_dir: Path, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)  # of somebody who logged in; only the environment counts
    sentence = refusal(HF_TOKEN=None, HF_HOME=str(tmp_path / "home"))
    assert sentence.startswith("HF_TOKEN: is not set, expected a token that may write to http://127.0.0.1:")
    assert not (run_dir / "published").exists()
    assert not hub.requests


def test_a_token_that_may_not_write_is_told(refusal: Callable[..., str], hub: HubServer) -> None:
    sentence = refusal(HF_TOKEN="hf_another")
    assert sentence.startswith(f"club/crests: {hub.url} refused HF_TOKEN (status 401)")
    assert "hf_another" not in sentence


def test_a_hub_that_does_not_answer_is_told_at_once(refusal: Callable[..., str], run_dir: Path) -> None:
    started = time.monotonic()
    sentence = refusal(HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - started < 5
    assert sentence.startswith("club/crests: http://127.0.0.1:9 did not take the upload (")
    assert (run_dir / "published" / "README.md").exists()  # what is to be uploaded is there already


def test_a_repository_of_another_kind_is_left_alone(
    run_dir: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    hub.repositories["club/captioner"] = other
    assert publish(run_dir, tmp_path, repository="club/captioner") == 1
    assert "holds config.json and none of open_clip_config.json, so a model of another kind" in said(capsys)
    assert publish(run_dir, tmp_path, repository="club/logos") == 1
    assert said(capsys).startswith(f"club/logos: is a dataset on {hub.url}, expected a model")
    assert [path.name for path in other.iterdir()] == ["config.json"]
    assert not hub.made


@pytest.mark.parametrize("name", ["crests", "https://huggingface.co/club/crests", "club/", "a b/c"])
def test_a_name_that_is_none_is_told(
    name: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(run_dir, tmp_path, repository=name, upload=False) == 1
    assert said(capsys).startswith(f'hub.repository: found "{name}", expected "owner/name"')


def test_unfinished_and_refused_runs_are_told(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights.safetensors", "weights.json"):
        (run_dir / name).rename(run_dir / f"refused.{name}")
    assert publish(run_dir, tmp_path, upload=False) == 1
    assert "its weights were refused (see report.json)" in said(capsys)
    (run_dir / "refused.weights.json").unlink()
    assert publish(run_dir, tmp_path, upload=False) == 1
    assert "holds no weights.safetensors; finish the run" in said(capsys)


@pytest.mark.slow
def test_what_was_published_is_what_plain_open_clip_loads(
    run_dir: Path, hub: HubServer, tmp_path: Path
) -> None:
    assert publish(run_dir, tmp_path) == 0
    model: ClipModel = load_clip(run_dir).model
    torch.save(model.tokenizer(["a red shield"]), tmp_path / "tokens.pt")
    script = (
        "import sys, open_clip, torch\n"
        "model, _, _ = open_clip.create_model_and_transforms('hf-hub:club/crests')\n"
        "text = model.eval().encode_text(torch.load(sys.argv[1]), normalize=True)\n"
        "torch.save(text.detach(), sys.argv[2])\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "theirs")}
    paths = [str(tmp_path / "tokens.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", script, *paths], env=environment, check=True)
    assert torch.allclose(torch.load(tmp_path / "out.pt"), embeddings(model)[1][:1], atol=1e-5)
