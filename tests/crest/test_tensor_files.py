"""Files of tensors are the library's byte for byte, and cost no copy."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from crest.tensor_files import DTYPES, write_tensors


@pytest.mark.parametrize("metadata", [None, {"kind": "größer"}])
def test_a_file_is_the_librarys_byte_for_byte(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    tensors = {f"{rank}.ä{dtype}": torch.ones(rank, 3).to(dtype) for rank, dtype in enumerate(DTYPES, 1)}
    tensors |= {"scalar": torch.tensor(5.0), "empty": torch.zeros(0, 3)}
    tensors |= {"b": torch.rand(2), "a": torch.rand(3)}
    write_tensors(tmp_path / "ours.safetensors", tensors, metadata)
    assert (tmp_path / "ours.safetensors").read_bytes() == save(tensors, metadata)


def test_strided_and_shared_tensors_come_back_as_numbers(tmp_path: Path) -> None:
    image = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    tensors = {"image": image, "same": image, "part": image[:, 1], "turned": torch.rand(3, 2).T}
    write_tensors(tmp_path / "some.safetensors", tensors)
    back = load_file(tmp_path / "some.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_writing_makes_no_copy(tmp_path: Path) -> None:
    tensors = {str(number): torch.rand(1 << 18) for number in range(8)}
    tracemalloc.start()
    write_tensors(tmp_path / "large.safetensors", tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tensors["0"].nbytes / 2
