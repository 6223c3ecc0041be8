"""The public bundle gives nothing away, and texts stay texts."""

import csv
import io
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crest.config import load_config
from crest.errors import ConfigError, RunError
from eval.survey.config import SurveyConfig
from eval.survey.export import export, page_html, read_manifest_of, torn
from eval.systems import read_systems

Draw = Callable[..., Path]


def config_of(tmp_path: Path, **more: Any) -> SurveyConfig:
    section = {
        "dir": str(tmp_path / "survey"),
        "systems": [
            {"name": "plainsys", "samples": str(tmp_path / "a")},
            {"name": "tunedsys", "samples": str(tmp_path / "b")},
        ],
        "baseline": "plainsys",
        "raters": 4,
        "answers_per_pair": 2,
        "side_px": 48,
        **more,
    }
    path = tmp_path / "survey.json"
    path.write_text(json.dumps({"survey": section}))
    return load_config(SurveyConfig, path)


def exported(config: SurveyConfig) -> Path:
    section = config.survey
    export(config, read_systems(section.systems, section.baseline, section.prompts))
    return section.dir


@pytest.fixture
def world(tmp_path: Path, draw_system: Draw) -> Path:
    draw_system(tmp_path / "a", right=0.4, seeds=2)
    draw_system(tmp_path / "b", right=1.0, seeds=2)
    return tmp_path


def test_public_files_name_no_system_check_or_path(world: Path) -> None:
    folder = exported(config_of(world))
    public = [path for path in folder.rglob("*") if path.is_file() and "private" not in path.parts]
    for path in public:
        content = path.read_bytes().lower()
        for secret in (
            b"plainsys",
            b"tunedsys",
            b"baseline",
            b"destroyed",
            str(world).lower().encode(),
            b"p000",
            b'"kind"',
        ):
            assert secret not in content, (path.name, secret)
            assert secret not in path.name.encode()
    assert {path.name for path in folder.iterdir()} == {"index.html", "images", "private"}


def test_pictures_are_encoded_alike_without_metadata(world: Path) -> None:
    folder = exported(config_of(world))
    pictures = list((folder / "images").iterdir())
    assert len(pictures) == 2 * (12 + 1)
    for path in pictures:
        assert re.fullmatch(r"img_[0-9a-f]{16}\.png", path.name)
        content = path.read_bytes()
        assert [
            name
            for name in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME", b"pHYs", b"iCCP")
            if name in content
        ] == []
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (48, 48))


def test_key_says_which_picture_is_whose(world: Path) -> None:
    folder = exported(config_of(world))
    key = json.loads((folder / "private" / "key.json").read_text())
    rows = [json.loads(line) for line in (world / "b" / "samples.jsonl").read_text().splitlines()]
    real = [pair for pair in key["pairs"].values() if pair["kind"] == "real"]
    assert len(real) == 12
    for pair in real:
        (image_id,) = [name for name, role in pair["pictures"].items() if role == "tunedsys"]
        row = next(row for row in rows if row["prompt_id"] == pair["prompt_id"] and row["seed"] == 0)
        drawn = (
            Image.open(world / "b" / row["file"]).convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)
        )
        shown = Image.open(folder / "images" / f"{image_id}.png")
        assert np.abs(np.asarray(drawn, int) - np.asarray(shown, int)).max() == 0
    assert stat.S_IMODE((folder / "private").stat().st_mode) == 0o700


def test_page_and_key_hold_the_same_survey(world: Path) -> None:
    folder = exported(config_of(world))
    manifest = read_manifest_of(folder / "index.html")
    key = json.loads((folder / "private" / "key.json").read_text())
    assert manifest["survey_id"] == key["survey_id"]
    assert len(manifest["plans"]) == 4
    shown = {pair_id for showings in manifest["plans"] for pair_id, _, _ in showings}
    assert shown == set(manifest["pairs"]) == set(key["pairs"])
    for showings in manifest["plans"]:
        for pair_id, left, right in showings:
            assert {left, right} == set(key["pairs"][pair_id]["pictures"])
            assert manifest["pairs"][pair_id] == key["pairs"][pair_id]["prompt"]
    repeat = next(pair for pair in key["pairs"].values() if pair["kind"] == "repeat")
    assert repeat["pictures"] == key["pairs"][repeat["of"]]["pictures"]


def test_every_rater_gets_a_link_with_a_plan_of_his_own(world: Path) -> None:
    folder = exported(config_of(world))
    rows = list(csv.DictReader(io.StringIO((folder / "private" / "links.csv").read_text())))
    assert [row["plan"] for row in rows] == ["0", "1", "2", "3"]
    assert all(row["link"] == f"index.html?rater={row['rater_id']}&plan={row['plan']}" for row in rows)


def test_gold_items_come_from_real_logos_where_there_are_shards(world: Path, real_shards: Path) -> None:
    folder = exported(config_of(world, shards=str(real_shards)))
    key = json.loads((folder / "private" / "key.json").read_text())
    (gold,) = [pair for pair in key["pairs"].values() if pair["kind"] == "gold"]
    assert set(gold["pictures"].values()) == {"whole", "destroyed"}
    assert re.fullmatch("[0-9a-f]{16}", gold["prompt_id"])


def test_torn_picture_keeps_its_colours_and_loses_its_shape() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    pieces = np.asarray(torn(Image.fromarray(pixels), np.random.default_rng(1)))
    assert pieces.shape == pixels.shape
    assert np.array_equal(np.sort(pieces.reshape(-1, 3), axis=0), np.sort(pixels.reshape(-1, 3), axis=0))
    assert (pieces != pixels).mean() > 0.9


def test_text_can_not_leave_its_script_element() -> None:
    evil = '</script><script>alert("x")</script><!-- \u2028 & "quoted" /*script*/'
    page = page_html({"title": evil, "pairs": {}})
    embedded = page.partition('id="manifest">')[2].partition("</script>")[0]
    assert json.loads(embedded)["title"] == evil
    assert not set("<>&\u2028") & set(embedded)
    assert page.count("<script") == 2


def test_export_again_keeps_ids_and_another_survey_is_refused(world: Path) -> None:
    config = config_of(world)
    folder = exported(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    exported(config)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(
        RunError, match="holds a survey of other pictures or settings, and answers to it may be out"
    ):
        exported(config_of(world, seed=1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_export_that_was_cut_short_starts_over(world: Path) -> None:
    config = config_of(world)
    folder = exported(config)
    (folder / "index.html").unlink()
    exported(config)
    manifest = read_manifest_of(folder / "index.html")
    shown = {name for showings in manifest["plans"] for _, *names in showings for name in names}
    assert shown == {path.stem for path in (folder / "images").iterdir()}


def test_no_more_prompts_than_asked_for(world: Path) -> None:
    folder = exported(config_of(world, pairs=5))
    key = json.loads((folder / "private" / "key.json").read_text())
    assert sum(pair["kind"] == "real" for pair in key["pairs"].values()) == 5


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answers_per_pair of at most 4, the number of raters"):
        config_of(tmp_path, answers_per_pair=5)
    with pytest.raises(ConfigError, match="a baseline that is one of the systems"):
        config_of(tmp_path, baseline="nobody")
