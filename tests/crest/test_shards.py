"""Shards as they are written, and what is found when they are no longer so."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from crest.errors import DataError
from crest.records import Manifest, read_json, write_json
from crest.shards import (
    Problem,
    Sample,
    check_shards,
    look_through,
    png_bytes,
    read_samples,
    write_shards,
)
from crest.tars import TarPart, entry_of, read_tar, write_tar

Picture = Image.Image


def test_samples_come_back_in_order_with_their_words(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = pack(5, dropped={"blank": 2}, details={"seed": 3})
    assert sorted(manifest.files) == [
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    assert (dict(manifest.counts), dict(manifest.dropped)) == (
        {"train": 5, "val": 2, "test": 0},
        {"blank": 2},
    )
    samples = list(read_samples(tmp_path / "data" / "shards", "train"))
    assert [sample.id for sample in samples] == [f"{index:016x}" for index in range(5)]
    assert samples[4].caption == 'A "crest" n° 4'
    assert samples[4].meta == {"group": "club 2"}
    assert list(read_samples(tmp_path / "data" / "shards", "test")) == []


def test_members_are_what_a_stock_webdataset_pipeline_decodes(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(2)
    path = tmp_path / "data" / "shards" / "train-000000.tar"
    with tarfile.open(path) as archive:
        assert archive.getnames() == [
            f"{index:016x}.{kind}" for index in range(2) for kind in ("json", "png", "txt")
        ]
    decoded = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["txt"] for sample in decoded] == ['A "crest" n° 0', 'A "crest" n° 1']
    assert decoded[0]["png"].size == (64, 64)
    assert decoded[0]["json"] == {"group": "club 0"}


def test_the_same_samples_give_the_same_bytes(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    first = pack(5, tmp_path / "one")
    second = pack(5, tmp_path / "two")
    assert first.hash == second.hash
    for name in first.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert pack(4, tmp_path / "three").hash != first.hash


def test_nothing_to_pack_is_refused_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample was left to pack"):
        write_shards(tmp_path / "shards", {"train": []}, samples_per_shard=2, parents={})
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_packing_fewer_shards_removes_those_of_before(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    pack(5)
    pack(2)
    assert len(list((tmp_path / "data" / "shards").glob("*.tar"))) == 2


def test_a_shard_that_fails_half_way_is_not_left(tmp_path: Path, logo: Picture) -> None:
    def samples() -> Any:
        yield Sample("a", png_bytes(logo), "x", {})
        yield Sample("b", b"", None, {})  # type: ignore[arg-type]

    with pytest.raises(AttributeError):
        write_shards(tmp_path, {"train": samples()}, samples_per_shard=2, parents={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mtime", [0, 0.0])
def test_what_workers_write_is_byte_for_byte_what_webdatasets_writer_does(
    tmp_path: Path, mtime: float
) -> None:
    samples = [
        (f"key{n}", {"png": bytes([n]) * (n * 511 % 1300), "txt": "é".encode() * n, "json": b"{}"})
        for n in range(9)
    ]
    with TarPart(tmp_path / "ours.tar") as part:
        for key, members in samples:
            part.add(entry_of(key, members, mtime))
        part.finish()
    write_tar(tmp_path / "theirs.tar", samples, mtime)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    assert list(read_tar(tmp_path / "ours.tar")) == samples


def test_tars_of_other_tools_are_read(tmp_path: Path) -> None:
    """Folders, long names and a member that comes twice, as GNU tar and img2dataset leave them."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("d/1.jpg", "d/1.txt", f"d/{'x' * 150}.jpg", "e/1.jpg", "e/1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    found = [(key, sorted(members)) for key, members in read_tar(tmp_path / "a.tar")]
    assert found == [("d/1", ["jpg", "txt"]), (f"d/{'x' * 150}", ["jpg"]), ("e/1", ["jpg"]), ("e/1", ["jpg"])]


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    """tarfile and webdataset take it for the end of the tar, and the rest is gone without a word."""
    path = tmp_path / "a.tar"
    write_tar(path, [(f"key{n}", {"txt": b"x"}) for n in range(5)])
    content = bytearray(path.read_bytes())
    content[content.index(b"key2.txt") + 124] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2
    keys: list[str] = []
    with pytest.raises(DataError, match=r"a\.tar: is not a whole tar \(damaged header at byte 2048\)"):
        keys += [key for key, _ in read_tar(path)]
    with pytest.raises(DataError, match="is missing"):
        list(read_tar(tmp_path / "none.tar"))


