"""Captioners before and after fine-tuning, on crests of clubs that were held out."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from caption_train.config import CaptionDataConfig
from caption_train.data import split_records
from crest.checkpoint import export_weights
from crest.models.captioner import CaptionerModel, CaptionerSpec, learn_vocabulary
from crest.records import Record, write_records
from demo.hindsight import CAPTION_ATTRIBUTES, caption_marks, compare_captioners
from demo.league import league_logos


def test_both_captioners_describe_the_held_out_crests_alone(tmp_path: Path) -> None:
    logos = list(league_logos(0, 1, 6))
    (tmp_path / "images").mkdir()
    records = []
    for number, logo in enumerate(logos):
        logo.draw(32).convert("RGB").save(tmp_path / "images" / f"{number}.png")
        address = f"http://h/{logo.file_name}"
        records.append(
            Record(
                f"{number:016x}", f"images/{number}.png", "s", logo.caption, logo.club_id, image_url=address
            )
        )
    write_records(tmp_path / "records.jsonl", records)
    torch.manual_seed(0)
    spec = {"side_px": 16, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    words = learn_vocabulary([logo.caption for logo in logos], 300)
    model = CaptionerModel(CaptionerSpec.model_validate({**spec, **words}))
    card = {"kind": model.kind, "spec": json.loads(json.dumps(model.described())), "parents": {}}
    export_weights(tmp_path / "weights", model, card)

    data = CaptionDataConfig(records=tmp_path, val_share=0.5)
    places = {"stock": str(tmp_path / "weights"), "tuned": str(tmp_path / "weights")}
    figures = compare_captioners(places, data, logos, tmp_path / "rows.jsonl", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    crests = {record.id for record, logo in zip(records, logos, strict=True) if logo.specification}
    held_out = [record.id for record in split_records(records, 0.5)[1] if record.id in crests]
    assert 0 < len(held_out) < len(crests)
    for name in places:
        assert [row["id"] for row in rows if row["captioner"] == name] == held_out
        assert {
            f"captioner.held_out.{name}.{mark}" for mark in (*CAPTION_ATTRIBUTES, "all")
        } <= figures.keys()
        assert 0 <= figures[f"captioner.held_out.{name}.colour_word_f1"] <= 1
    assert figures["captioner.held_out.samples"] == len(held_out)


def test_the_league_s_own_captions_are_all_right() -> None:
    for logo in league_logos(0, 1, 6):
        if logo.specification is not None:
            assert all(caption_marks(logo.caption, logo.specification).values()), logo.caption
