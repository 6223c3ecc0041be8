"""What ships in crest/stock: small enough, described by its own figures, and made of each other."""

from __future__ import annotations

from crest.records import file_hash, read_json
from demo.model_card import model_card
from demo.stock import ROOM_OF, STOCK


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
