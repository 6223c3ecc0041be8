"""A config that is wrong anywhere ends in one sentence that names the setting and says what to do."""

import contextlib
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crest import config
from crest.config import Config, FileConfig, OptimConfig, RunConfig
from crest.errors import ConfigError, DataError
from crest.interruption import heed


class DataConfig(Config):
    dir: Path
    """Folder of shards."""
    splits: tuple[str, ...] = ("train",)


class ToyConfig(FileConfig):
    run: RunConfig
    optim: OptimConfig
    data: DataConfig | None = None


def values() -> dict[str, Any]:
    return {"run": {"dir": "out/toy", "steps": 10}, "optim": {"lr": 0.001, "batch_size": 4}}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(values()))
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        config.load_config(ToyConfig, path, overrides)
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


def test_config_is_read_and_frozen(toy: Path) -> None:
    loaded = config.load_config(ToyConfig, toy)
    assert loaded.run.dir == Path("out/toy")
    assert loaded.optim.clip_grad_norm == 1.0
    with pytest.raises(ValidationError, match="frozen"):
        loaded.run.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("optim.warmup_step", "optim.warmup_steps"),
        ("optim.batchsize", "optim.batch_size"),
        ("run.seeds", "run.seed"),
        ("data.dirs", "data.dir"),
        ("optimizer", "optim"),
    ],
)
def test_typo_is_refused_with_a_suggestion(toy: Path, typo: str, meant: str) -> None:
    sentence = refused(toy, f"{typo}=1", *(["data.dir=x"] if typo.startswith("data") else []))
    assert f"{toy}: {typo} is not a setting; did you mean {meant}?" in sentence


def test_setting_like_no_other_points_to_the_schema(toy: Path) -> None:
    assert "configs/schema" in refused(toy, "optim.zzzzzz=1")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lr=fast", 'optim.lr: found "fast", expected a valid number'),
        ("optim.lr=0", "optim.lr: found 0, expected greater than 0"),
        ("run.steps=2.5", "run.steps: found 2.5, expected a valid integer"),
        ("run.steps=null", "run.steps: found null, expected a valid integer"),
        ("run.precision=fp8", "run.precision: found \"fp8\", expected 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("run=3", "run: found 3, expected"),
        ("data.dir=[1]", "data.dir: found [1], expected"),
    ],
)
def test_wrong_type_says_what_was_found_and_expected(toy: Path, override: str, says: str) -> None:
    sentence = refused(toy, override)
    assert says in sentence
    assert "correct it or --set" in sentence


def test_numbers_in_quotes_and_booleans_are_no_numbers(toy: Path) -> None:
    text = values()
    text["run"]["steps"] = "10"
    toy.write_text(json.dumps(text))
    assert 'run.steps: found "10"' in refused(toy)
    text["run"]["steps"] = True
    toy.write_text(json.dumps(text))
    assert "run.steps: found true" in refused(toy)


def test_missing_setting_is_named(toy: Path) -> None:
    toy.write_text(json.dumps({"run": {"dir": "x", "steps": 1}, "optim": {"lr": 1}}))
    assert "optim.batch_size is missing; add it or --set optim.batch_size=" in refused(toy)


def test_number_of_further_errors_is_told(toy: Path) -> None:
    assert "(1 more after this one)" in refused(toy, "optim.lr=fast", "run.steps=slow")


def test_value_on_the_command_line_wins(toy: Path) -> None:
    loaded = config.load_config(
        ToyConfig,
        toy,
        ["optim.lr=3e-4", "run.dir=out/other", 'data={"dir": "d"}', "run.seed=1", "run.seed=2"],
    )
    assert loaded.optim.lr == 3e-4
    assert loaded.run.dir == Path("out/other")
    assert loaded.run.seed == 2
    assert loaded.data == DataConfig(dir=Path("d"))


def test_set_reads_json_where_it_can(toy: Path) -> None:
    loaded = config.load_config(
        ToyConfig, toy, ["data.dir=d", 'data.splits=["val", "test"]', "run.device=cpu"]
    )
    assert loaded.data is not None
    assert loaded.data.splits == ("val", "test")
    assert loaded.run.device == "cpu"


def test_path_that_reads_as_a_number_needs_quotes_and_says_so(toy: Path) -> None:
    assert "run.dir: found 2026, expected a string (in double quotes" in refused(toy, "run.dir=2026")
    assert config.load_config(ToyConfig, toy, ['run.dir="2026"']).run.dir == Path("2026")


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim..lr=3", ".lr=3", "optim.=3"])
def test_set_without_a_name_and_value_is_refused(toy: Path, override: str) -> None:
    assert f"--set {override}: expected section.field=value" in refused(toy, override)


def test_set_below_a_value_is_refused(toy: Path) -> None:
    assert "run.seed is a value, not a section" in refused(toy, "run.seed=1", "run.seed.deep=1")


