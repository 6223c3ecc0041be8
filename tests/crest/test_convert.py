"""Published files of every form become weights of ours: once, whole, with every tensor taken or counted."""

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor

import crest.hub_files
from crest.checkpoint import locate_weights
from crest.convert import convert_place, main
from crest.errors import FetchError, WeightsError
from crest.hub_files import PublishedFile, conversion_folder
from crest.models.families import load_decoder_family, load_prior_family
from crest.models.published_containers import AS_SAVED, AVERAGED, NOT_AVERAGED, choose
from tests.crest.hub_server import HubServer
from tests.crest.models.test_published import state_dict
from tests.crest.torch_saved import saved
from tests.golden.published_small import DECODERS, PRIOR


def state(name: str, factor: float = 1) -> dict[str, Tensor]:
    """A state dict of a small published model, under its published names."""
    return OrderedDict(
        (key, tensor if "noise_sched" in key else tensor * factor) for key, tensor in state_dict(name).items()
    )


def config(tmp_path: Path, values: dict[str, Any]) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def converted(path: Path, *args: Any, **kwargs: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what the card says of where they are from."""
    (found,) = convert_place(str(path), *args, trained=False, **kwargs)
    card = json.loads((found.parent / "weights.json").read_text(encoding="utf-8"))
    return load_file(found), card["published"]


OURS = "net.causal_transformer.layers.0.0.to_q.weight"
EMBED = "net.null_text_encodings"


def test_a_file_with_its_version_and_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = {"version": Version("1.1.0"), "config": PRIOR, "model": state("prior")}
    path = saved(container, tmp_path / "latest.pth")
    tensors, told = converted(path)
    assert torch.equal(tensors[EMBED], state("prior")["net.null_text_embed"])
    assert (told["release"], told["weights"]) == ("1.1.0", AS_SAVED)
    assert told["file"]["place"] == str(path)
    assert told["file"]["size_bytes"] == path.stat().st_size
    printed = capsys.readouterr().out
    assert f"SHA-256 {told['file']['sha256']}, which nobody told beforehand" in printed
    assert "weights: as they were saved, of dalle2-pytorch 1.1.0" in printed
    assert load_prior_family(str(path))[2]["published"] == told


def test_a_raw_state_dict_with_a_clip_in_half_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As laion's prior: the prior in fp32, OpenAI's CLIP in mixed precision beside it."""
    clip = {f"clip.visual.{number}": torch.randn(4, 4).half() for number in range(7)}
    clip["clip.logit_scale"] = torch.tensor(4.6)
    path = saved(OrderedDict({**state("prior"), **clip}), tmp_path / "latest.pth")
    tensors, told = converted(path, config(tmp_path, PRIOR))
    assert not any(name.startswith("clip") for name in tensors)
    assert tensors[OURS].dtype == torch.float32
    (reason,) = [reason for reason in told["dropped"] if reason.startswith("clip")]
    assert told["dropped"][reason] == 8
    assert f"left out: 8 of {reason}" in capsys.readouterr().out
    taken = len(tensors) - len(told["added"])
    assert taken + sum(told["dropped"].values()) == len(state("prior")) + 8


@pytest.mark.parametrize("begun", [True, False])
def test_of_a_training_checkpoint_of_a_prior_the_average_is_taken(tmp_path: Path, begun: bool) -> None:
    last, average = state("prior"), state("prior", 2)
    container = {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0]}]},
        "scheduler": None,
        "warmup_scheduler": None,
        "model": last,
        "version": Version("1.1.0"),
        "step": torch.tensor([9]),
        "ema": {
            "initted": torch.tensor([begun]),
            "step": torch.tensor([9]),
            **{f"online_model.{name}": tensor for name, tensor in last.items()},
            **{f"ema_model.{name}": tensor for name, tensor in average.items()},
        },
        "ema_model": average,
    }
    tensors, told = converted(saved(container, tmp_path / "x.pth"), config(tmp_path, PRIOR))
    assert torch.equal(tensors[EMBED], (average if begun else last)["net.null_text_embed"])
    assert told["weights"] == (AVERAGED if begun else NOT_AVERAGED)
    count = len(last)
    assert told["dropped"]["copies and counters of the average"] == 2 * count + 2
    assert told["dropped"]["weights before averaging" if begun else "an average that had not begun"] == count
    assert told["dropped"]["optimizer and schedules of training"] == 3
    assert told["dropped"]["step, no part of a model"] == 1


def test_of_a_training_checkpoint_of_a_decoder_each_u_net_has_an_average_or_not(tmp_path: Path) -> None:
    """A run trains one U-Net of a cascade; the average of the other one is what it was made with."""
    names = {
        name.partition(".")[2].partition(".")[2]: name for name in state("upsampler") if "unets.1" in name
    }
    both = {f"unets.{unet}.{short}": torch.full((2,), unet + 1.0) for unet in (0, 1) for short in names}
    container: dict[str, Any] = {
        "model": {**both, "noise_schedulers.0.betas": torch.zeros(2)},
        "version": "1.1.0",
        "steps": torch.tensor([0, 9]),
        "optim0": None,
        "sched1": {"last_epoch": 3},
        "ema": {},
    }
    for unet in (0, 1):
        container["ema"][f"{unet}.initted"] = torch.tensor([unet == 1])
        container["ema"][f"{unet}.step"] = torch.tensor([9 * unet])
        for short in names:
            container["ema"][f"{unet}.online_model.{short}"] = torch.full((2,), 7.0)
            container["ema"][f"{unet}.ema_model.{short}"] = torch.full((2,), -1.0)
    chosen = choose(container, "x.pth")
    assert chosen.unets == [1, 2]
    assert chosen.which == AVERAGED
    assert {float(chosen.tensors[f"unets.0.{short}"][0]) for short in names} == {1.0}
    assert {float(chosen.tensors[f"unets.1.{short}"][0]) for short in names} == {-1.0}
    assert "noise_schedulers.0.betas" in chosen.tensors
    assert chosen.dropped == {
        "an average that had not begun": len(names),
        "weights before averaging": len(names),
        "copies and counters of the average": 2 * len(names) + 4,
        "steps, no part of a model": 1,
        "optimizer and schedules of training": 2,
    }


