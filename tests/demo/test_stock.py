"""What ships in crest/stock: small enough, described by its own figures, and made of each other."""

from __future__ import annotations

from pathlib import Path

from crest.records import file_hash, read_json, read_manifest
from crest.shards import read_samples
from demo.model_card import model_card
from demo.plain import described_logo, plain_logo
from demo.stock import ROOM_OF, STOCK, pack, retell


def test_the_card_is_what_the_weights_say() -> None:
    assert (STOCK / "README.md").read_text(encoding="utf-8") == model_card(STOCK)


def test_all_of_it_stays_below_forty_megabytes() -> None:
    assert sum(path.stat().st_size for path in STOCK.rglob("*") if path.is_file()) < 40e6


def test_weights_are_those_of_their_card_and_name_the_clip_that_ships() -> None:
    cards = {name: read_json(STOCK / name / "weights.json") for name in ROOM_OF}
    for name, card in cards.items():
        assert card["sha256"] == file_hash(STOCK / name / "weights.safetensors"), name
    for name in ("prior", "decoder_64"):
        assert cards[name]["parents"]["clip"] == cards["clip"]["sha256"][:16]


def test_a_world_is_told_anew_over_the_same_pictures(tmp_path: Path) -> None:
    plain, described = tmp_path / "plain", tmp_path / "described"
    pack(plain, 1, 160, plain_logo)
    retell(described, plain, 1, described_logo)
    assert read_manifest(described, "shards", "").parents == {
        "pictures": read_manifest(plain, "shards", "").hash
    }
    for split, first in (("val", 0), ("train", 2)):
        for index, (before, after) in enumerate(
            zip(read_samples(plain, split), read_samples(described, split), strict=True), first
        ):
            assert (before.id, before.image) == (after.id, after.image)
            assert after.caption in described_logo(1, index).captions