def test_missing_file_folder_and_broken_json_are_told_apart(toy: Path, tmp_path: Path) -> None:
    assert "there is no such config file" in refused(tmp_path / "none.json")
    assert "is a folder" in refused(tmp_path)
    assert "there is no such config file" in refused(toy / "below.json")
    toy.write_text('{"run": ')
    assert "is not JSON (Expecting value: line 1 column 9" in refused(toy)
    toy.write_text("[]")
    assert "holds a list, expected an object" in refused(toy)
    toy.write_bytes(b'"\xff"')
    assert "is not JSON" in refused(toy)


def test_setting_given_twice_is_refused(toy: Path) -> None:
    toy.write_text('{"run": {"dir": "x", "steps": 1, "steps": 2}, "optim": {"lr": 1, "batch_size": 1}}')
    assert "steps is given twice" in refused(toy)


def test_resolved_config_loads_again_as_the_same(toy: Path, tmp_path: Path) -> None:
    loaded = config.load_config(ToyConfig, toy, ['$schema="../schema/toy.json"', "data.dir=d"])
    again = tmp_path / "resolved.json"
    again.write_text(config.resolved_json(loaded))
    assert config.load_config(ToyConfig, again).model_dump(exclude={"schema_"}) == loaded.model_dump(
        exclude={"schema_"}
    )
    assert json.loads(again.read_text())["optim"]["schedule"] == "cosine"


def test_every_setting_of_a_run_is_documented() -> None:
    for section in (RunConfig, OptimConfig):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no line under it"


class Spy:
    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[ToyConfig] = []
        self.error = error

    def main(self, loaded: ToyConfig) -> None:
        """Fakes a room's main."""
        self.seen.append(loaded)
        if self.error:
            raise self.error


def command(spy: Spy, *argv: str, **options: Any) -> int:
    return config.run_command("toy", ToyConfig, spy.main, argv=argv, **options)


def test_command_runs_with_the_config(toy: Path) -> None:
    spy = Spy()
    assert command(spy, "--config", str(toy), "--set", "run.steps=3", "--set", "run.seed=4") == 0
    assert [(loaded.run.steps, loaded.run.seed) for loaded in spy.seen] == [(3, 4)]


def test_dry_run_prints_the_resolved_config_checks_and_stops(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spy, checked = Spy(), Spy(DataError("data/shards: does not exist; run make shards first."))
    assert command(spy, "--config", str(toy), "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["run"]["log_every"] == 10
    assert command(spy, "--config", str(toy), "--dry-run", check=checked.main) == 1
    assert "run make shards first" in capsys.readouterr().err
    assert spy.seen == []
    assert len(checked.seen) == 1


def test_check_comes_before_the_work(toy: Path) -> None:
    spy = Spy()
    assert command(spy, "--config", str(toy), check=Spy(DataError("no shards.")).main) == 1
    assert spy.seen == []


def test_default_config_stands_in(toy: Path) -> None:
    spy = Spy()
    assert command(spy, default_config=str(toy)) == 0
    assert len(spy.seen) == 1


def test_command_without_a_config_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command(Spy())
    assert raised.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_our_errors_are_printed_bare(capsys: pytest.CaptureFixture[str], toy: Path) -> None:
    assert command(Spy(DataError("data: is empty; run make scrape.")), "--config", str(toy)) == 1
    assert capsys.readouterr().err == "data: is empty; run make scrape.\n"
    assert command(Spy(), "--config", str(toy), "--set", "run.step=1") == 1
    assert "did you mean run.steps?" in capsys.readouterr().err


def test_our_mistakes_keep_their_traceback(toy: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        command(Spy(ZeroDivisionError()), "--config", str(toy))


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], toy: Path) -> None:
    assert command(Spy(KeyboardInterrupt()), "--config", str(toy)) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_an_interruption_that_a_library_swallows_is_heeded_at_the_next_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a library may have its own
    steps = []

    def work() -> None:
        for step in range(3):
            heed()
            with contextlib.suppress(KeyboardInterrupt):
                steps.append(step)
                signal.raise_signal(signal.SIGINT)

    assert config.guarded(work) == 130
    assert steps == [0]
    assert config.guarded(heed) == 0, "a later command starts anew"
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], number: int) -> None:
    def work() -> None:
        raise OSError(number, os.strerror(number), "out/run/state.part")

    assert config.guarded(work) == 1
    assert capsys.readouterr().err.startswith("out/run/state.part: the disk is full; free some space")


def test_full_disk_is_noticed_by_a_real_write(capsys: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    assert config.guarded(lambda: full.write_text("x") and None) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_place_without_permission_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/run")

    assert config.guarded(work) == 1
    assert capsys.readouterr().err.startswith("/data/run: ")


def test_other_system_errors_keep_their_traceback() -> None:
    def work() -> None:
        raise OSError(errno.EIO, "Input/output error", "disk")

    with pytest.raises(OSError, match="Input/output error"):
        config.guarded(work)
