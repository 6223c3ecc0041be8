import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.harness import Case, Result
from crest.errors import ConfigError


class Clock:
    """A clock that only the work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> harness.Step:
        def step() -> None:
            self.order.append(name)
            self.now += seconds

        return step


def result(upstream: list[float], crest: list[float]) -> Result:
    case = Case("decoder", {"upstream": lambda: print, "crest": lambda: print}, rounds=len(crest))
    return Result(case, {"upstream": upstream, "crest": crest}, {"upstream": 900.0, "crest": 600.0})


def test_rounds_are_interleaved_and_turned_around() -> None:
    clock = Clock()
    steps = {"upstream": clock.work("upstream", 3.0), "crest": clock.work("crest", 2.0)}
    seconds = harness.interleave(steps, 3, clock)
    assert clock.order == ["upstream", "crest", "crest", "upstream", "upstream", "crest"]
    assert seconds == {"upstream": [3.0, 3.0, 3.0], "crest": [2.0, 2.0, 2.0]}


def test_a_short_step_runs_several_times_a_round_and_counts_once() -> None:
    clock = Clock()
    steps = {"upstream": clock.work("upstream", 3.0), "crest": clock.work("crest", 0.5)}
    seconds = harness.interleave(steps, 2, clock, repeats={"crest": 3})
    assert clock.order == ["upstream", "crest", "crest", "crest", "crest", "crest", "crest", "upstream"]
    assert seconds == {"upstream": [3.0, 3.0], "crest": [0.5, 0.5]}


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # A machine that became ten times slower in the last round changes neither of them.
    measured = result([2.0, 4.0, 60.0], [1.0, 1.0, 20.0])
    assert measured.ratios == [2.0, 4.0, 3.0]
    assert measured.ratio == 3.0
    assert measured.spread == 1.0


def test_one_round_has_no_spread() -> None:
    assert result([2.0], [1.0]).spread == 0.0


def test_report_is_flat_and_names_its_surroundings() -> None:
    flat = harness.report([result([2.0, 4.0], [1.0, 1.0])], {"machine": "m", "versions": {}, "commit": "c"})
    assert flat["ratio.decoder"] == 3.0
    assert flat["spread.decoder"] == 1.0
    assert flat["seconds.decoder.upstream"] == 3.0
    assert flat["peak_mb.decoder.crest"] == 600.0
    assert flat["rounds.decoder"] == 2
    assert (flat["machine"], flat["commit"]) == ("m", "c")


def test_table_has_a_row_a_case() -> None:
    assert harness.table([result([2.0], [1.0])]).splitlines()[-1] == (
        "| decoder | 2.000 | 1.000 | 2.00 | 0.00 | 900 | 600 |"
    )


def test_run_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    built: list[str] = []

    def build(name: str) -> harness.Step:
        built.append(name)
        return lambda: sum(range(10_000))

    case = Case(
        "sum",
        {"upstream": lambda: build("upstream"), "crest": lambda: build("crest")},
        memory=False,
        rounds=2,
    )
    written = json.loads(harness.run("toy", [case]).read_text())
    assert built == ["upstream", "crest"]
    assert written["ratio.sum"] > 0
    assert written["versions"]["torch"]
    assert "| sum |" in capsys.readouterr().out


def test_peak_memory_counts_what_was_freed() -> None:
    before = harness.peak_mb()
    block = bytearray(64_000_000)
    for position in range(0, len(block), 4096):
        block[position] = 1
    del block
    assert harness.peak_mb() >= before
    assert harness.peak_mb() > 60


def test_quartiles_of_known_values() -> None:
    assert harness.quartile_distance([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_unknown_benchmark_is_refused_before_any_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match="there is no prio, expected one of clip, data, decoder, demo, prior, "
    ):
        command.cases_of("prio")
    with pytest.raises(ConfigError, match=r"data has no case read_crops, expected one of .*read_crop"):
        command.cases_of("data", ["read_crops"])
    assert [case.name for case in command.cases_of("data", ["read_crop"])] == ["read_crop"]
    assert command.main(["startup", "prio"]) == 1
    assert capsys.readouterr().out == ""


def test_every_start_that_is_compared_has_both_sides() -> None:
    for case in command.cases_of("startup"):
        assert set(case.variants) == {case.upstream, case.ours}
        assert not case.memory
