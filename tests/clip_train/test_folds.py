"""Folds: groups whole, balanced, pure; a recipe trained in folds and judged on what it did not see."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_train.config import ClipDataConfig
from clip_train.folds import FoldsConfig, folds, parts_of
from clip_train.retrieval import rank_metrics
from crest.config import load_config
from crest.errors import ConfigError, DataError
from crest.pixels import open_pictures
from crest.shards import read_samples, write_shards
from crest.world import World, open_world

UNEVEN = [f"club {number}" for number in range(40) for _ in range(1 + number % 5)]  # 40 groups, 120 samples


@pytest.mark.parametrize("k", [2, 5, 7, 40])
def test_groups_stay_whole_and_folds_are_balanced(k: int) -> None:
    fold = folds(UNEVEN, k, seed=0)
    assert len(fold) == 120
    assert len(set(zip(UNEVEN, fold.tolist(), strict=True))) == 40  # one fold a group
    sizes = Counter(fold.tolist())
    assert sorted(sizes) == list(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= (5 if k == 40 else 1)


def test_one_large_group_is_no_reason_to_split_it() -> None:
    groups = ["large"] * 50 + [f"small {number}" for number in range(20)]
    fold = folds(groups, 3, seed=0)
    assert len(set(fold[:50].tolist())) == 1
    assert sorted(Counter(fold.tolist()).values()) == [10, 10, 50]


def test_folds_depend_on_groups_and_seed_and_not_on_the_order_of_samples() -> None:
    fold = folds(UNEVEN, 5, seed=3)
    assert folds(UNEVEN, 5, seed=3).tolist() == fold.tolist()
    assert folds(UNEVEN, 5, seed=4).tolist() != fold.tolist()
    order = np.random.default_rng(0).permutation(120)
    assert folds([UNEVEN[place] for place in order], 5, seed=3).tolist() == fold[order].tolist()


def test_folds_are_the_same_on_every_machine() -> None:
    assert folds([f"club {number}" for number in range(12)], 3, seed=1).tolist() == [
        0,
        1,
        0,
        2,
        1,
        2,
        2,
        0,
        1,
        2,
        1,
        0,
    ]


def test_too_few_groups_or_folds_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"folds\.k: 3 folds of 2 groups \(4 logos\), expected a group for each"
    ):
        folds(["a", "a", "a", "b"], 3, seed=0)
    with pytest.raises(ConfigError, match=r"folds\.k: found 1, expected at least 2"):
        folds(["a", "b"], 1, seed=0)


@pytest.mark.parametrize("k", [2, 5, 20])
def test_what_teaches_chooses_and_judges_never_share_a_group(k: int) -> None:
    judged: list[int] = []
    for fold in range(k):
        parts = parts_of(UNEVEN, k, 0, fold)
        every = [parts.train.tolist(), parts.val.tolist(), parts.held_out.tolist()]
        assert sorted(number for numbers in every for number in numbers) == list(range(120))
        groups = [{UNEVEN[number] for number in numbers} for numbers in every]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
        assert len(parts.val) == pytest.approx((120 - len(parts.held_out)) / 8, abs=4)
        judged += every[2]
    assert sorted(judged) == list(range(120))  # each once


def test_a_small_set_chooses_by_two_and_a_smaller_one_is_refused() -> None:
    parts = parts_of(list("abcdefgh"), 2, 0, 0)
    assert [len(part) for part in (parts.train, parts.val, parts.held_out)] == [2, 2, 4]
    with pytest.raises(DataError, match=r"fold 0 of 2 would hold out 3 and learn from 3 logos in 3 groups"):
        parts_of(list("abcdef"), 2, 0, 0)
    with pytest.raises(DataError, match=r"fold 0 of 8 would hold out 1 "):
        parts_of(list("abcdefgh"), 8, 0, 0)


def test_selected_pictures_are_those_of_their_numbers(tiny_world: Any, tmp_path: Path) -> None:
    from clip_train.cross_validation import select

    sources = [open_pictures(tiny_world.shards, split, 16) for split in ("train", "val")]
    numbers = np.array([25, 3, 31, 0, 23, 24])
    found = select(sources, numbers, tmp_path / "deep" / "chosen.u8")
    whole = np.concatenate([source.pixels for source in sources])
    assert isinstance(found.pixels, np.memmap)
    assert (found.pixels == whole[numbers]).all()
    for name in ("ids", "captions", "groups"):
        both = getattr(sources[0], name) + getattr(sources[1], name)
        assert getattr(found, name) == [both[number] for number in numbers]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["chosen.u8"]
    written = (tmp_path / "deep" / "chosen.u8").stat().st_mtime_ns
    select(sources, numbers, tmp_path / "deep" / "chosen.u8")
    assert (tmp_path / "deep" / "chosen.u8").stat().st_mtime_ns == written


def test_several_captions_go_with_their_picture(tiny_world: Any, tmp_path: Path) -> None:
    from clip_train.cross_validation import select

    source = replace(open_pictures(tiny_world.shards, "val", 16), several={5: (("a", 1.0), ("b", 0.5))})
    found = select([source, source], np.array([0, 5, 13]), tmp_path / "chosen.u8")
    assert found.several == {1: source.several[5], 2: source.several[5]}
    assert found.captions_of(0) == source.captions_of(0)


def test_a_fold_opens_at_both_sizes_and_leaves_the_test_split_alone(tiny_world: Any, tmp_path: Path) -> None:
    from clip_train.cross_validation import open_fold

    data = ClipDataConfig(shards=tiny_world.shards)
    seen: list[str] = []
    for number in range(4):
        fold = open_fold(data, 4, 0, number, side_px=16, train_px=18, folder=tmp_path / str(number))
        assert fold.train.pixels.shape[1:] == (3, 18, 18)
        assert fold.val.pixels.shape[1:] == fold.held_out.pixels.shape[1:] == (3, 16, 16)
        assert len(fold.train) + len(fold.val) + len(fold.held_out) == 32
        seen += fold.held_out.ids
    learned = [name for split in ("train", "val") for name in open_pictures(tiny_world.shards, split, 16).ids]
    assert sorted(seen) == sorted(learned)


def folds_config(tiny_world: Any, run_dir: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = tiny_world.config("clip_train", run_dir, run__steps=2, **changes)
    return {**config, "folds": {"k": 3}}


def test_every_fold_is_trained_judged_and_summed_up_and_goes_on_where_it_stopped(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = folds_config(tiny_world, tmp_path / "run")
    assert command("clip_train.folds", config, tmp_path) == 0
    assert "3 folds: held-out " in capsys.readouterr().out
    folder = tmp_path / "run" / "folds"
    report = json.loads((folder / "folds.json").read_text(encoding="utf-8"))
    assert (report["k"], report["held_out"], len(report["folds"])) == (3, 32, 3)
    assert [row["held_out"] for row in report["folds"]] == [11, 11, 10]
    for row in report["folds"]:
        assert row["train"] + row["val"] + row["held_out"] == 32
    # each logo counts once, so the whole is the mean of folds by size, and so is what chance gives
    for name in ("r_at_1", "r_at_5", "mean_rank", "chance_r_at_5"):
        sizes = [row["held_out"] for row in report["folds"]]
        mean = np.average([row["after"][name] for row in report["folds"]], weights=sizes)
        assert report["after"][name] == pytest.approx(mean)
    assert report["after"]["r_at_5_low"] <= report["after"]["r_at_5"] <= report["after"]["r_at_5_high"]
    assert report["gain"]["mean_rank"] == pytest.approx(
        report["after"]["mean_rank"] - report["before"]["mean_rank"]
    )
    values = [row["after"]["r_at_5"] for row in report["folds"]]
    assert report["deviation"]["r_at_5"] == pytest.approx(float(np.std(values, ddof=1)))
    assert (folder / "index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(folder.glob("fold-*/pictures"))  # the copies are gone

    kept = {path: path.stat().st_mtime_ns for path in folder.glob("fold-*/weights.safetensors")}
    assert len(kept) == 3
    (folder / "folds.json").unlink()
    shutil.rmtree(folder / "fold-1")
    assert command("clip_train.folds", config, tmp_path) == 0
    again = json.loads((folder / "folds.json").read_text(encoding="utf-8"))
    assert again == report  # what was lost is trained to the same figures
    assert {path: path.stat().st_mtime_ns for path in kept if "fold-1" not in str(path)} == {
        path: time for path, time in kept.items() if "fold-1" not in str(path)
    }


def test_what_judges_a_fold_neither_taught_nor_chose(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    from clip_train.cross_validation import held_out_ranks, open_fold
    from crest.models.clip import load_clip_model

    config = folds_config(tiny_world, tmp_path / "run")
    assert command("clip_train.folds", config, tmp_path) == 0
    run = tmp_path / "run" / "folds" / "fold-2"
    result = json.loads((run / "held_out.json").read_text(encoding="utf-8"))
    fold = open_fold(
        ClipDataConfig(shards=tiny_world.shards), 3, 0, 2, side_px=16, train_px=16, folder=tmp_path / "again"
    )
    assert result["ids"] == fold.held_out.ids
    assert not set(result["groups"]) & {*fold.train.groups, *fold.val.groups}
    world = open_world("cpu", "fp32")
    exported = load_clip_model(run)[0]
    ranks = held_out_ranks(exported, fold.held_out, ClipDataConfig(shards=tiny_world.shards), world)
    assert ranks.text_to_image.tolist() == result["ranks"]["after"]["text_to_image"]
    assert ranks.image_to_text.tolist() == result["ranks"]["after"]["image_to_text"]
    assert rank_metrics(ranks)["chance_r_at_1"] >= 1 / len(fold.held_out)
    card = json.loads((run / "weights.json").read_text(encoding="utf-8"))
    assert card["recipe"]["folds"] == {"k": 3, "seed": 0, "fold": 2}


def test_a_folds_kept_activations_serve_until_it_is_judged_and_go_with_it(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "data" / "shards"
    shutil.copytree(tiny_world.shards, shards)
    start = {"model__scratch": None, "model__start": str(tiny_world.folder / "runs" / "clip_train")}
    config = folds_config(tiny_world, tmp_path / "run", **start, data__shards=shards, model__mode="features")
    with monkeypatch.context() as patched:  # stopped when fold 0 is trained and not judged
        patched.setattr("clip_train.cross_validation.held_out_ranks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("clip_train.folds", config, tmp_path)
    kept = tmp_path / "run" / "folds" / "fold-0" / "activations"
    assert len(list(kept.iterdir())) == 4  # pictures and captions of train and val
    (
        tmp_path / "run" / "folds" / "fold-0" / "weights.json"
    ).unlink()  # stopped still earlier: it trains again
    computed: list[Path] = []
    with monkeypatch.context() as patched:
        replaced = Path.replace

        def seen(path: Path, target: Path) -> Path:
            computed.append(Path(target))
            return replaced(path, target)

        patched.setattr(Path, "replace", seen)
        assert command("clip_train.folds", config, tmp_path) == 0
    folders = [path.parent.parent.name for path in computed if path.parent.name == "activations"]
    assert Counter(folders) == {"fold-1": 4, "fold-2": 4}  # those of fold 0 were found
    assert not list((tmp_path / "run").rglob("activations"))
    assert not (tmp_path / "data" / "activations").exists()


def test_folds_count_what_is_damaged(tiny_world: Any, tmp_path: Path) -> None:
    from clip_train.cross_validation import open_fold

    splits: Any = {split: list(read_samples(tiny_world.shards, split)) for split in ("train", "val")}
    for samples in splits.values():
        samples[1] = replace(samples[1], image=samples[1].image[:-30])
    write_shards(tmp_path / "data" / "shards", splits, samples_per_shard=99, parents={})
    data = ClipDataConfig(shards=tmp_path / "data" / "shards", max_damaged_share=0.2)
    fold = open_fold(data, 3, 0, 1, side_px=16, train_px=18, folder=tmp_path / "fold")
    assert fold.train.damaged == {"broken_picture": 2}
    assert fold.val.damaged == fold.held_out.damaged == {}


def test_folds_of_another_recipe_are_refused(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = folds_config(tiny_world, tmp_path / "run")
    assert command("clip_train.folds", config, tmp_path) == 0
    config["run"]["log_every"] = 7  # how it is watched is no recipe
    assert command("clip_train.folds", config, tmp_path) == 0
    config["optim"]["lr"] = 0.5
    assert command("clip_train.folds", config, tmp_path) == 1
    assert (
        "fold-0: belongs to another config or to other shards; name another run.dir"
        in capsys.readouterr().err
    )


def test_a_fold_whose_weights_are_refused_counts_with_those_it_began_with(
    tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    untrained = tiny_world.config("clip_train", tmp_path / "untrained", run__steps=0)
    assert command("clip_train", untrained, tmp_path) == 0
    start = {"model__scratch": None, "model__start": str(tmp_path / "untrained")}
    config = folds_config(tiny_world, tmp_path / "run", **start, optim__lr=0.01)
    config["run"] |= {"steps": 16, "validate_every": 8, "save_every": 16}
    config["judge"] = {"max_drift": 1e-12, "wise_ft": [0.5, 1.0], "best_by": "r_at_1"}
    config["model"]["mode"] = "full"
    assert command("clip_train.folds", config, tmp_path) == 0
    folder = tmp_path / "run" / "folds"
    report = json.loads((folder / "folds.json").read_text(encoding="utf-8"))
    refused = [row for row in report["folds"] if row["refused"] is not None]
    assert refused  # another fold may have kept its start, which has not drifted
    for row in refused:
        assert "drifted by" in row["refused"]
        assert row["before"] == row["after"]
        assert row["gain"]["mean_rank"] == 0.0
        assert not (folder / f"fold-{row['fold']}" / "weights.safetensors").exists()
    said = f"{len(refused)} of 3 folds were refused"
    assert said in (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "device", "processes", "batch_size"),
    [
        (None, None, 1, 25),
        (8, None, 1, 8),
        (64, None, 1, 25),
        (64, 8, 1, 24),
        (64, 4, 2, 24),
        (64, 64, 1, 25),
    ],
)
def test_a_batch_is_never_larger_than_a_fold_and_still_divides(
    tiny_world: Any, tmp_path: Path, asked: int | None, device: int | None, processes: int, batch_size: int
) -> None:
    from clip_train.cross_validation import fold_config

    values = folds_config(tiny_world, tmp_path / "run")
    values["optim"] |= {"batch_size": asked, "device_batch_size": device}
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(values, default=str), encoding="utf-8")
    config = load_config(FoldsConfig, path)
    one = open_world("cpu", "fp32")
    world = World(0, processes, one.device, "fp32", one.accelerator)
    own = fold_config(config, tmp_path / "fold", 25, world)
    assert own.optim.batch_size == batch_size
    assert own.run.dir == tmp_path / "fold"
    world.share(batch_size, device)


def test_a_trainings_own_config_is_enough(tiny_world: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.json"
    path.write_text(
        json.dumps(tiny_world.config("clip_train", tmp_path / "run"), default=str), encoding="utf-8"
    )
    assert load_config(FoldsConfig, path).folds.k == 5
    assert load_config(FoldsConfig, path, ["folds.k=10"]).folds.k == 10
    with pytest.raises(ConfigError, match="greater than or equal to 2"):
        load_config(FoldsConfig, path, ["folds.k=1"])


def test_processes_agree_on_the_same_copies(tiny_world: Any, tmp_path: Path) -> None:
    from clip_train.cross_validation import open_fold

    data = ClipDataConfig(shards=tiny_world.shards)
    first, second = (
        open_fold(data, 3, 0, 1, side_px=16, train_px=16, folder=tmp_path / "shared") for _ in range(2)
    )
    assert first.train.ids == second.train.ids
    assert (first.train.pixels == second.train.pixels).all()
