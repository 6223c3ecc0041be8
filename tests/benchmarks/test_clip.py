"""What open_clip's script is given, what is read from its log, when it is stopped, and that both learn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from benchmarks import clip, clip_upstream
from benchmarks.clip_pairs import Pairs, drawn, split_csv, write_csv
from benchmarks.clip_upstream import read_log, run_script, script_flags, script_step, steady_speed
from crest.records import read_manifest
from crest.shards import Sample, read_samples, write_shards

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
LOG = """2026-11-21,23:00:00 | INFO | Start epoch 0
2026-11-21,23:00:05 | INFO | Train Epoch: 0 [ 32/128 (25%)] Data (t): 0.211 Batch (t): 4.000, 8.00000/s, \
8.00000/s/gpu LR: 0.000050 Logit Scale: 14.286 Contrastive_loss: 3.4657 (3.4657) Loss: 3.4657 (3.4657)
2026-11-21,23:00:06 | INFO | Train Epoch: 0 [ 64/128 (50%)] Data (t): 0.110 Batch (t): 1.000, 32.0000/s, \
32.0000/s/gpu LR: 0.000100 Logit Scale: 14.286 Loss: 3.4 (3.4)
2026-11-21,23:00:07 | INFO | Train Epoch: 0 [ 96/128 (75%)] Data (t): 0.110 Batch (t): 0.010, 3.20000e+03/s, \
3.2e+03/s/gpu LR: 0.000100 Logit Scale: 14.286 Loss: 3.4 (3.4)
2026-11-21,23:00:09 | INFO | Eval Epoch: 1 [131 / 131]\tClip Loss: 4.8\t
2026-11-21,23:00:12 | INFO | Train Epoch: 1 [ 32/128 (25%)] Data (t): 0.211 Batch (t): 8.000, 4.00000/s, \
4.00000/s/gpu LR: 0.000050 Logit Scale: 14.286 Loss: 3.4657 (3.4657)
2026-11-21,23:00:13 | INFO | Train Epoch: 1 [ 64/128 (50%)] Data (t): 0.110 Batch (t): 2.000, 16.0000/s, \
16.0000/s/gpu LR: 0.000100 Logit Scale: 14.286 Loss: 3.4 (3.4)
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pairs are drawn once."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def pairs(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pairs]:
    """Forty drawn pairs in a folder of their own."""
    monkeypatch.chdir(place)
    drawn.cache_clear()
    yield drawn(32, 8)
    drawn.cache_clear()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name under which open_clip knows a model that takes milliseconds."""
    import open_clip

    path = tmp_path_factory.mktemp("models") / "tiny-of-test-clip.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


def test_csv_reads_as_the_script_reads_it(tmp_path: Path) -> None:
    captions = ['A black wordmark of "Udemy" on white.', "tab\there", "two\nlines", "'single'; a, b"]
    assert write_csv(tmp_path / "a.csv", [(tmp_path / f"{n}.png", text) for n, text in enumerate(captions)])
    table = pandas.read_csv(tmp_path / "a.csv", sep="\t")
    assert table["title"].tolist() == captions
    assert table["filepath"].tolist() == [str(tmp_path / f"{n}.png") for n in range(4)]


def test_csv_names_the_source_files_and_not_what_was_packed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGBA", (480, 120)).save(tmp_path / "images" / "a.png")
    packed = tmp_path / "packed.png"
    Image.new("RGBA", (256, 64)).save(packed)
    (tmp_path / "tar").write_bytes(b"..in the tar..")
    samples = [
        Sample("a", packed.read_bytes(), "file", {"image": "images/a.png"}),
        Sample("b", packed.read_bytes(), "gone", {"image": "images/b.png"}),
        Sample("c", packed.read_bytes(), "in a tar", {"image": "tar#2+10"}),
    ]
    write_shards(tmp_path / "shards", {"train": samples}, samples_per_shard=9, parents={})
    table = pandas.read_csv(split_csv(tmp_path / "shards", "train", tmp_path / "csv"), sep="\t")
    files = [Path(name) for name in table["filepath"]]
    assert Image.open(files[0]).size == (480, 120)
    assert Image.open(files[1]).size == (256, 64)
    assert files[2].read_bytes() == b"in the tar"


def test_both_sides_have_the_same_drawn_pairs(pairs: Pairs) -> None:
    assert read_manifest(pairs.shards, "shards", "x").counts == {"train": 32, "val": 8, "test": 0}
    table = pandas.read_csv(pairs.train_csv, sep="\t")
    samples = list(read_samples(pairs.shards, "train"))
    assert table["title"].tolist() == [sample.caption for sample in samples]
    assert [Path(name).read_bytes() for name in table["filepath"]] == [sample.image for sample in samples]
    assert {sample.kind for sample in samples} == {"jpg", "png"}


def test_log_lines_become_steps() -> None:
    steps = read_log(LOG)
    assert [(step.epoch, step.samples) for step in steps] == [(0, 32), (0, 64), (0, 96), (1, 32), (1, 64)]
    assert [step.samples_per_s for step in steps] == [8.0, 32.0, 3200.0, 4.0, 16.0]
    assert (steps[0].data_s, steps[0].step_s) == (0.211, 4.0)


def test_first_step_of_an_epoch_is_not_steady() -> None:
    assert steady_speed(read_log(LOG)) == 32.0
    with pytest.raises(ValueError, match="no second one of an epoch"):
        steady_speed(read_log(LOG)[:1])


def test_later_flags_win() -> None:
    from open_clip_train.params import parse_args

    pairs = Pairs(Path("s"), Path("t.csv"), Path("v.csv"))
    args = parse_args(script_flags(pairs, further=("--precision", "fp32", "--lock-image")))
    assert (args.precision, args.lock_image, args.device, args.workers) == ("fp32", True, "cpu", 0)


def test_script_is_stopped_at_its_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(clip_upstream, "SCRIPT", "stubborn")
    monkeypatch.setattr(clip_upstream, "_GRACE_S", 0.3)
    ran = run_script((), tmp_path / "run", 1.0).ended
    assert ran.was_stopped
    assert 1.0 <= ran.seconds < 10
    assert ran.returncode != 0


def test_existing_folder_is_refused_because_the_script_would_exit_with_0(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="expected a new folder"):
        run_script((), tmp_path)


def weights_of(step: Any) -> Any:
    """The model within the closure of the script's step."""
    return next(c.cell_contents for c in step.__closure__ if hasattr(c.cell_contents, "encode_image"))


