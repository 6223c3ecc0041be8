"""Text to logo: three networks that belong together, and a folder that can be drawn again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crest.__main__ import main
from crest.errors import ConfigError, DataError, WeightsError
from crest.generate import Generator, Prompt, generate, read_prompts
from crest.generate_config import GenerateConfig, ModelsConfig

PROMPTS = [Prompt(f"p{index}", f"a {word} crest") for index, word in enumerate(("red", "navy", "gold"))]


def models(world: Any, **others: str) -> dict[str, str]:
    runs = world.folder / "runs"
    own = {name: str(runs / f"{name}_train") for name in ("clip", "prior", "decoder")}
    return {**own, "device": "cpu", **others}


def config(world: Any, out: Path, **draw: Any) -> GenerateConfig:
    settings = {"out": out, "steps": 2, "prior_steps": 2, "per_prompt": 2, "batch_size": 4, **draw}
    return GenerateConfig.model_validate({"models": models(world), "draw": settings})


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def test_every_prompt_gets_its_pictures_and_a_row_that_says_how(tiny_world: Any, tmp_path: Path) -> None:
    out = generate(config(tiny_world, tmp_path / "out"), PROMPTS)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt_id"] for row in rows] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert len({row["seed"] for row in rows}) == 6
    assert [row["index"] for row in rows] == list(range(6))
    assert {"clip", "prior", "decoder", "sampler", "steps", "cond_scale"} <= rows[0].keys()
    for row in rows:
        with Image.open(out / row["file"]) as picture:
            assert (picture.size, picture.mode) == ((16, 16), "RGB")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"] == {"prompts": 3, "pictures": 6}
    assert manifest["parents"] == {name: rows[0][name] for name in ("clip", "prior", "decoder")}


def test_a_folder_is_drawn_again_bit_for_bit(tiny_world: Any, tmp_path: Path) -> None:
    first, again = (pngs(generate(config(tiny_world, tmp_path / name), PROMPTS)) for name in ("one", "two"))
    assert len(first) == 6
    assert again == first


def test_another_seed_draws_other_pictures(tiny_world: Any, tmp_path: Path) -> None:
    first, other = (
        pngs(generate(config(tiny_world, tmp_path / str(seed), seed=seed), PROMPTS)) for seed in (0, 1)
    )
    assert all(first[name] != other[name] for name in first)


def test_an_interrupted_folder_ends_as_one_that_never_stopped(tiny_world: Any, tmp_path: Path) -> None:
    settings = config(tiny_world, tmp_path / "out")
    whole = pngs(generate(settings, PROMPTS))
    out = tmp_path / "out"
    for name in ("manifest.json", "samples.jsonl", "0001-00.png", "0002-01.png"):
        (out / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("000[0-9]-*.png")}
    generate(settings, PROMPTS)
    assert pngs(out) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_finished_folder_says_so(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tiny_world, tmp_path / "out")
    generate(settings, PROMPTS)
    capsys.readouterr()
    generate(settings, PROMPTS)
    assert "finished before; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("prompts", "draw"), [(PROMPTS[:2], {}), (PROMPTS, {"cond_scale": 3.0})])
def test_a_folder_of_other_pictures_is_refused(
    tiny_world: Any, tmp_path: Path, prompts: list[Prompt], draw: dict[str, Any]
) -> None:
    generate(config(tiny_world, tmp_path / "out"), PROMPTS)
    with pytest.raises(ConfigError, match=r"holds pictures of other models, prompts or settings"):
        generate(config(tiny_world, tmp_path / "out", **draw), prompts)


@pytest.fixture(scope="module")
def other_clip(
    tiny_world: Any, tmp_path_factory: pytest.TempPathFactory, command: Callable[..., int]
) -> Path:
    """A CLIP of the same shape from another seed, with no prior or decoder of its own."""
    folder = tmp_path_factory.mktemp("other")
    assert command("clip_train", tiny_world.config("clip_train", folder / "clip", run__seed=2), folder) == 0
    return folder / "clip"


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_prior_and_decoder_of_another_clip_are_refused_by_name(
    tiny_world: Any, tmp_path: Path, other_clip: Path, name: str
) -> None:
    foreign = tmp_path / name
    shutil.copytree(tiny_world.folder / "runs" / f"{name}_train", foreign)
    card = json.loads((foreign / "weights.json").read_text(encoding="utf-8"))
    other = json.loads((other_clip / "weights.json").read_text(encoding="utf-8"))["sha256"][:16]
    own, card["parents"]["clip"] = card["parents"]["clip"], other
    (foreign / "weights.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(WeightsError) as refusal:
        Generator(ModelsConfig.model_validate(models(tiny_world, **{name: str(foreign)})))
    assert f"{foreign}: was trained with CLIP {other}, but " in str(refusal.value)
    assert own in str(refusal.value)


def test_a_clip_that_neither_knows_is_refused(tiny_world: Any, other_clip: Path) -> None:
    with pytest.raises(WeightsError, match=r"prior_train: was trained with CLIP .* but .*clip is"):
        Generator(ModelsConfig.model_validate(models(tiny_world, clip=str(other_clip))))


def test_prompts_are_read_from_lines_rows_and_shards(tiny_world: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red crest\n\n  a navy crest \n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == [
        Prompt("0000", "a red crest"),
        Prompt("0001", "a navy crest"),
    ]
    (tmp_path / "prompts.jsonl").write_text('{"id": "x", "text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.jsonl") == [Prompt("x", "a"), Prompt("0001", "b")]


@pytest.mark.parametrize(
    ("name", "content"), [("p.txt", "\n \n"), ("p.jsonl", '{"id": "x"}\n'), ("p.jsonl", "")]
)
def test_prompts_without_text_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="have no text; expected one prompt a row"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_prompts_that_are_not_there_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is no such file"):
        read_prompts(tmp_path / name)


def settings(world: Any, out: Path) -> list[str]:
    draw = {"draw.out": out, "draw.steps": 2, "draw.prior_steps": 2}
    chosen = {f"models.{name}": place for name, place in models(world).items()} | draw
    return [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]


def test_prompts_on_the_line_are_drawn(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a red crest", *settings(tiny_world, tmp_path / "out")]) == 0
    assert f"4 logos in {tmp_path / 'out'}" in capsys.readouterr().out
    assert len(pngs(tmp_path / "out")) == 4


def test_a_dry_run_draws_nothing(tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red crest", "--dry-run", *settings(tiny_world, tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["draw"]["per_prompt"] == 4
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_told_in_one_sentence(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [*settings(tiny_world, tmp_path / "out"), "--set", f"models.prior={tmp_path / 'nowhere'}"]
    assert main(["a red crest", *wrong]) == 1
    said = capsys.readouterr().err
    assert "there are no prior weights" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
