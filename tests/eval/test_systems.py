"""What can't be compared is refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crest.errors import DataError
from eval.config import SystemConfig
from eval.systems import System, read_prompts, read_system, read_systems

Draw = Callable[..., Path]


def both(a: Path, b: Path, prompts: Path | None = None) -> list[System]:
    wanted = [SystemConfig(name="tuned", samples=b), SystemConfig(name="stock", samples=a)]
    return read_systems(wanted, "stock", prompts)


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_baseline_comes_first_and_rows_may_come_in_any_order(tmp_path: Path, draw_system: Draw) -> None:
    a, b = draw_system(tmp_path / "a", seeds=2), draw_system(tmp_path / "b", seeds=2, noise=1)
    write_rows(b, rows_of(b)[::-1])
    base, other = both(a, b)
    assert (base.name, other.name) == ("stock", "tuned")
    assert [d.key for d in base.drawings] == [d.key for d in other.drawings]
    assert base.ancestry == {"clip000000000000"}
    assert len(base.prompt_ids) == 12


def test_hash_follows_the_pictures(tmp_path: Path, draw_system: Draw) -> None:
    a = draw_system(tmp_path / "a")
    before = read_system("x", a).hash
    (a / "00000-0.png").write_bytes((a / "00001-0.png").read_bytes())
    assert read_system("x", a).hash != before


def test_manifest_adds_the_parents_of_the_conditioning_clip(tmp_path: Path, draw_system: Draw) -> None:
    a = draw_system(tmp_path / "a")
    manifest = {"kind": "samples", "parents": {"clip": "c1", "clip.start": "c0", "prior": "p1"}}
    (a / "manifest.json").write_text(json.dumps(manifest))
    assert read_system("x", a).ancestry == {"clip000000000000", "c0", "c1"}


def test_missing_pictures_are_counted_and_named(tmp_path: Path, draw_system: Draw) -> None:
    a = draw_system(tmp_path / "a")
    for index in range(5):
        (a / f"{index:05d}-0.png").unlink()
    with pytest.raises(DataError, match=r"a: 5 of 12 pictures are missing \(00000-0.png, .* and 2 more\)"):
        read_system("stock", a)


def test_other_seeds_are_refused(tmp_path: Path, draw_system: Draw) -> None:
    a, b = draw_system(tmp_path / "a", seeds=2), draw_system(tmp_path / "b", seeds=1)
    with pytest.raises(
        DataError, match=r"b: has no picture of prompt p000 with seed 1 \(12 such\), but .*a has; draw"
    ):
        both(a, b)


def test_more_prompts_in_either_system_are_refused(tmp_path: Path, draw_system: Draw) -> None:
    a, b = draw_system(tmp_path / "a", count=10), draw_system(tmp_path / "b", count=12)
    with pytest.raises(DataError, match=r"a: has no picture of prompt p010 .* but .*b has"):
        both(a, b)


def test_another_text_under_the_same_id_is_refused(tmp_path: Path, draw_system: Draw) -> None:
    a, b = draw_system(tmp_path / "a"), draw_system(tmp_path / "b")
    rows = rows_of(b)
    rows[3]["prompt"] = "something else"
    write_rows(b, rows)
    with pytest.raises(DataError, match=r"b: prompt p003 reads 'something else', but in .*a 'A "):
        both(a, b)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": None}, "seed is null, expected a whole number"),
        ({"seed": "7"}, 'seed is "7", expected a whole number'),
        ({"seed": True}, "seed is true, expected a whole number"),
        ({"file": "/etc/passwd"}, "lies outside the folder"),
        ({"file": "../x.png"}, "lies outside the folder"),
    ],
)
def test_bad_rows_are_named_by_line(
    tmp_path: Path, draw_system: Draw, change: dict[str, object], says: str
) -> None:
    a = draw_system(tmp_path / "a")
    rows = rows_of(a)
    rows[1] |= change
    write_rows(a, rows)
    with pytest.raises(DataError, match=r"samples.jsonl:2: .*" + says):
        read_system("stock", a)


def test_missing_field_and_doubled_row_are_named(tmp_path: Path, draw_system: Draw) -> None:
    a = draw_system(tmp_path / "a")
    rows = rows_of(a)
    write_rows(a, [*rows, rows[0]])
    with pytest.raises(DataError, match=r"samples.jsonl:13: prompt p000 with seed 0 is there twice"):
        read_system("stock", a)
    del rows[0]["prompt"]
    write_rows(a, rows)
    with pytest.raises(DataError, match=r"samples.jsonl:1: has no prompt"):
        read_system("stock", a)


def test_absent_folder_and_empty_table_say_what_to_run(tmp_path: Path, draw_system: Draw) -> None:
    with pytest.raises(
        DataError, match="a: does not exist, expected what system stock drew; run python -m crest"
    ):
        read_system("stock", tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b: has no samples.jsonl"):
        read_system("stock", tmp_path / "b")
    (tmp_path / "b" / "samples.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"samples.jsonl: is empty"):
        read_system("stock", tmp_path / "b")


def test_one_prompt_is_too_few(tmp_path: Path, draw_system: Draw) -> None:
    with pytest.raises(DataError, match="holds one prompt, expected at least 2"):
        both(draw_system(tmp_path / "a", count=1), draw_system(tmp_path / "b", count=1))


def test_prompt_list_must_be_drawn_whole_and_alone(tmp_path: Path, draw_system: Draw) -> None:
    a, b = draw_system(tmp_path / "a"), draw_system(tmp_path / "b")
    texts = [str(row["prompt"]) for row in rows_of(a)]
    listed = tmp_path / "prompts.jsonl"
    listed.write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    )
    assert len(both(a, b, listed)) == 2
    plain = tmp_path / "prompts.txt"
    plain.write_text("\n".join([*texts, "one more"]))
    with pytest.raises(DataError, match=r"prompts.txt: 1 of 13 prompts were not drawn \(first: 'one more'\)"):
        both(a, b, plain)
    plain.write_text("\n".join(texts[:-2]))
    with pytest.raises(DataError, match=r"a: 2 prompts are not in .*prompts.txt"):
        both(a, b, plain)


def test_prompt_list_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match=r"p.jsonl:1: has no text"):
        read_prompts(tmp_path / "p.jsonl")
    (tmp_path / "p.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"p.txt: is empty"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(DataError, match="is a folder, expected a prompt list"):
        read_prompts(tmp_path)
    with pytest.raises(DataError, match=r"q.txt: there is no such prompt list"):
        read_prompts(tmp_path / "q.txt")
