"""A run's record: what a program reads and what TensorBoard shows."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crest.errors import DataError
from crest.tracker import Tracker, last_images, read_scalars


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_shown(run_dir: Path, name: str) -> list[int]:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def record(run_dir: Path, start: int, stop: int) -> None:
    tracker = Tracker(run_dir, start)
    for step in range(start + 1 if start else 0, stop + 1):
        tracker.scalars(step, {"loss": step / 3})
    tracker.close()


def test_figures_go_to_both_records(tmp_path: Path) -> None:
    record(tmp_path, 0, 2)
    assert lines(tmp_path) == [
        {"step": 0, "loss": 0.0},
        {"step": 1, "loss": 0.333333},
        {"step": 2, "loss": 0.666667},
    ]
    assert steps_shown(tmp_path, "loss") == [0, 1, 2]


@pytest.mark.parametrize("resumed_from", [0, 2])
def test_a_resumed_run_leaves_the_record_of_one_that_never_stopped(tmp_path: Path, resumed_from: int) -> None:
    record(tmp_path / "straight", 0, 6)
    record(tmp_path / "stopped", 0, 4)
    record(tmp_path / "stopped", resumed_from, 6)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    assert steps_shown(tmp_path / "stopped", "loss") == [0, 1, 2, 3, 4, 5, 6]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    record(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "lo')
    record(tmp_path, 2, 4)
    assert [row["step"] for row in lines(tmp_path)] == [0, 1, 2, 3, 4]


def test_pictures_outside_the_range_are_clipped_and_shown(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.images(5, {"drawn": torch.full((2, 3, 4, 4), 1.5)})
    tracker.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Images("drawn")
    assert [event.step for event in shown] == [5]
    assert shown[0].encoded_image_string.startswith(b"\x89PNG")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, active=False)
    tracker.scalars(0, {"loss": 1.0})
    tracker.images(0, {"drawn": torch.zeros(1, 3, 4, 4)})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_going_on_can_be_read(tmp_path: Path) -> None:
    assert read_scalars(tmp_path) == []
    record(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "lo')
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_scalars(tmp_path)] == [0, 1, 2]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_broken_line_in_the_midst_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: is not JSON"):
        read_scalars(tmp_path)


def test_the_newest_grid_of_each_name_is_read_back(tmp_path: Path) -> None:
    assert last_images(tmp_path) == {}
    tracker = Tracker(tmp_path, 0)
    for step, level in ((1, 0.0), (4, 1.0)):
        tracker.images(step, {"drawn": torch.full((2, 3, 4, 4), level)})
    tracker.images(1, {"other": torch.zeros(1, 3, 8, 8)})
    tracker.close()
    found = last_images(tmp_path)
    assert {name: step for name, (step, _) in found.items()} == {"drawn": 4, "other": 1}
    with Image.open(io.BytesIO(found["drawn"][1])) as picture:
        assert (picture.format, picture.getextrema()) == ("PNG", ((255, 255),) * 3)
