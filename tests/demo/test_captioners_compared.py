"""Captioners before and after fine-tuning, on crests of clubs that were held out."""

from __future__ import annotations

from pathlib import Path

from crest.records import Record, read_jsonl, write_jsonl, write_records
from demo.hindsight import CAPTION_ATTRIBUTES, caption_marks, compare_captioners
from demo.league import league_logos


def test_what_either_captioner_answered_is_judged_by_what_was_drawn(tmp_path: Path) -> None:
    logos = list(league_logos(0, 1, 6))
    records = [
        Record(f"{number:016x}", "", "s", logo.caption, logo.club_id, image_url=f"http://h/{logo.file_name}")
        for number, logo in enumerate(logos)
    ]
    write_records(tmp_path / "records.jsonl", records)
    answers = [
        {"id": record.id, "human": [record.caption], "stock": "", "tuned": record.caption}
        for record in records[1::2]
    ]
    write_jsonl(tmp_path / "answers.jsonl", answers)
    figures = compare_captioners(tmp_path / "answers.jsonl", tmp_path, logos, tmp_path / "rows.jsonl")

    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    crests = [record.id for record, logo in zip(records, logos, strict=True) if logo.specification]
    answered = [row["id"] for row in answers if row["id"] in crests]
    assert 0 < len(answered) < len(answers)  # wordmarks have no truth
    for name, right in (("stock", 0.0), ("tuned", 1.0)):
        assert [row["id"] for row in rows if row["captioner"] == name] == answered
        for figure in (*CAPTION_ATTRIBUTES, "all", "colour_word_f1"):
            assert figures[f"captioner.held_out.{name}.{figure}"] == right
    assert figures["captioner.held_out.samples"] == len(answered)


def test_answers_of_wordmarks_alone_have_no_figures(tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [])
    write_jsonl(tmp_path / "answers.jsonl", [{"id": "0", "human": ["A."], "stock": "A.", "tuned": "A."}])
    figures = compare_captioners(tmp_path / "answers.jsonl", tmp_path, (), tmp_path / "rows.jsonl")
    assert figures == {"captioner.held_out.samples": 0}


def test_the_league_s_own_captions_are_all_right() -> None:
    for logo in league_logos(0, 1, 6):
        if logo.specification is not None:
            assert all(caption_marks(logo.caption, logo.specification).values()), logo.caption
