"""The race: who has finished is not run again, who is too slow is stopped, and all are judged alike."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import clip_race
from benchmarks.clip_contestants import (
    CONFIGS,
    CONTESTANTS,
    DEFAULT,
    Course,
    Crest,
    Script,
    flattened,
)
from benchmarks.clip_pairs import write_csv
from crest.errors import DataError, RunError
from crest.shards import Sample, write_shards

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": TEXT,
}
SPEED = {"step_s": 2.0, "validation_s": 1.0, "ready_s": 10.0}


@dataclass(frozen=True)
class Runner(Script):
    """A contestant whose run is a line of Python; what times and judges it is the test's."""

    line: str = "pass"

    def fitting_steps(self, speed: dict[str, float], course: Course, seconds: float) -> int:
        return int(seconds / speed["step_s"])

    def command(self, course: Course, steps: int) -> list[str]:
        left = course.home(self.name) / "weights"
        return [sys.executable, "-c", f"from pathlib import Path\nPath({str(left)!r}).touch()\n{self.line}"]

    def steps_done(self, course: Course) -> int:
        return 3

    def weights(self, course: Course) -> Path | None:
        path = course.home(self.name) / "weights"
        return path if path.exists() else None


def draw(folder: Path, colour: str) -> bytes:
    path = folder / f"{colour}.png"
    Image.new("RGBA", (64, 48), colour).save(path)
    return path.read_bytes()


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """Twelve pairs: eight to learn from, two of each held-out split."""
    colours = ("red", "lime", "blue", "black", "gold", "navy", "teal", "pink", "grey", "cyan", "tan", "plum")
    samples = [Sample(f"{n:02d}", draw(tmp_path, c), f"A {c} logo.", {}) for n, c in enumerate(colours)]
    splits: dict[Any, list[Sample]] = {"train": samples[:8], "val": samples[8:10], "test": samples[10:]}
    write_shards(tmp_path / "shards", splits, samples_per_shard=99, parents={})
    return Course(tmp_path / "shards", tmp_path / "race", 2.0)


def found(r_at_5: float) -> dict[str, float]:
    figures = {"pairs": 131.0, "r_at_5": r_at_5, "r_at_5_low": 0.1, "r_at_5_high": 0.3}
    figures |= {f"r_at_{k}": 0.25 for k in (1, 10)} | {f"chance_r_at_{k}": k / 131 for k in (1, 5, 10)}
    return figures | {"text_to_image_median_rank": 9.0, "image_to_text_median_rank": 12.0}


def result(judged: dict[str, Any]) -> dict[str, Any]:
    return {"steps": 1200, "samples": 38400, "seconds": 59.6, "judged": judged}


def test_what_has_finished_is_not_run_again(course: Course) -> None:
    asked: list[tuple[str, str]] = []

    def apart(task: str, name: str, _: Course) -> dict[str, Any]:
        asked.append((task, name))
        return SPEED if task == "time" else {"val": found(0.2)}

    both = [Runner("quick", "", 4), Runner("slow", "", 4, line="import time\ntime.sleep(60)")]
    results = clip_race.race(course, both, apart)
    assert not results["quick"]["was_stopped"]
    assert results["slow"]["was_stopped"]
    assert 2 <= results["slow"]["seconds"] < 20
    assert results["slow"]["samples"] == 12
    first = list(asked)
    assert first == [("time", "quick"), ("judge", "quick"), ("time", "slow"), ("judge", "slow")]
    (course.home("quick") / "result.json").unlink()  # as if it had been stopped
    again = clip_race.race(course, both, apart)
    assert asked == [*first, *first[:2]]
    assert again["slow"] == results["slow"]


def test_contestant_that_fails_ends_the_race(course: Course) -> None:
    with pytest.raises(RunError, match="ended with 3, expected 0"):
        clip_race.race(course, [Runner("broken", "", 4, line="raise SystemExit(3)")], lambda *_: SPEED)


def test_script_is_given_whole_epochs_that_fit(course: Course) -> None:
    script = Script("s", "", 4)
    # 2 steps of 2 s and a checkpoint of 2 s an epoch, after 10 s
    assert script.fitting_steps(SPEED, course, 40.0) == 5 * 2
    assert script.fitting_steps(SPEED, course, 1.0) == 2
    assert Script("s", "", 4, max_epochs=3).fitting_steps(SPEED, course, 40.0) == 3 * 2
    assert Crest("c", "", 4).fitting_steps(SPEED, course, 64.0) == (64 - 10 - 14) / 2


