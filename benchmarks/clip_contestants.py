"""Who takes part in benchmarks/clip_race.py: how each is started, timed, loaded and fed when it is judged."""

from __future__ import annotations

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.clip import step_of
from benchmarks.clip_pairs import Pairs
from benchmarks.clip_upstream import SCRIPT, read_log, script_step
from benchmarks.harness import Step
from crest.errors import DataError
from crest.records import read_manifest, write_json
from crest.tars import MADE_BY
from crest.tracker import read_scalars

if TYPE_CHECKING:
    from torch import Tensor

    from clip_train.config import ClipTrainConfig
    from crest.models.clip import ClipModel

CONFIGS: Final = Path(__file__).resolve().parents[1] / "configs" / "seed"
VALIDATIONS: Final = 8
"""Of a Crest run, beside those at its start and its end."""
CHECKPOINT_S: Final = 2.0
"""What the script's checkpoint of an epoch is planned with."""
JUDGED_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Course:
    """What all run on."""

    shards: Path
    folder: Path
    """of this race: the CSVs, and a folder a contestant"""
    limit_s: float

    def home(self, name: str) -> Path:
        """Where a contestant leaves everything."""
        return self.folder / name

    @property
    def pairs(self) -> Pairs:
        """As the script reads them."""
        return Pairs(self.shards, self.folder / "train.csv", self.folder / "val.csv")

    @property
    def train_pairs(self) -> int:
        """How many there are to learn from."""
        return read_manifest(self.shards, "shards", MADE_BY).counts["train"]


@dataclass(frozen=True)
class Contestant(ABC):
    """One way to train a CLIP."""

    name: str
    told: str
    """one line about it"""
    batch_size: int
    is_crest = False

    @abstractmethod
    def build(self, course: Course) -> tuple[Step, Callable[[], object]]:
        """A training step and a validation, as the run will make them, to be timed."""

    @abstractmethod
    def fitting_steps(self, speed: dict[str, float], course: Course, seconds: float) -> int:
        """Steps that end within so many seconds, getting ready and validations included."""

    @abstractmethod
    def command(self, course: Course, steps: int) -> list[str]:
        """What starts a run of so many steps."""

    @abstractmethod
    def steps_done(self, course: Course) -> int:
        """Steps that the run has made."""

    @abstractmethod
    def weights(self, course: Course) -> Path | None:
        """What the run has left, if anything."""

    @abstractmethod
    def load(self, course: Course) -> ClipModel:
        """The trained model."""

    @abstractmethod
    def embed(self, model: ClipModel, course: Course, split: str) -> tuple[Tensor, Tensor]:
        """image_embed and text_embed (N, D) of a held-out split in the order of the shards."""


