"""`--dry-run` of prior and decoder says what a run takes, from the stage's own loss, and trains nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from crest.config import run_command
from decoder_train import __main__ as decoder_room
from decoder_train.config import DecoderTrainConfig
from prior_train import __main__ as prior_room
from prior_train.config import PriorTrainConfig

ROOMS: dict[str, tuple[Any, Any]] = {
    "prior_train": (prior_room, PriorTrainConfig),
    "decoder_train": (decoder_room, DecoderTrainConfig),
}


def printed(room: str, config: Any, folder: Path, capsys: Any, *words: str) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config, default=str), encoding="utf-8")
    module, config_class = ROOMS[room]
    argv = ["--config", str(path), "--dry-run", *words]
    assert run_command(room, config_class, module.main, check=module.check, plan=module.plan, argv=argv) == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("room", list(ROOMS))
def test_a_dry_run_tells_the_memory(room: str, tiny_world: Any, tmp_path: Path, capsys: Any) -> None:
    config = tiny_world.config(room, tmp_path / "run")
    text = printed(room, config, tmp_path, capsys)
    for word in ("parameters ", "weights ", "gradients ", "optimizer ", "averages ", "peak ", "fits "):
        assert f"\n{word}" in text
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_too_small_is_told_with_what_would_fit(
    tiny_world: Any, tmp_path: Path, capsys: Any
) -> None:
    config = tiny_world.config("prior_train", tmp_path / "run")
    settings = ["--set", "run.device_memory_gb=0.005", "--set", "optim.batch_size=512"]
    text = printed("prior_train", config, tmp_path, capsys, *settings)
    assert "does not fit of 4.8 MB usable on a device of 0.005 GB" in text
    assert "fit with\n  --set " in text


@pytest.mark.parametrize("room", list(ROOMS))
def test_weights_to_start_from_are_not_read(
    room: str, tiny_world: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_world.config(room, tmp_path / "run")
    config["model"] = {"start": str(tiny_world.folder / "runs" / room), "lora": {"rank": 2}}
    monkeypatch.setattr("crest.checkpoint.load_file", lambda _: pytest.fail("weights were read"))
    text = printed(room, config, tmp_path, capsys)
    line = next(line for line in text.splitlines() if line.startswith("parameters"))
    whole, learning = (int(word) for word in line.replace(",", "").split() if word[0].isdigit())
    assert 0 < learning < whole
