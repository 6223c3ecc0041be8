"""Nothing in a file of tensors runs, and none takes memory that the file does not have: a test per attack."""

import functools
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crest.pickle_machine import RefusedError
from crest.pickles import read_pickle
from tests.crest.torch_saved import REBUILD, STORAGE, anonymous_mb, rebuilt, saved, zip_of

ODD = "arguments that torch never writes"


class Calls:
    """Pickles as a call of a function, as hostile files do."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.told = (function, args)

    def __reduce__(self) -> Any:
        return self.told


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda target: Calls(os.system, f"touch '{target}'"), "posix.system"),
        (lambda target: Calls(eval, f"open({str(target)!r}, 'w')"), "__builtin__.eval"),
        (lambda target: Calls(exec, f"open({str(target)!r}, 'w')"), "__builtin__.exec"),
        (lambda target: Calls(open, str(target), "w"), "io.open"),
        (lambda target: Calls(Path.touch, target), "__builtin__.getattr"),
    ],
)
def test_a_call_of_python_is_refused_and_does_not_run(
    tmp_path: Path, zipped: bool, call: Callable[[Path], Calls], named: str
) -> None:
    target = tmp_path / "touched"
    path = saved({"model": {"x": torch.ones(2)}, "y": call(target)}, tmp_path / "x.pt", zipped)
    with pytest.raises(RefusedError, match=rf"x\.pt: names {named}, which no file of tensors needs"):
        read_pickle(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the attack is a real one


HOSTILE: dict[str, tuple[Any, str]] = {
    "torch.load": (Calls(torch.load, "x.pt"), "torch.serialization.load"),
    "torch.hub": (Calls(torch.hub.load, "owner/name", "model"), "torch.hub.load"),
    "torch.jit": (Calls(torch.jit.load, "x.pt"), "torch.jit._serialization.load"),
    "a part of a call": (functools.partial(os.system, "true"), "functools.partial"),
    "classes": (Calls(torch.UntypedStorage, 1 << 40), "torch.storage.UntypedStorage"),
    "a module": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "many bytes": (Calls(bytearray, 1 << 40), "__builtin__.bytearray"),
    "a large tensor": (Calls(torch.Tensor, 1 << 40), "torch.Tensor"),
    "a decoder": (Calls(__import__("_codecs").decode, b"x", "zip"), "_codecs.decode"),
    "a set": ({1, 2}, "__builtin__.set"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_no_part_of_a_tensor_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value, named = HOSTILE[name]
    with pytest.raises(RefusedError, match=rf"names {named}, which"):
        read_pickle(saved({"y": value}, tmp_path / "x.pt"))


def number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + content


@pytest.mark.parametrize(
    ("data", "says"),
    [
        # admitted functions with arguments that torch never writes
        (rebuilt(b"K\x00", number(5) + b"\x85", b"K\x01\x85"), "declares a tensor of 5 numbers in a"),
        (rebuilt(b"K\x03", number(2) + b"\x85", b"K\x01\x85"), "declares a tensor of 2 numbers"),
        (rebuilt(b"K\x00", number(1 << 40) + b"\x85", b"K\x00\x85"), r"a tensor of 1\.1e\+12 numbers"),
        (rebuilt(b"K\x00", number(2) + b"\x85", number(1 << 40) + b"\x85"), "declares a tensor of 2 numbers"),
        (rebuilt(number(-1), b"K\x01\x85", b"K\x01\x85"), ODD),
        (rebuilt(b"K\x00", number(-4) + b"\x85", b"K\x01\x85"), ODD),
        (rebuilt(b"K\x00", b"K\x02\x85", number(-1) + b"\x85"), ODD),
        (rebuilt(b"K\x00", b"K\x02\x85", b"K\x01K\x01\x86"), ODD),
        (rebuilt(b"K\x00", b"X\x01\x00\x00\x00a", b"K\x01\x85"), ODD),
        (rebuilt(b"K\x00", b"K\x01\x85", b"K\x01\x85", b"X\x01\x00\x00\x00a"), ODD),
        (b"\x80\x02}K\x01" + REBUILD + b")Rs.", ODD),
        (b"\x80\x02}K\x01" + REBUILD + b"}Rs.", "calls a Name on a dict"),
        (b"\x80\x02}K\x01ccollections\nOrderedDict\nK\x07\x85Rs.", ODD),
        (b"\x80\x02}K\x01ccollections\ndefaultdict\n" + REBUILD + b"\x85Rs.", ODD),
        (b"\x80\x02}K\x01ctorch\nFloatStorage\n" + number(1 << 40) + b"\x85Rs.", r"calls torch\.Float"),
        # a call of what is no function, and of what another call gave
        (b"\x80\x02}K\x01X\x01\x00\x00\x00a)Rs.", "calls a str on a tuple"),
        (b"\x80\x02}K\x01ccollections\nOrderedDict\n)R)Rs.", "calls a dict on a tuple"),
        (b"\x80\x02}K\x01cpackaging.version\nVersion\n)R)Rs.", "calls a Inert on a tuple"),
        # names by another road: protocol 4's, dotted ones, two of them in one
        (b"\x80\x04}K\x01\x8c\x02os\x8c\x06system\x93)Rs.", r"names os\.system"),
        (
            b"\x80\x04}K\x01\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93s.",
            r"names torch\._utils\._rebuild_tensor_v2\.__globals__",
        ),
        (b"\x80\x02}K\x01ccollections.OrderedDict\n__init__\n)Rs.", r"OrderedDict\.__init__, which"),
        (b"\x80\x04}K\x01K\x01K\x02\x93s.", "names"),
        # changing the inside of what was built
        (rebuilt(b"K\x00", b"K\x01\x85", b"K\x01\x85")[:-2] + b"}bs.", "the inside of a PlannedTensor"),
        (b"\x80\x02}K\x01ccollections\nOrderedDict\n}bs.", "changes the inside of a Name"),
        (b"\x80\x02}K\x01X\x01\x00\x00\x00a}bs.", "changes the inside of a str"),
        (b"\x80\x02}K\x01ccollections\nOrderedDict\n(K\x01K\x02us.", "puts named entries into a Name"),
        (b"\x80\x02}K\x01}K\x01as.", "appends to a dict"),
        # steps that torch's files do not take
        (b"\x80\x02(ios\nsystem\n.", "takes the step INST"),
        (b"\x80\x02(cpackaging.version\nVersion\no.", "takes the step OBJ"),
        (b"\x80\x02\x82\x01.", "takes the step EXT1"),
        (b"\x80\x02cpackaging.version\nVersion\n)}\x92.", "takes the step NEWOBJ_EX"),
        (b"\x80\x02}2.", "takes the step DUP"),
        (b"\x80\x02P1\n.", "takes the step PERSID"),
        # things that are kept outside
        (b"\x80\x02(X\x06\x00\x00\x00moduleK\x01K\x02K\x03K\x04tQ.", "something that is kept outside"),
        (b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.", "a storage as torch never does"),
        (b"\x80\x02K\x07Q.", "something that is kept outside"),
    ],
)  # fmt: skip
def test_a_surprising_step_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        read_pickle(zip_of(data, tmp_path / "x.pt", {"0": bytes(16)}))


def test_the_well_formed_twin_of_these_is_read(tmp_path: Path) -> None:
    content = struct.pack("<4f", 1, 2, 3, 4)
    path = zip_of(rebuilt(b"K\x01", b"K\x03\x85", b"K\x01\x85"), tmp_path / "x.pt", {"0": content})
    assert read_pickle(path)[1].tolist() == [2, 3, 4]


def doubled(times: int) -> bytes:
    """((…), (…)), each the same tuple: a few bytes that would print as 2 ** times values."""
    return b"\x80\x02}K\x01]q\x00" + b"h\x00\x86q\x00" * times + b"s."


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (doubled(40), "tells more than 4000000 values"),
        (b"\x80\x02}K\x01]q\x00h\x00as.", "nested deeper than 64 levels or in itself"),
        (b"\x80\x02}K\x01" + b"](" * 100 + b"e" * 100 + b"s.", "nested deeper than 64 levels"),
        (b"\x80\x02" + b"N" * 2_000_001 + b".", "takes more than 2000000 steps"),
    ],
)
def test_a_bomb_of_values_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        read_pickle(zip_of(data, tmp_path / "x.pt"))


def test_a_large_number_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    """Python's own unpickler makes room for as many entries as the number says."""
    path = zip_of(b"\x80\x02}r\xff\xff\xff\xff.", tmp_path / "x.pt")
    before = anonymous_mb()
    assert read_pickle(path) == {}
    assert anonymous_mb() - before < 16