@pytest.mark.parametrize("container", [{}, {"model": {}}, {"epoch": 3}, {"model": {"epoch": 3}}])
def test_what_holds_no_weights_is_refused(container: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"x\.pth: found .*, expected a state dict"):
        choose(container, "x.pth")


def test_a_second_time_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved({"config": PRIOR, "model": state("prior")}, tmp_path / "latest.pth")
    (first,) = convert_place(str(path), trained=False)
    made = first.stat().st_mtime_ns
    capsys.readouterr()
    assert convert_place(str(path)) == [first]
    assert first.stat().st_mtime_ns == made
    assert capsys.readouterr().out == f"{first}: was converted before; nothing to do\n"
    # another file under the same name, or another config, is not what lies there
    with pytest.raises(WeightsError, match="of another file or with another config"):
        convert_place(str(path), config(tmp_path, PRIOR), trained=False)
    saved({"config": PRIOR, "model": state("prior", 3)}, path)
    with pytest.raises(WeightsError, match="name another --out, or remove it"):
        convert_place(str(path), trained=False)


def test_a_conversion_that_was_killed_is_done_again(tmp_path: Path) -> None:
    path = saved({"config": PRIOR, "model": state("prior")}, tmp_path / "latest.pth")
    (weights,) = convert_place(str(path), trained=False)
    whole = weights.read_bytes()
    weights.with_suffix(".json").unlink()  # the card comes last
    weights.write_bytes(b"half")
    with pytest.raises(WeightsError, match="was not converted yet"):
        locate_weights(str(path), "prior")
    convert_place(str(path), trained=False)
    assert weights.read_bytes() == whole


def test_weights_of_a_run_are_not_overwritten(tmp_path: Path) -> None:
    path = saved({"config": PRIOR, "model": state("prior")}, tmp_path / "latest.pth")
    run = tmp_path / "run"
    run.mkdir()
    (run / "weights.safetensors").write_bytes(b"dear")
    (run / "weights.json").write_text('{"kind": "prior"}')
    with pytest.raises(WeightsError, match="holds weights of another prior"):
        convert_place(str(path), out=run, trained=False)
    assert (run / "weights.safetensors").read_bytes() == b"dear"


def test_random_weights_are_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved({"config": PRIOR, "model": state("prior")}, tmp_path / "latest.pth")
    assert main([str(path)]) == 1
    assert "does not look at what it is shown" in capsys.readouterr().err
    assert not conversion_folder(str(path)).exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    folder = tmp_path / "repository"
    folder.mkdir()
    saved(state("prior"), folder / "latest.pth")
    saved(state("upsampler"), folder / "upsampler.pth")
    (folder / "config.json").write_text(json.dumps(PRIOR))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    known = {"club/dalle2:latest.pth": PublishedFile("club/dalle2:config.json")}
    monkeypatch.setattr(crest.hub_files, "PUBLISHED", known)
    monkeypatch.setattr("crest.convert.PUBLISHED", known)
    with HubServer({"club/dalle2": folder}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_name_is_all_that_is_needed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "club/dalle2:latest.pth"
    with pytest.raises(
        WeightsError, match=rf"was not converted yet, .* python -m crest\.convert {place} first"
    ):
        load_prior_family(place)
    (path,) = convert_place(place, trained=False)
    assert path.parent.parent == tmp_path / "home" / "crest" / "converted"
    assert "as the hub told" in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prior, digest, card = load_prior_family(place)
    assert prior.spec.image_embed_dim == 32
    assert card["sha256"].startswith(digest)
    assert card["published"]["file"]["config"] == "club/dalle2:config.json"
    for kept in (tmp_path / "home" / "crest" / "files").rglob("latest.pth*"):
        kept.unlink()  # the download is not needed any more
    assert convert_place(place) == [path]


def test_a_u_net_of_a_place(hub: HubServer, tmp_path: Path) -> None:
    values, number = DECODERS["upsampler"]
    told = config(tmp_path, values)
    place = "club/dalle2:upsampler.pth"
    (path,) = convert_place(f"{place}#{number}", told, trained=False)
    assert path.parent.name == "unet_2"
    assert locate_weights(f"{place}#2", "decoder") == path
    assert load_decoder_family(f"{place}#2")[0].spec.unet_number == 2
    with pytest.raises(WeightsError, match=rf"expected one of them for a decoder; name {place}#2"):
        locate_weights(place, "decoder")
    with pytest.raises(WeightsError, match="was not converted yet"):
        locate_weights(f"{place}#1", "decoder")


def test_offline_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["laion/DALLE2-PyTorch:prior/latest.pth"]) == 1
    assert "http://127.0.0.1:9 can't be reached" in capsys.readouterr().err
    with pytest.raises(FetchError, match="there is no such file"):
        convert_place(str(tmp_path / "none.pth"))


def test_a_path_of_a_published_file_says_how_to_convert_it(tmp_path: Path) -> None:
    path = saved(state("prior"), tmp_path / "latest.pth")
    with pytest.raises(WeightsError, match=rf"run python -m crest\.convert {path} first"):
        locate_weights(str(path), "prior")
