import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crest import records
from crest.errors import DataError
from crest.records import Caption, Manifest, Record


def record(identity: str = "00ff", caption: str | None = "A red shield with a white star.") -> Record:
    return Record(id=identity, image=f"images/{identity}.png", source="league", caption=caption, group="club")


def test_id_is_a_hash_of_the_bytes_alone() -> None:
    assert records.content_id(b"") == "e3b0c44298fc1c14"
    assert records.content_id(b"a") == records.content_id(b"a") != records.content_id(b"b")


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert records.hash_of({"a": 1, "b": 2}) == records.hash_of({"b": 2, "a": 1})
    assert records.hash_of({"a": 1}) != records.hash_of({"a": 2})
    assert records.hash_of("a", "b") != records.hash_of("ab")


def test_file_hash_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert records.file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_records_come_back_as_written(tmp_path: Path) -> None:
    written = [record("00ff"), record("11aa", caption=None), record("22bb", caption='"Zürich" – ★\u2028 end')]
    assert records.write_records(tmp_path / "records.jsonl", written) == 3
    assert records.read_records(tmp_path / "records.jsonl") == written


def test_captions_come_back_as_written(tmp_path: Path) -> None:
    written = [Caption("00ff", "A star.", "human"), Caption("11aa", "A lion.", "model", "abcd")]
    records.write_captions(tmp_path / "captions.jsonl", written)
    assert records.read_captions(tmp_path / "captions.jsonl") == written


def test_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n\n{"id": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: is not JSON"):
        list(records.read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="holds a list, expected an object"):
        list(records.read_jsonl(path))


def test_line_with_a_foreign_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "00ff", "colour": "red"}\n')
    with pytest.raises(DataError, match="a line is no Record"):
        records.read_records(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"id": "\xff"}'])
def test_file_that_is_no_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        list(records.read_jsonl(path))
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        records.read_json(path)


def test_missing_file_names_itself(tmp_path: Path) -> None:
    for read in (records.read_json, records.read_records, records.read_captions):
        with pytest.raises(DataError, match=r"none\.jsonl: there is no such file"):
            read(tmp_path / "none.jsonl")


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records.write_records(path, [record()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.write_bytes(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["records.jsonl"]


def test_write_goes_through_a_part_beside_the_file(tmp_path: Path) -> None:
    # A folder where the .part must go makes the write fail before the file itself is touched.
    path = tmp_path / "deep" / "file.txt"
    records.write_text(path, "old")
    path.with_name("file.txt.part").mkdir()
    with pytest.raises(OSError, match=r"file\.txt\.part"):
        records.write_text(path, "new")
    assert path.read_text() == "old"


def finished(folder: Path) -> Manifest:
    folder.mkdir()
    (folder / "train-000000.tar").write_bytes(b"0" * 100)
    manifest = Manifest(kind="shards", hash="abcd", counts={"train": 1}, files={"train-000000.tar": 100})
    records.write_manifest(folder, manifest)
    return manifest


def test_manifest_comes_back_as_written(tmp_path: Path) -> None:
    manifest = finished(tmp_path / "shards")
    assert records.read_manifest(tmp_path / "shards", "shards", "python -m scraper.pack") == manifest


def test_shard_cut_in_half_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "shards")
    (tmp_path / "shards" / "train-000000.tar").write_bytes(b"0" * 50)
    with pytest.raises(
        DataError, match=r"train-000000\.tar: is 50 bytes, expected 100 .* run python -m scraper\.pack"
    ):
        records.read_manifest(tmp_path / "shards", "shards", "python -m scraper.pack")


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "shards")
    (tmp_path / "shards" / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: is missing, expected 100 bytes"):
        records.read_manifest(tmp_path / "shards", "shards", "python -m scraper.pack")


def test_unfinished_folder_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(DataError, match=r"half: is not finished .* run make shards first"):
        records.read_manifest(tmp_path / "half", "shards", "make shards")
    with pytest.raises(DataError, match="none: does not exist"):
        records.read_manifest(tmp_path / "none", "shards", "make shards")


def test_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "shards")
    with pytest.raises(DataError, match="holds shards, expected embeddings"):
        records.read_manifest(tmp_path / "shards", "embeddings", "python -m clip_train.embed")


@pytest.mark.parametrize(
    "text", ["[]", '"done"', '{"kind": "shards"}', '{"kind": "shards", "hash": "a", "size": 3}']
)
def test_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        records.read_manifest(tmp_path, "shards", "make shards")


def test_rows_are_one_line_each(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a\nb"}, {"text": "é"}])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a\nb", "é"]
    assert "é" in lines[1]


def test_rows_are_written_as_they_come_and_a_failure_among_them_leaves_the_old_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "new" * 100_000}
        assert part.stat().st_size > 0  # not held until the last
        raise OSError(28, "No space left on device")

    path, part = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    records.write_jsonl(path, [{"text": "old"}])
    with pytest.raises(OSError, match="No space") as caught:
        records.write_jsonl(path, rows())
    assert caught.value.filename == str(path)
    assert path.read_text() == '{"text": "old"}\n'
    assert not part.exists()