def test_whole_shards_have_no_problem(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    pack(5)
    assert check_shards(tmp_path / "data" / "shards") == []


def reasons(folder: Path) -> set[tuple[str, str, str]]:
    return {(problem.reason, problem.tar, problem.sample) for problem in check_shards(folder)}


def test_any_flipped_bit_is_found(pack: Callable[..., Manifest], tmp_path: Path) -> None:
    pack(2, samples_per_shard=2)
    folder = tmp_path / "data" / "shards"
    path = folder / "train-000000.tar"
    whole = path.read_bytes()
    for place in range(0, len(whole), 397):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        assert ("wrong_hash", path.name, "") in reasons(folder), place
    path.write_bytes(whole)
    assert reasons(folder) == set()


def test_every_kind_of_damage_is_named_with_tar_and_sample(tmp_path: Path, logos: list[Picture]) -> None:
    folder = tmp_path / "shards"

    def samples(*names: str) -> list[Sample]:
        return [Sample(name, png_bytes(logos[n]), name, {}) for n, name in enumerate(names)]

    write_shards(
        folder,
        {"train": samples("a", "b", "c", "d"), "val": samples("e"), "test": samples("f")},
        samples_per_shard=4,
        parents={},
    )
    with_damage = [
        ("a", {"png": b"\x89PNG", "txt": b"a", "json": b"{}"}),
        ("b", {"png": png_bytes(logos[0]), "json": b"{}"}),
        ("c", {"txt": b"c", "json": b"{}"}),
        ("d", {"png": png_bytes(logos[0]), "txt": b"d", "json": b"{"}),
    ]
    write_tar(folder / "train-000000.tar", with_damage)
    (folder / "val-000000.tar").unlink()
    write_tar(folder / "train-000007.tar", with_damage[:1])
    assert reasons(folder) >= {
        ("wrong_hash", "train-000000.tar", ""),
        ("broken_picture", "train-000000.tar", "a"),
        ("no_caption", "train-000000.tar", "b"),
        ("no_picture", "train-000000.tar", "c"),
        ("broken_json", "train-000000.tar", "d"),
        ("missing", "val-000000.tar", ""),
        ("unknown", "train-000007.tar", ""),
    }
    said = [problem.said for problem in check_shards(folder)]
    assert all(one.count(". ") == 0 and ("run python -m" in one or "fetch it again" in one) for one in said)


def test_a_tar_of_fewer_samples_is_found_even_with_its_hash_forged(
    pack: Callable[..., Manifest], tmp_path: Path
) -> None:
    pack(4)
    folder = tmp_path / "data" / "shards"
    path = folder / "train-000000.tar"
    write_tar(path, list(read_tar(path))[:1])
    manifest = read_json(folder / "manifest.json")
    from crest.records import file_hash

    manifest["files"][path.name] = path.stat().st_size
    manifest["details"]["tars"][path.name]["sha256"] = file_hash(path)
    write_json(folder / "manifest.json", manifest)
    assert ("wrong_count", path.name, "") in reasons(folder)


def test_look_through_shows_each_whole_picture_once_and_names_the_others(
    tmp_path: Path, logos: list[Picture]
) -> None:
    samples = [Sample(name, png_bytes(logos[n]), name, {}) for n, name in enumerate("abcd")]
    write_shards(tmp_path, {"train": samples[:3], "val": samples[3:]}, samples_per_shard=2, parents={})
    path = tmp_path / "train-000000.tar"
    members = dict(read_tar(path))
    write_tar(path, [("a", members["a"]), ("b", {**members["b"], "png": members["b"]["png"][:60]})])
    found = list(look_through(tmp_path, lambda tar, sample, picture: (tar, sample.id, picture.size)))
    assert [one for one in found if not isinstance(one, Problem)] == [
        ("train-000000.tar", "a", logos[0].size),
        ("train-000001.tar", "c", logos[2].size),
        ("val-000000.tar", "d", logos[3].size),
    ]
    assert [one.sample for one in found if isinstance(one, Problem) and one.sample] == ["b"]


def test_problems_are_told_in_full() -> None:
    problem = Problem("missing", "a.tar", "", "a.tar: is missing.")
    assert (problem.samples, problem.said) == (1, "a.tar: is missing.")


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
def test_pictures_of_every_kind_are_accepted(tmp_path: Path, logo: Picture, kind: str) -> None:
    stream = io.BytesIO()
    logo.save(stream, {"jpg": "JPEG"}.get(kind, kind.upper()))
    sample = Sample("a", stream.getvalue(), "x", {"group": "g"}, kind)
    write_shards(tmp_path, {"train": [sample]}, samples_per_shard=1, parents={})
    assert list(read_samples(tmp_path, "train")) == [sample]
    assert check_shards(tmp_path) == []