@dataclass(frozen=True)
class Script(Contestant):
    """open_clip's own script, without validations during the run: they would cost it time and change nothing.

    On a CPU `--precision amp_bf16`, its fastest; the default, fp16, would not finish an epoch.
    """

    model: str = "RN50"
    flags: tuple[str, ...] = ()
    max_epochs: int = 1 << 20
    warmup_steps: int | None = None
    """None: a twentieth of the run"""
    side_px: int | None = None
    """None: that of the architecture"""
    on_white: bool = False
    """whether it is given pictures without transparency, which it would otherwise drop"""

    def _flags(self, course: Course, steps: int) -> list[str]:
        train = self._csv(course, "train")
        warmup = max(1, steps // 20) if self.warmup_steps is None else self.warmup_steps
        return [
            *("--train-data", str(train), "--dataset-type", "csv", "--csv-img-key", "filepath"),
            *("--csv-caption-key", "title", "--model", self.model, "--batch-size", str(self.batch_size)),
            *("--epochs", str(max(1, steps // self._epoch_steps(course))), "--warmup", str(warmup)),
            *("--device", "cpu", "--precision", "amp_bf16", "--workers", "0"),
            *("--log-every-n-steps", "1", "--save-frequency", "0", "--save-most-recent"),
            *(() if self.side_px is None else ("--force-image-size", str(self.side_px))),
            *self.flags,
        ]

    def _csv(self, course: Course, split: str) -> Path:
        path = course.folder / f"{split}.csv"
        return flattened(path, course.folder / "on_white") if self.on_white else path

    def _epoch_steps(self, course: Course) -> int:
        steps = course.train_pairs // self.batch_size  # the script drops the rest
        if not steps:
            raise DataError(
                f"{course.shards}: the train split holds {course.train_pairs} logos, expected a batch of "
                f"{self.batch_size} at least (the script would train nothing and say nothing); pack more."
            )
        return steps

    def build(self, course: Course) -> tuple[Step, Callable[[], object]]:
        """Its own step; it has no validations."""
        return script_step(self._flags(course, self._epoch_steps(course))), lambda: None

    def fitting_steps(self, speed: dict[str, float], course: Course, seconds: float) -> int:
        """Whole epochs, at least one."""
        epoch_s = self._epoch_steps(course) * speed["step_s"] + CHECKPOINT_S
        epochs = int((seconds - speed["ready_s"]) / epoch_s)
        return max(1, min(self.max_epochs, epochs)) * self._epoch_steps(course)

    def command(self, course: Course, steps: int) -> list[str]:
        """Its process."""
        place = ("--logs", str(course.home(self.name)), "--name", "run")
        return [sys.executable, "-m", SCRIPT, *self._flags(course, steps), *place]

    def steps_done(self, course: Course) -> int:
        """As its log says."""
        path = course.home(self.name) / "run" / "out.log"
        return len(read_log(path.read_text(encoding="utf-8"))) if path.exists() else 0

    def weights(self, course: Course) -> Path | None:
        """Those of its last whole epoch."""
        path = course.home(self.name) / "run" / "checkpoints" / "epoch_latest.pt"
        return path if path.exists() else None

    def load(self, course: Course) -> ClipModel:
        """Its state dict in our model: the towers are the same library's."""
        import torch
        from open_clip.factory import get_model_config

        from crest.models.clip import ClipModel, ClipSpec

        spec = ClipSpec(architecture=self.model)
        if self.side_px is not None:
            config = get_model_config(self.model)
            config["vision_cfg"] = {**config["vision_cfg"], "image_size": self.side_px}
            spec = ClipSpec(custom=config)
        model = ClipModel(spec)
        path = self.weights(course)
        assert path is not None
        model.clip.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        return model.eval()

    def embed(self, model: ClipModel, course: Course, split: str) -> tuple[Tensor, Tensor]:
        """The script's own transform of the source's files: alpha dropped, shortest side, centre crop."""
        import torch
        import torch.nn.functional as F
        from open_clip import image_transform
        from PIL import Image

        transform = image_transform(model.side_px, is_train=False)
        with self._csv(course, split).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        images, texts = [], []
        with torch.inference_mode():
            for first in range(0, len(rows), JUDGED_AT_ONCE):
                chosen = rows[first : first + JUDGED_AT_ONCE]
                pixels = torch.stack([transform(Image.open(row["filepath"])) for row in chosen])
                images.append(F.normalize(model.clip.encode_image(pixels).float(), dim=-1))
                texts.append(model.embed_tokens(model.tokenize([row["title"] for row in chosen]))[0])
        return torch.cat(images), torch.cat(texts)


@dataclass(frozen=True)
class Crest(Contestant):
    """`python -m clip_train` by one of configs/seed, or another file."""

    config: Path = CONFIGS / "clip_small.json"
    architecture: str | None = None
    """instead of the config's"""
    is_crest = True

    def _values(self, course: Course, steps: int) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
        del values["$schema"]
        every = max(1, steps // VALIDATIONS)
        values["run"] |= {"dir": str(course.home(self.name) / "run"), "steps": steps, "device": "cpu"}
        values["run"] |= {"validate_every": every, "preview_every": steps, "save_every": steps}
        values["data"]["shards"] = str(course.shards)
        values["optim"]["warmup_steps"] = min(values["optim"]["warmup_steps"], max(1, steps // 20))
        values["optim"]["batch_size"] = self.batch_size
        if self.architecture is not None:
            values["model"]["scratch"] = {"architecture": self.architecture}
        return values

    def read(self, course: Course, steps: int) -> ClipTrainConfig:
        """The config of a run of so many steps, as the command will read it."""
        from clip_train.config import ClipTrainConfig
        from crest.config import load_config

        path = course.home(self.name) / "config.json"
        write_json(path, self._values(course, steps))
        return load_config(ClipTrainConfig, path)

    def build(self, course: Course) -> tuple[Step, Callable[[], object]]:
        """A step of the loop, and a validation."""
        from clip_train.stage import ClipStage
        from crest.world import open_world

        config = self.read(course, 1000)
        world = open_world("cpu", config.run.precision)
        stage = ClipStage(config, world)
        step = step_of(stage, world)
        model = stage.model()

        def validate() -> object:
            with world.autocast():
                return stage.validate(model.eval(), world)

        return step, validate

    def fitting_steps(self, speed: dict[str, float], course: Course, seconds: float) -> int:
        """As many as fit beside the validations, the report at the end counted as four of them."""
        beside = speed["ready_s"] + (VALIDATIONS + 6) * speed["validation_s"]
        return max(1, int((seconds - beside) / speed["step_s"]))

    def command(self, course: Course, steps: int) -> list[str]:
        """Its process."""
        self.read(course, steps)
        config = course.home(self.name) / "config.json"
        return [sys.executable, "-m", "clip_train", "--config", str(config)]

    def steps_done(self, course: Course) -> int:
        """As its metrics.jsonl says."""
        rows = read_scalars(course.home(self.name) / "run")
        return int(rows[-1]["step"]) if rows else 0

    def weights(self, course: Course) -> Path | None:
        """Those that it has exported, or the best so far."""
        found = [
            course.home(self.name) / "run" / name for name in ("weights.safetensors", "best.safetensors")
        ]
        return next((path for path in found if path.exists()), None)

    def load(self, course: Course) -> ClipModel:
        """From the file."""
        from crest.models.clip import load_clip_model

        path = self.weights(course)
        assert path is not None
        return load_clip_model(path)[0].eval()

    def embed(self, model: ClipModel, course: Course, split: str) -> tuple[Tensor, Tensor]:
        """The pictures of the shards, flattened on white and padded square."""
        import numpy as np
        import torch

        from crest.pixels import open_pictures

        pictures = open_pictures(course.shards, split, model.side_px)  # type: ignore[arg-type]
        images, texts = [], []
        with torch.inference_mode():
            for first in range(0, len(pictures), JUDGED_AT_ONCE):
                last = min(first + JUDGED_AT_ONCE, len(pictures))
                images.append(model.embed_images(torch.from_numpy(pictures.floats(np.arange(first, last)))))
                texts.append(model.embed_tokens(model.tokenize(pictures.captions[first:last]))[0])
        return torch.cat(images), torch.cat(texts)


def flattened(path: Path, folder: Path) -> Path:
    """A CSV of the same pictures on white, without transparency."""
    from PIL import Image

    from benchmarks.clip_pairs import write_csv
    from crest.images import flatten

    made = folder / path.name
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                picture = folder / f"{Path(row['filepath']).stem}.png"
                flatten(Image.open(row["filepath"]).convert("RGBA")).save(picture)
                rows.append((picture, row["title"]))
        write_csv(made, rows)
    return made


_SEED: Final = ("--lr", "1e-3", "--wd", "0.1")
_SMALL: Final = "ViT-S-32-alt"
CONTESTANTS: Final = {
    one.name: one
    for one in (
        Script("seed", "seed 002's flags: RN50, lr 1e-3, 30 epochs or as many as fit", 128, flags=_SEED,
               max_epochs=30, warmup_steps=10),
        Script("script", f"open_clip's script at its best: {_SMALL}, its own lr", 128, _SMALL),
        Crest("crest_rn50", "Crest with the seed's model and settings", 128, CONFIGS / "clip_rn50.json"),
        Crest("crest", "Crest with an architecture that suits the time", 256),
        Script("script_64px", "open_clip's script: ViT-S-16-alt at 64 px", 128, "ViT-S-16-alt", side_px=64),
        Script("script_on_white", "as `script`, pictures without alpha", 128, _SMALL, on_white=True),
        Crest("crest_vit", f"Crest with {_SMALL}", 128, architecture=_SMALL),
    )
}  # fmt: skip
DEFAULT: Final[Sequence[str]] = ("seed", "script", "crest_rn50", "crest")
