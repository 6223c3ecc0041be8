"""The journal: what is done is not done again, what has changed is, and every second is counted."""

import time
from pathlib import Path

import pytest

from crest.errors import ConfigError, RunError, WeightsError
from crest.records import read_json, write_json, write_text
from demo.config import DemoConfig, PlaceConfig, step_overrides
from demo.steps import STEPS, Journal, sources_of

NAMES = [step.name for step in STEPS]
SOURCES = {name: {"a.json": "1"} for name in NAMES}


def finish(journal: Journal, names: list[str] = NAMES) -> None:
    for step in STEPS:
        if step.name in names:
            with journal.running(step, SOURCES[step.name]):
                for proof in step.proof:
                    write_text(journal.folder / proof, "{}")


def interrupted(journal: Journal) -> None:
    with journal.running(STEPS[1], SOURCES["captioner"]):
        time.sleep(0.06)
        raise KeyboardInterrupt


def names_of(steps: tuple) -> list[str]:
    return [step.name for step in steps]


def test_fresh_folder_has_everything_to_do(tmp_path: Path) -> None:
    plan = Journal(tmp_path).plan(SOURCES)
    assert (names_of(plan.todo), plan.stale, plan.reasons) == (NAMES, (), ())


def test_finished_demo_has_nothing_to_do_for_a_journal_read_anew(tmp_path: Path) -> None:
    finish(Journal(tmp_path))
    assert Journal(tmp_path).plan(SOURCES).todo == ()


def test_interrupted_step_goes_on_and_its_seconds_add_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    finish(journal, ["scrape"])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(journal)
    plan = Journal(tmp_path).plan(SOURCES)
    assert names_of(plan.todo) == NAMES[1:]
    assert plan.stale == ()
    assert Journal(tmp_path).seconds()["captioner"] >= 0.12


def test_killed_step_keeps_the_seconds_of_its_last_beat(tmp_path: Path) -> None:
    journal = Journal(tmp_path, beat_s=0.02)
    with journal.running(STEPS[0], SOURCES["scrape"]):
        time.sleep(0.15)
        row = read_json(tmp_path / "steps.json")["scrape"]  # what a SIGKILL would leave
    assert row["done"] is False
    assert row["seconds"] > 0.04


def test_changed_config_makes_its_step_and_what_rests_on_it_stale(tmp_path: Path) -> None:
    finish(Journal(tmp_path))
    plan = Journal(tmp_path).plan({**SOURCES, "prior": {"a.json": "2"}})
    assert names_of(plan.stale) == ["prior", "generate", "eval", "survey", "report"]
    assert plan.todo == plan.stale
    assert plan.reasons == ("a.json changed since prior ran",)


def test_other_answers_of_the_captioners_are_judged_anew_and_nothing_is_drawn_anew(tmp_path: Path) -> None:
    finish(Journal(tmp_path))
    plan = Journal(tmp_path).plan({**SOURCES, "captions": {"a.json": "2"}})
    assert names_of(plan.stale) == ["captions", "eval", "report"]


def test_removed_result_is_made_again_with_what_rests_on_it(tmp_path: Path) -> None:
    finish(Journal(tmp_path))
    (tmp_path / "reports" / "tuned_against_stock" / "metrics.json").unlink()
    plan = Journal(tmp_path).plan(SOURCES)
    assert names_of(plan.stale) == ["eval", "report"]
    assert "reports/tuned_against_stock/metrics.json is gone" in plan.reasons[0]


def test_forgetting_removes_only_what_the_stale_steps_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    finish(journal)
    journal.forget([step for step in STEPS if step.name in ("decoder", "generate")])
    assert not (tmp_path / "runs" / "decoder_64").exists()
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "prompts.jsonl").exists()
    assert (tmp_path / "runs" / "clip" / "weights.json").exists()
    assert "decoder" not in Journal(tmp_path).rows


def test_survey_with_answers_is_never_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    finish(journal)
    write_text(tmp_path / "survey" / "answers.csv", "rater_id\n")
    with pytest.raises(RunError, match=r"survey to another place"):
        journal.forget([step for step in STEPS if step.name in ("survey", "report")])
    assert (tmp_path / "report" / "index.html").exists()


def test_every_step_rests_on_earlier_ones_only() -> None:
    for place, step in enumerate(STEPS):
        assert set(step.needs) <= set(NAMES[:place])


def config(tmp_path: Path, **place: object) -> DemoConfig:
    """A demo whose configs name stock/clip once, and whose stock weights are a few bytes."""
    for step in STEPS:
        for name in step.reads:
            values = {"model": {"start": "stock/clip"}} if name == "clip" else {"caption": {"batch_size": 1}}
            write_json(tmp_path / "configs" / f"{name}.json", values)
    write_text(tmp_path / "stock" / "clip" / "weights.safetensors", "one")
    return DemoConfig(
        place=PlaceConfig(
            dir=tmp_path / "out", configs=tmp_path / "configs", stock=str(tmp_path / "stock"), **place
        )
    )


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_only_the_steps_that_read_a_setting_notice_its_change(tmp_path: Path) -> None:
    one = config(tmp_path)
    before = sources_of(one)
    write_json(tmp_path / "configs" / "data.json", {"caption": {"batch_size": 2}})
    assert changed(before, sources_of(one)) == {"caption"}
    assert changed(before, sources_of(DemoConfig(place=one.place, world={"seed": 5}))) == {
        "scrape",
        "caption",
    }


def test_new_stock_weights_are_noticed_by_the_step_that_starts_from_them(tmp_path: Path) -> None:
    one = config(tmp_path)
    before = sources_of(one)
    write_text(tmp_path / "stock" / "clip" / "weights.safetensors", "two")
    assert changed(before, sources_of(one)) == {"clip"}
    assert "stock/clip" in before["clip"]


def test_missing_stock_weights_and_configs_are_named(tmp_path: Path) -> None:
    one = config(tmp_path)
    (tmp_path / "stock" / "clip" / "weights.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"clip/weights.safetensors: the stock weights are not there.*make stock"
    ):
        sources_of(one)
    (tmp_path / "configs" / "embed.json").unlink()
    write_text(tmp_path / "stock" / "clip" / "weights.safetensors", "one")
    with pytest.raises(ConfigError, match=r"embed.json: there is no such config file, and embed needs it"):
        sources_of(one)


def test_another_place_takes_the_place_of_the_configs_own(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"eval": {"dir": "out/demo/x", "systems": [{"clip": "stock/clip"}], "seed": 1}})
    place = PlaceConfig(dir=Path("/w"), configs=tmp_path, stock="/s", changes={"eval": ("eval.seed=2",)})
    assert step_overrides(DemoConfig(place=place), "eval") == [
        'eval.dir="/w/x"',
        'eval.systems=[{"clip": "/s/clip"}]',
        "eval.seed=2",
    ]
