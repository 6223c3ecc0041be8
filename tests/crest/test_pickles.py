"""Tensors come out of torch's files as torch reads them, and damaged files are told."""

import collections
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from crest.errors import WeightsError
from crest.pickle_machine import Inert
from crest.pickles import read_pickle
from tests.crest.torch_saved import anonymous_mb, rebuilt, saved, zip_of

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_comes_back_as_it_was(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES}
    many = torch.randn(6, 4)
    tensors |= {
        "transposed": many.t(), "a row": many[2], "every second": many[::2, 1:3], "empty": torch.empty(0, 7),
        "one": torch.tensor(3.5),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "weight": torch.nn.Parameter(torch.randn(2)),
    }  # fmt: skip
    back = read_pickle(saved(tensors, tmp_path / "x.pt", zipped))
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name
        assert not back[name].requires_grad


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_stands_beside_tensors_comes_back(tmp_path: Path, zipped: bool, protocol: int) -> None:
    config: dict[Any, Any] = {"a": [1, -2, 2**40, 0.1, None, True, "Zeichen: é"], "b": ({"c": ()},), 3: "x"}
    if protocol > 2:
        config["bytes"] = b"bytes"
    value = {"version": Version("1.1.0"), "config": config, "model": collections.OrderedDict(x=torch.ones(2))}
    path = tmp_path / "x.pt"
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    back = read_pickle(path)
    assert back["version"] == "1.1.0"
    assert back["config"] == config
    assert torch.equal(back["model"]["x"], torch.ones(2))


def test_a_tensor_that_is_named_twice_is_one_tensor(tmp_path: Path) -> None:
    tied = torch.randn(3)
    back = read_pickle(saved({"a": tied, "b": tied, "tail": tied[1:]}, tmp_path / "x.pt"))
    assert back["a"].data_ptr() == back["b"].data_ptr()
    assert back["tail"].data_ptr() == back["a"].data_ptr() + 4


def test_writing_to_a_tensor_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = saved({"x": torch.zeros(100)}, tmp_path / "x.pt")
    before = path.read_bytes()
    back = read_pickle(path)
    back["x"] += 1
    assert back["x"].sum() == 100
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = saved({f"x{number}": torch.ones(1 << 21) for number in range(8)}, tmp_path / "x.pt")  # 64 MB
    before = anonymous_mb()
    back = read_pickle(path)
    assert sum(float(tensor.sum()) for tensor in back.values()) == 8 << 21  # every page was looked at
    assert anonymous_mb() - before < 16


def test_storages_beyond_one_map_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import crest.pickles

    monkeypatch.setattr(crest.pickles, "_MAPPED_BYTES", 20_000)
    tensors = {f"x{number}": torch.randn(1000 * number) for number in range(9)}
    back = read_pickle(saved(tensors, tmp_path / "x.pt"))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_a_training_checkpoint_of_a_prior_is_read_with_its_schedules_as_words(tmp_path: Path) -> None:
    """What DiffusionPriorTrainer.save leaves: the whole AdamW stands in its LinearWarmup."""
    import pytorch_warmup

    weight = torch.nn.Parameter(torch.randn(3))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.randn(3), "exp_avg_sq": torch.rand(3)}
    adam = torch.optim.AdamW.__new__(torch.optim.AdamW)  # its __init__ imports torch's compiler, for seconds
    adam.defaults, adam.state = {"lr": 0.1}, collections.defaultdict(dict, {weight: moments})
    adam.param_groups = [{"params": [weight], "lr": 0.1, "betas": (0.9, 0.999)}]
    value = {
        "optimizer": {"state": {0: moments}, "param_groups": [{"params": [0], "lr": 0.1}]},
        "warmup_scheduler": pytorch_warmup.LinearWarmup(adam, warmup_period=5),
        "model": {"weight": weight.data},
        "version": Version("1.1.0"),
        "step": torch.tensor([7]),
    }
    for zipped in (True, False):
        back = read_pickle(saved(value, tmp_path / "x.pt", zipped))
        assert torch.equal(back["model"]["weight"], weight)
        assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], moments["exp_avg"])
        assert int(back["step"]) == 7
        warmup = back["warmup_scheduler"]
        assert isinstance(warmup, Inert)
        assert warmup.name == "pytorch_warmup.base LinearWarmup"


OLD_VERSION = (
    # packaging before 26: __dict__ of a namedtuple and a key with infinities
    b"\x80\x02}X\x07\x00\x00\x00versioncpackaging.version\nVersion\n)\x81}(X\x08\x00\x00\x00_version"
    b"cpackaging.version\n_Version\n(K\x00K\x01K\x02K\x03\x87NNNNt\x81"
    b"X\x04\x00\x00\x00_key(K\x00cpackaging._structures\nInfinityType\n)\x81}bt"
    b"X\x04\x00\x00\x00_strX\x05\x00\x00\x001.2.3ubs."
)


def test_a_version_of_older_packaging_is_told(tmp_path: Path) -> None:
    assert read_pickle(zip_of(OLD_VERSION, tmp_path / "x.pt")) == {"version": "1.2.3"}


# --- damage ---


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, zipped: bool, keep: float) -> None:
    path = saved({"x": torch.randn(1000), "y": torch.randn(10)}, tmp_path / "x.pt", zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep != 1 else 1])
    with pytest.raises(WeightsError, match=r"x\.pt: .*copy it again|x\.pt: .*copy or download it again"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("size", "says"), [(12, "found 12 bytes, expected 16"), (20, "found 20 bytes"), (None, "found nothing")]
)
def test_a_storage_of_another_size_is_refused(tmp_path: Path, size: int | None, says: str) -> None:
    storages = {} if size is None else {"0": bytes(size)}
    path = zip_of(rebuilt(b"K\x00", b"K\x03\x85", b"K\x01\x85"), tmp_path / "x.pt", storages)
    with pytest.raises(WeightsError, match=says):
        read_pickle(path)


def test_what_is_no_file_of_tensors_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content, says in (
        (b"<html>not found</html>", "none of torch.save's"),
        (pickle.dumps({"x": 1}, 2), "none of torch.save's|not a whole file"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=says):
            read_pickle(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO(b""))
    with pytest.raises(WeightsError, match=r"a tar of torch before 0\.2"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(WeightsError, match=r"is a zip file but none of torch\.save"):
        read_pickle(path)
    with pytest.raises(WeightsError, match="holds a list, expected named tensors"):
        read_pickle(saved([torch.ones(1)], path))
    with pytest.raises(WeightsError, match="there is no such file"):
        read_pickle(tmp_path / "none.pt")


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(WeightsError, match="big-endian"):
        read_pickle(path)
