"""`python -m eval` from samples to a page, with an encoder that needs no weights."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crest.config import load_config
from crest.errors import ConfigError, DataError, WeightsError
from eval.__main__ import evaluate
from eval.config import EvalConfig

Draw = Callable[..., Path]


def config_of(tmp_path: Path, a: Path, b: Path, **more: Any) -> EvalConfig:
    section = {
        "dir": str(tmp_path / "report"),
        "systems": [{"name": "stock", "samples": str(a)}, {"name": "tuned", "samples": str(b)}],
        "baseline": "stock",
        "bootstrap": 499,
        **more,
    }
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"eval": section}))
    return load_config(EvalConfig, path)


@pytest.fixture
def worse_and_better(tmp_path: Path, draw_system: Draw) -> tuple[Path, Path]:
    return draw_system(tmp_path / "a", right=0.3, count=20, seeds=2), draw_system(
        tmp_path / "b", right=1.0, count=20, seeds=2
    )


def test_better_system_is_called_better(
    tmp_path: Path, worse_and_better: Any, real_shards: Path, encoder: Any
) -> None:
    config = config_of(tmp_path, *worse_and_better, shards=str(real_shards))
    (said,) = evaluate(config, encoder())
    assert said.startswith("tuned is better than stock: CLIPScore ")
    flat = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert flat["verdict"] == said
    assert flat["prompts"] == 20
    assert flat["pictures"] == 40
    assert flat["tuned.r_precision_at_1"] == 1
    assert flat["r_precision_at_1.chance"] == pytest.approx(1 / 20)
    assert flat["stock.r_precision_at_1"] < 0.7
    assert flat["tuned.colours"] > flat["stock.colours"]
    assert {"tuned.kid", "tuned.cmmd", "tuned.vendi", "tuned.near_copy", "tuned.flatness"} <= set(flat)
    assert all(not isinstance(value, (dict, list)) for value in flat.values())
    rows = [json.loads(line) for line in (tmp_path / "report" / "nearest.jsonl").read_text().splitlines()]
    assert len(rows) == 80
    assert {"system", "file", "prompt", "nearest_id", "cosine", "phash_bits", "is_flagged"} == set(rows[0])


def test_equal_systems_get_no_verdict_for_either(tmp_path: Path, draw_system: Draw, encoder: Any) -> None:
    a, b = (draw_system(tmp_path / name, right=0.5, seeds=2, noise=n) for n, name in enumerate("ab"))
    (said,) = evaluate(config_of(tmp_path, a, b), encoder())
    assert said.startswith("No difference could be shown between tuned and stock")
    flat = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "eval.shards is not set" in flat["skipped.kid"]


def test_same_config_gives_the_same_numbers(
    tmp_path: Path, worse_and_better: Any, real_shards: Path, encoder: Any
) -> None:
    config = config_of(tmp_path, *worse_and_better, shards=str(real_shards))
    found = []
    for _ in range(2):
        evaluate(config, encoder())
        flat = json.loads((tmp_path / "report" / "metrics.json").read_text())
        found.append({name: value for name, value in flat.items() if name != "seconds"})
    assert found[0] == found[1]


def test_page_fetches_nothing_and_shows_prompts_as_text(
    tmp_path: Path, worse_and_better: Any, encoder: Any
) -> None:
    evaluate(config_of(tmp_path, *worse_and_better), encoder())
    page = (tmp_path / "report" / "index.html").read_text()
    assert "&quot;club&quot; &lt;" in page
    assert not re.search(r"<\d+>", page)
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "<script" not in page
    assert 'lang="en"' in page
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", page))


def test_page_admits_when_the_conditioning_clip_is_not_known(
    tmp_path: Path, draw_system: Draw, encoder: Any
) -> None:
    a, b = draw_system(tmp_path / "a"), draw_system(tmp_path / "b", clip="")
    evaluate(config_of(tmp_path, a, b), encoder())
    page = (tmp_path / "report" / "index.html").read_text()
    assert "though which CLIP conditioned tuned is not known" in page


@pytest.mark.parametrize(
    ("reference", "parents", "says"),
    [
        ("clip000000000000", {}, r"is the CLIP that conditioned system stock \(hash clip000000000000\)"),
        (
            "other",
            {"start": "clip000000000000"},
            "stems from clip000000000000, kin of the CLIP that conditioned system",
        ),
    ],
)
def test_reference_of_the_same_family_is_refused(
    tmp_path: Path, worse_and_better: Any, encoder: Any, reference: str, parents: dict[str, str], says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        evaluate(config_of(tmp_path, *worse_and_better), encoder(reference, parents))
    assert not (tmp_path / "report").exists()


def card(folder: Path, digest: str, parents: dict[str, str]) -> str:
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"")
    (folder / "weights.json").write_text(
        json.dumps({"kind": "clip", "sha256": digest + "0" * 48, "parents": parents})
    )
    return str(folder)


def test_parent_of_the_conditioning_clip_is_refused_by_its_card(
    tmp_path: Path, draw_system: Draw, encoder: Any
) -> None:
    a, b = draw_system(tmp_path / "a", clip="c1" * 8), draw_system(tmp_path / "b", clip="c2" * 8)
    config = config_of(tmp_path, a, b)
    place = card(tmp_path / "clip", "c2" * 8, {"start": "reference0000000"})
    systems = (config.eval.systems[0], config.eval.systems[1].model_copy(update={"clip": place}))
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"systems": systems})})
    with pytest.raises(WeightsError, match="is the parent of the CLIP that conditioned system tuned"):
        evaluate(config, encoder())
    assert evaluate(config, encoder("independent"))


def test_clip_of_the_config_must_be_the_one_that_drew(
    tmp_path: Path, draw_system: Draw, encoder: Any
) -> None:
    a, b = draw_system(tmp_path / "a"), draw_system(tmp_path / "b")
    config = config_of(tmp_path, a, b)
    place = card(tmp_path / "clip", "ffffffffffffffff", {})
    systems = (config.eval.systems[0], config.eval.systems[1].model_copy(update={"clip": place}))
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"systems": systems})})
    with pytest.raises(
        DataError, match=r"was drawn with CLIP clip000000000000, but .*clip is ffffffffffffffff"
    ):
        evaluate(config, encoder())


def test_broken_picture_stops_before_anything_is_written(
    tmp_path: Path, worse_and_better: Any, encoder: Any
) -> None:
    broken = worse_and_better[1] / "00003-0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"00003-0.png: is not a whole picture"):
        evaluate(config_of(tmp_path, *worse_and_better), encoder())
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"baseline": "other"}, "a baseline that is one of the systems"),
        (
            {"systems": [{"name": "stock", "samples": "a"}, {"name": "stock", "samples": "b"}]},
            "different names",
        ),
        ({"primary": "fid"}, "eval.primary"),
        ({"bootstrp": 10}, "did you mean eval.bootstrap"),
    ],
)
def test_config_mistakes_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_of(tmp_path, tmp_path / "a", tmp_path / "b", **change)


def test_command_prints_one_sentence_for_a_missing_folder(tmp_path: Path) -> None:
    config_of(tmp_path, tmp_path / "a", tmp_path / "b")
    command = [sys.executable, "-m", "eval", "--config", str(tmp_path / "eval.json"), "--dry-run"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "a: does not exist, expected what system stock drew" in done.stderr


def tiny_clip(folder: Path, seed: int, parents: dict[str, str]) -> str:
    """Untrained weights of a very small CLIP, as a run exports them."""
    import torch

    from crest.checkpoint import export_weights
    from crest.models.clip import ClipModel, ClipSpec, vocabulary_size

    tower = {"layers": 1, "width": 32}
    spec = ClipSpec(
        custom={
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 16, "head_width": 16, **tower},
            "text_cfg": {"context_length": 24, "vocab_size": vocabulary_size(100), "heads": 2, **tower},
        },
        bpe_merges=100,
    )
    torch.manual_seed(seed)
    card = {"kind": "clip", "spec": spec.model_dump(mode="json"), "parents": parents}
    export_weights(folder, ClipModel(spec), card)
    return str(folder)


def test_command_runs_with_real_weights_and_refuses_their_kin(
    tmp_path: Path, draw_system: Draw, real_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from crest.checkpoint import short_hash
    from eval.__main__ import check, main

    place = tiny_clip(tmp_path / "reference", 0, {"shards": "same data"})
    own = short_hash(Path(place) / "weights.safetensors")
    child = tiny_clip(tmp_path / "child", 1, {"start": own, "shards": "same data"})
    stranger = tiny_clip(tmp_path / "stranger", 2, {"shards": "same data"})
    drawn_by = {name: short_hash(Path(name) / "weights.safetensors") for name in (child, stranger)}
    a = draw_system(tmp_path / "a", right=0.3, clip=drawn_by[stranger])
    b = draw_system(tmp_path / "b", clip=drawn_by[child])
    systems = [{"name": "stock", "samples": str(a), "clip": stranger}, {"name": "tuned", "samples": str(b)}]
    config = config_of(
        tmp_path, a, b, reference=place, systems=systems, shards=str(real_shards), device="cpu"
    )
    check(config)
    main(config)
    assert f"the report is {tmp_path / 'report' / 'index.html'}" in capsys.readouterr().out
    systems[1]["clip"] = child
    config = config_of(tmp_path, a, b, reference=place, systems=systems, device="cpu")
    with pytest.raises(WeightsError, match="is the parent of the CLIP that conditioned system tuned"):
        check(config)  # a dry run says so too, without loading anything
    config = config.model_copy(
        update={"eval": config.eval.model_copy(update={"reference": str(tmp_path / "no")})}
    )
    with pytest.raises(WeightsError, match="no: there are no clip weights"):
        check(config)