def test_many_tensors_over_one_storage_are_refused(tmp_path: Path) -> None:
    """Each is as large as the file, and all together are what a copy would take."""
    one = (
        REBUILD
        + b"("
        + STORAGE.replace(b"K\x04tQ", b"J\x00\x10\x00\x00tQ")
        + b"K\x00J\x00\x10\x00\x00\x85K\x01\x85\x89)tR"
    )
    data = b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", at) + one for at in range(50)) + b"u."
    with pytest.raises(RefusedError, match="more than four times as many numbers as it holds"):
        read_pickle(zip_of(data, tmp_path / "x.pt", {"0": bytes(4 * 4096)}))


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", rebuilt(b"K\x00", b"K\x03\x85", b"K\x01\x85"))
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(RefusedError, match=r"holds archive/\S+ compressed"):
        read_pickle(path)


def test_a_huge_description_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive, archive.open("archive/data.pkl", "w") as stream:
        for _ in range(33):
            stream.write(bytes(1 << 20))
    with pytest.raises(RefusedError, match="more than 32 MiB"):
        read_pickle(path)


def test_a_pickle_of_the_older_form_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"few")
    with pytest.raises(RefusedError, match="asks for 1099511627776 bytes at once"):
        read_pickle(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", b"\x80\x02}.")
    with pytest.raises(RefusedError, match="is a TorchScript program"):
        read_pickle(path)
