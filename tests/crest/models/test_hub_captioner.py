"""Published captioners: one answer a picture whatever the route, alone or together, whatever its mode."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crest.errors import ConfigError, FetchError, WeightsError
from crest.models.captioner import load_captioner
from crest.models.hub_captioner import QUESTION, Asking, HubCaptioner, published, without_echo
from tests.crest.hub_server import HubServer
from tests.crest.models.tiny_published import KINDS, build

ROUTES = {
    "vit_gpt2": "plain",
    "blip": "plain",
    "git": "plain",
    "florence": "prompt",
    "qwen": "chat",
    "smol": "chat",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


def pictures() -> list[Image.Image]:
    """Of every mode and of unlike sizes."""
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    wide = Image.new("RGBA", (64, 16), (0, 0, 0, 0))
    wide.paste((200, 10, 30, 255), (0, 4, 20, 12))
    return [
        noise,
        wide,
        wide.quantize(4),
        wide.convert("LA"),
        noise.convert("L"),
        noise.convert("1"),
        Image.fromarray((np.arange(400, dtype=np.uint16) * 160).reshape(20, 20)),
        Image.new("CMYK", (9, 9), (0, 200, 0, 0)),
    ]


def load(folder: Path, **asking: object) -> HubCaptioner:
    captioner = load_captioner(folder, "cpu", Asking(**{"max_tokens": 10, **asking}))  # type: ignore[arg-type]
    assert isinstance(captioner, HubCaptioner)
    return captioner


@pytest.mark.parametrize("kind", KINDS)
def test_route_is_read_off_the_model(folder_of: Callable[[str], Path], kind: str) -> None:
    captioner = load(folder_of(kind))
    assert captioner.route == ROUTES[kind]
    asked = {"plain": "", "prompt": "<DETAILED_CAPTION>", "chat": QUESTION}
    assert captioner.prompt == asked[captioner.route]


@pytest.mark.parametrize(("kind", "route"), [*ROUTES.items(), ("blip", "prompt"), ("git", "prompt")])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_picture_is_described_alike_alone_and_among_others(
    folder_of: Callable[[str], Path], kind: str, route: str, beams: int
) -> None:
    captioner = load(folder_of(kind), route=route, beams=beams, prompt="the logo of")
    together = captioner.caption(pictures())
    assert together == [captioner.caption([one])[0] for one in pictures()]
    assert together == captioner.caption(pictures())
    assert len(set(together)) > 2, "a captioner that does not look proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_picture_is_seen_and_on_white(folder_of: Callable[[str], Path], kind: str) -> None:
    captioner = load(folder_of(kind))
    wordmark = Image.new("RGB", (64, 16), (255, 255, 255))
    wordmark.paste((200, 10, 30), (0, 4, 20, 12))
    clear = Image.new("RGBA", (64, 16), (0, 0, 0, 0))
    clear.paste((200, 10, 30, 255), (0, 4, 20, 12))
    blank, *seen = captioner.caption([Image.new("RGB", (64, 16), (255, 255, 255)), wordmark, clear])
    assert seen[0] == seen[1]
    assert seen[0] != blank, "what stands at the end of a wordmark was cropped away"


@pytest.mark.parametrize("kind", ["vit_gpt2", "qwen"])
def test_saved_lengths_and_samplers_do_not_rule(folder_of: Callable[[str], Path], kind: str) -> None:
    short, long = (load(folder_of(kind), max_tokens=count).caption(pictures()[:3]) for count in (3, 40))
    assert max(map(len, long)) > max(map(len, short))
    torch.manual_seed(1)
    assert load(folder_of(kind), max_tokens=40).caption(pictures()[:3]) == long


def test_an_answer_that_was_cut_says_so(folder_of: Callable[[str], Path]) -> None:
    answers = load(folder_of("blip"), max_tokens=2).caption(pictures())
    assert any(answer.endswith("…") for answer in answers)
    ended = [one for one in load(folder_of("blip"), max_tokens=200).caption(pictures()) if one[-1:] != "…"]
    assert ended, "no answer came to its end"


@pytest.mark.parametrize(
    ("text", "prompt", "rest"),
    [
        ("the logo of a red shield", "The logo of", "a red shield"),
        ('describe this logo : "words " ? a shield', 'Describe this logo: "words"?', "a shield"),
        ("a red shield", "The logo of", "a red shield"),
        ("a red shield", "", "a red shield"),
        ("the logo", "The logo of", "the logo"),
    ],
)
def test_a_question_that_is_repeated_is_cut_off(text: str, prompt: str, rest: str) -> None:
    assert without_echo(text, prompt) == rest


@pytest.mark.parametrize("kind", ["blip", "git"])
def test_no_answer_repeats_its_question(folder_of: Callable[[str], Path], kind: str) -> None:
    captioner = load(folder_of(kind), route="prompt", prompt="the logo of")
    assert captioner.prompt == "the logo of"
    assert not any(answer.startswith("the logo of") for answer in captioner.caption(pictures()))


def test_the_hash_names_the_weights_not_the_folder(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    copy = build("vit_gpt2", tmp_path / "elsewhere")
    assert load(copy).hash == load(folder_of("vit_gpt2")).hash
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert load(copy).hash != load(folder_of("vit_gpt2")).hash


def test_a_folder_of_the_older_form_is_read(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """As nlpconnect/vit-gpt2-image-captioning lies on the hub: pickled weights, names of 2022."""
    from safetensors.torch import load_file

    folder = build("vit_gpt2", tmp_path / "older")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"decoder_start_token_id": 0, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    looking = {
        "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 16,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(looking))
    assert load(folder).caption(pictures()) == load(folder_of("vit_gpt2")).caption(pictures())


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    folder = build("vit_gpt2", tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not plain tensors"):
        load(folder)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_route_that_a_model_lacks_is_told(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match='a blip without a chat template, but the route is "chat"'):
        load(folder_of("blip"), route="chat")
    with pytest.raises(ConfigError, match="takes no words"):
        load(folder_of("vit_gpt2"), route="prompt")


def test_nothing_to_describe_is_no_error(folder_of: Callable[[str], Path]) -> None:
    assert load(folder_of("vit_gpt2")).caption([]) == []


def test_a_run_that_published_its_captioner_is_read_as_such(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "weights.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    assert published(tmp_path) is None
    (tmp_path / "published").symlink_to(folder_of("vit_gpt2"))
    found = published(tmp_path)
    assert found is not None
    assert found[0] == tmp_path / "published"


NAME = "nlpconnect/vit-gpt2-image-captioning"
RED = Image.new("RGB", (16, 16), "red")


def test_a_hub_name_is_fetched_from_the_mirror_that_the_environment_names(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("vit_gpt2")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with HubServer({NAME: folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        captioner = load_captioner(NAME, "cpu", Asking(max_tokens=10), "v1")
    assert captioner.hash == HubServer.commit(folder)
    assert captioner.caption([RED]) == load(folder).caption([RED])


@pytest.mark.slow  # a new process imports everything anew
def test_a_new_process_asks_the_mirror_and_nobody_else(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    script = (
        "from PIL import Image\n"
        "from crest.models.captioner import load_captioner\n"
        "from crest.models.hub_captioner import Asking\n"
        f"captioner = load_captioner('{NAME}', 'cpu', Asking(max_tokens=10))\n"
        "print(captioner.caption([Image.new('RGB', (16, 16), 'red')])[0])\n"
    )
    folder = folder_of("vit_gpt2")
    with HubServer({NAME: folder}) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
        asked = set(hub.requests)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == load(folder).caption([RED])[0]
    assert any(one.startswith(f"GET /{NAME}/resolve/") for one in asked)


def test_a_dead_hub_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(FetchError, match="could not be asked for it"):
        load_captioner("nlpconnect/vit-gpt2-image-captioning-that-nobody-has")
    assert time.monotonic() - started < 5