def test_step_of_the_script_trains_what_is_not_locked(pairs: Pairs, tiny: str) -> None:
    def flags(*further: str) -> list[str]:
        return script_flags(pairs, model=tiny, batch_size=8, further=further)

    sized = ("--force-image-size", "16", "--lock-image")
    for further, is_locked in (((), False), (sized, True)):
        step = script_step(flags(*further))
        model = weights_of(step)
        image = model.visual.conv1.weight.detach().clone()
        text = model.token_embedding.weight.detach().clone()
        for _ in range(5):  # past the end of an epoch of four batches
            step()
        assert bool((model.visual.conv1.weight == image).all()) is is_locked
        assert not bool((model.token_embedding.weight == text).all())


def test_script_trains_as_many_image_blocks_as_top_k(pairs: Pairs, tiny: str) -> None:
    assert clip.LOCKED["top_k"][-1] == str(clip.TOP_K + 1)
    model = weights_of(
        script_step(
            script_flags(
                pairs,
                model=tiny,
                batch_size=8,
                further=("--lock-image", "--lock-image-unlocked-groups", "2"),
            )
        )
    )
    learning = {name for name, weight in model.visual.named_parameters() if weight.requires_grad}
    assert {name.split(".")[2] for name in learning if "resblocks" in name} == {"1"}
    assert "proj" in learning


@pytest.mark.parametrize("mode", ["full", "lit", "top_k", "features"])
def test_our_step_trains_in_every_mode(
    pairs: Pairs, tiny: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "TOP_K", 1)
    step = clip.crest_step(mode, model=tiny, batch_size=8, pairs=32)
    step()
    step()


def test_batches_alone_are_as_large_on_both_sides(
    pairs: Pairs, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, tokens = clip_upstream.script_batches(script_flags(pairs, model=tiny, batch_size=8))()  # type: ignore[misc]
    assert (images.shape, tokens.shape) == ((8, 3, 32, 32), (8, 77))
    stage, world = clip.crest_stage("full", model=tiny, batch_size=8, pairs=32)
    assert next(stage.batches("train", world, 0)).images.shape == (8, 3, 32, 32)


def test_cases_are_those_that_the_goals_name() -> None:
    # Nothing is drawn or built before a case is run.
    names = {case.name for case in clip.cases()}
    assert names >= {"full", "lit", "top_k", "features", "gradcache_memory", "data"}