def test_seed_runs_by_its_own_flags(course: Course) -> None:
    from open_clip_train.params import parse_args

    seed = CONTESTANTS["seed"]
    args = parse_args(replace(seed, batch_size=4).command(course, 4)[3:])
    assert (args.model, seed.batch_size, args.lr, args.wd, args.warmup) == ("RN50", 128, 1e-3, 0.1, 10)
    assert args.epochs == 2
    with pytest.raises(DataError, match="holds 8 logos, expected a batch of 128"):
        seed.command(course, 4)
    assert (args.workers, args.pretrained, args.lr_scheduler) == (0, "", "cosine")


def test_every_contestant_of_crest_has_a_config_that_loads(course: Course) -> None:
    for one in CONTESTANTS.values():
        if isinstance(one, Crest):
            config = one.read(course, 40)
            assert (config.run.steps, config.data.shards) == (40, course.shards)
            assert config.optim.warmup_steps <= 2
            assert config.model.scratch is not None
    assert set(DEFAULT) <= set(CONTESTANTS)


def test_seed_config_is_the_seeds_command() -> None:
    from clip_train.config import ClipTrainConfig
    from crest.config import load_config

    config = load_config(ClipTrainConfig, CONFIGS / "clip_rn50.json")
    assert config.model.scratch == {"architecture": "RN50"}
    assert (config.optim.batch_size, config.optim.lr, config.optim.weight_decay) == (128, 1e-3, 0.1)
    assert config.optim.warmup_steps == 10
    assert config.run.steps == round(30 * 1134 / 128)  # 30 epochs of configs/brand_logos


def test_flattened_pictures_have_no_alpha_to_drop(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 0, 255))
    picture.save(tmp_path / "a.png")
    write_csv(tmp_path / "val.csv", [(tmp_path / "a.png", "a black dot")])
    assert flattened(tmp_path / "val.csv", tmp_path / "on_white").exists()
    white = Image.open(tmp_path / "on_white" / "a.png")
    assert white.mode == "RGB"
    assert (white.getpixel((0, 0)), white.getpixel((5, 5))) == ((0, 0, 0), (255, 255, 255))
    assert Image.open(tmp_path / "a.png").convert("RGB").getpixel((5, 5)) == (0, 0, 0)  # what the script sees


def test_model_of_the_script_is_judged_by_its_own_embeddings(course: Course, tmp_path: Path) -> None:
    import json

    import open_clip

    path = tmp_path / "tiny-of-test-race.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    model, _, transform = open_clip.create_model_and_transforms(path.stem)
    clip_race.race(course, [], lambda *_: {})
    script = Script("s", "", 4, model=path.stem)
    checkpoint = course.home("s") / "run" / "checkpoints" / "epoch_latest.pt"
    checkpoint.parent.mkdir(parents=True)
    assert script.weights(course) is None
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, checkpoint)
    images, texts = script.embed(script.load(course), course, "val")
    own = torch.stack([transform(Image.open(tmp_path / f"{c}.png")) for c in ("grey", "cyan")])
    words = open_clip.get_tokenizer(path.stem)(["A grey logo.", "A cyan logo."])
    with torch.no_grad():
        model.eval()
        assert torch.allclose(images, model.encode_image(own, normalize=True), atol=1e-5)
        assert torch.allclose(texts, model.encode_text(words, normalize=True), atol=1e-5)
    judged = clip_race.judge(script, course)
    assert set(judged) == {"val", "test"}
    assert judged["val"]["chance_r_at_1"] == 0.5
    assert judged["test"]["r_at_5"] == 1.0  # of two


def test_table_and_ratios_say_who_is_ahead() -> None:
    judged = {"val": found(0.3), "test": found(0.2)}
    results = {"crest": result(judged), "seed": result({"val": found(0.1), "test": found(0.1)})}
    text = clip_race.table({**results, "script": result({})})
    assert (
        "| crest | 1,200 | 38,400 | 60 | val | 25.0 % | 30.0 % (10.0 % to 30.0 %) | 25.0 % | 10.5 |" in text
    )
    assert "| script | 1,200 | 38,400 | 60 | no weights within the time |" in text
    assert "| chance | | | | val (131 pairs) | 0.8 % | 3.8 % | 7.6 % | 66.0 |" in text
    assert clip_race.ratios({**results, "script": result({})}) == {
        "r_at_5.val.crest_over_seed": 3.0,
        "r_at_5.test.crest_over_seed": 2.0,
    }


def test_unknown_contestant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert clip_race.main(["--minutes", "1", "nobody"]) != 0
    assert "there is no nobody, expected some of seed, script" in capsys.readouterr().err
