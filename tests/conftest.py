"""Small drawn logos that every room's tests share; nothing here needs the network or weights."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import importlib
import io
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

Picture = Image.Image
COLOURS = ((200, 16, 46), (0, 56, 101), (255, 184, 28), (0, 102, 51), (20, 20, 20), (110, 64, 160))


def draw_logo(index: int, side_px: int = 64, background: tuple[int, ...] = (255, 255, 255)) -> Picture:
    """A shield, disc or diamond with a bar or a dot; a different one for every index below 36."""
    mode = "RGBA" if len(background) == 4 else "RGB"
    picture = Image.new(mode, (side_px, side_px), background)
    pen = ImageDraw.Draw(picture)
    field = COLOURS[index % 6]
    charge = COLOURS[(index + 1 + index // 6 % 5) % 6]
    near, far, middle = side_px // 8, side_px - side_px // 8 - 1, side_px // 2
    outlines = (
        [(near, near), (far, near), (far, middle), (middle, far), (near, middle)],
        [(middle, near), (far, middle), (middle, far), (near, middle)],
    )
    if index % 3 == 2:
        pen.ellipse((near, near, far, far), fill=field)
    else:
        pen.polygon(outlines[index % 3], fill=field)
    quarter = side_px // 4
    if index // 18 % 2:
        pen.rectangle((near * 2, middle - near // 2, far - near, middle + near // 2), fill=charge)
    else:
        pen.ellipse((middle - quarter // 2, quarter, middle + quarter // 2, quarter * 2), fill=charge)
    return picture


def png(picture: Picture) -> bytes:
    """The picture as PNG bytes."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def logo() -> Picture:
    """One 64 px logo on white, RGB."""
    return draw_logo(0)


@pytest.fixture
def black_logo() -> Picture:
    """A black disc on nothing at all (RGBA), as many wordmarks are published."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(0, 0, 0, 255))
    return picture


@pytest.fixture
def wordmark() -> Picture:
    """A 4:1 wordmark on white, red at its left end and blue at its right."""
    picture = Image.new("RGB", (256, 64), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 8, 31, 55), fill=(255, 0, 0))
    pen.rectangle((224, 8, 255, 55), fill=(0, 0, 255))
    return picture


@pytest.fixture
def logos() -> list[Picture]:
    """Sixteen different 64 px logos on white, RGB."""
    return [draw_logo(index) for index in range(16)]


@pytest.fixture
def logo_folder(tmp_path: Path) -> Callable[[int], Path]:
    """Call with a count: a folder of that many PNG logos, named 00.png, 01.png, ..."""

    def draw(count: int) -> Path:
        folder = tmp_path / "logos"
        folder.mkdir()
        for index in range(count):
            (folder / f"{index:02d}.png").write_bytes(png(draw_logo(index)))
        return folder

    return draw


RUN = {"seed": 1, "device": "cpu", "precision": "fp32", "log_every": 1, "validate_every": 2, "save_every": 2}
WORDS = ("red", "navy", "gold", "green", "black", "purple")
SPECS: dict[str, dict[str, Any]] = {
    "clip_train": {
        "custom": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
            "text_cfg": {"context_length": 16, "vocab_size": 714, "width": 24, "heads": 2, "layers": 1},
        },
        "bpe_merges": 200,
    },
    "prior_train": {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20},
    "decoder_train": {
        "side_px": 16,
        "max_text_len": 8,
        "dim": 8,
        "dim_mults": [1, 2],
        "cond_dim": 24,
        "self_attn": [False, True],
        "attn_heads": 2,
        "attn_dim_head": 8,
        "timesteps": 20,
        "sketch_regions": 4,
        "prediction": "x_start",
    },
    "caption_train": {
        "side_px": 16,
        "patch_px": 8,
        "width": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_tokens": 48,
    },
}


def run_room(room: str, config: Mapping[str, Any], folder: Path, *words: str) -> int:
    """`python -m room --config …` without a new process; the exit status."""
    command = importlib.import_module(f"{room}.__main__" if "." not in room else room)
    config_class = typing.get_type_hints(command.main)["config"]
    path = folder / f"{room}.json"
    path.write_text(json.dumps(config, default=str), encoding="utf-8")
    from crest.config import run_command

    return run_command(
        room, config_class, command.main, check=command.check, argv=["--config", str(path), *words]
    )


@dataclass(frozen=True)
class TinyWorld:
    """A finished pipeline small enough for every test: 24 + 8 drawn logos and one run of each stage."""

    folder: Path

    @property
    def shards(self) -> Path:
        return self.folder / "data" / "shards"

    @property
    def embeddings(self) -> Path:
        return self.folder / "data" / "embeddings"

    def config(self, room: str, run_dir: Path, **changes: Any) -> dict[str, Any]:
        """A config that trains the room's tiny network from nothing; changes are `section__field=value`."""
        data = {
            "clip_train": {"shards": self.shards},
            "prior_train": {"embeddings": self.embeddings, "shards": self.shards},
            "decoder_train": {"shards": self.shards, "embeddings": self.embeddings},
            "caption_train": {"records": self.shards},
        }
        config: dict[str, Any] = {
            "run": {**RUN, "dir": run_dir, "steps": 4},
            "data": data[room],
            "model": {
                "scratch": SPECS[room],
                **({"vocabulary_size": 300} if room == "caption_train" else {}),
            },
            "optim": {"lr": 0.002, "ema_decay": 0.5, "batch_size": 8},
        }
        if room == "decoder_train":
            config["model"] |= {"preview_steps": 2, "sketch_steps": 2}
        for name, value in changes.items():
            section, _, field = name.partition("__")
            config[section] = {**config[section], field: value}
        return config


def tiny_samples(first: int, last: int) -> list[Any]:
    """Drawn logos as packed samples; the third is 4:1, the fourth transparent."""
    from crest.shards import Sample

    samples = []
    for index in range(first, last):
        picture = draw_logo(index, 32, (255, 255, 255, 0) if index % 8 == 3 else (255, 255, 255))
        if index % 8 == 2:
            picture = picture.resize((64, 16))
        caption = f"a {WORDS[index % 6]} crest with a {WORDS[(index + 1) % 6]} charge, number {index}"
        samples.append(Sample(f"{index:016x}", png(picture), caption, {"group": f"club {index}"}))
    return samples


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Shards, embeddings and one finished run of each stage, made by the rooms' own commands."""
    from crest.shards import write_shards

    world = TinyWorld(tmp_path_factory.mktemp("tiny"))
    splits = {"train": tiny_samples(0, 24), "val": tiny_samples(24, 32)}
    write_shards(world.shards, splits, samples_per_shard=10, parents={})  # type: ignore[arg-type]
    runs = world.folder / "runs"
    embed = {
        "data": {"shards": world.shards, "out": world.embeddings},
        "model": {"clip": str(runs / "clip_train"), "device": "cpu"},
    }
    for room in ("clip_train", "clip_train.embed", "prior_train", "decoder_train", "caption_train"):
        config = embed if room == "clip_train.embed" else world.config(room, runs / room)
        assert run_room(room, config, world.folder) == 0
    return world


@pytest.fixture(scope="session")
def command() -> Callable[..., int]:
    """Call with a room, its config, a folder and further words: the exit status of `python -m room`."""
    return run_room
