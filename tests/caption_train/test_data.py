"""What the captioner learns from: whole descriptions, whole clubs held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from caption_train.config import CaptionDataConfig
from caption_train.data import is_whole, read_captioned
from crest.errors import DataError
from crest.records import Record, write_records


def record(index: int, caption: str | None, group: str) -> Record:
    return Record(f"{index:016x}", f"images/{index:02d}.png", "test", caption, group)


@pytest.mark.parametrize(
    ("caption", "whole"),
    [
        ("A red crest.", True),
        ("A red crest with a …", False),
        ("A red crest with... ", False),
        ("", False),
        (None, False),
    ],
)
def test_a_cut_or_missing_description_is_not_learned(caption: str | None, whole: bool) -> None:
    assert is_whole(record(0, caption, "club")) is whole


@pytest.fixture
def scraped(tmp_path: Path, logos: list[Image.Image]) -> Callable[..., Path]:
    """Call with rows of (caption, group): a scraper's data folder."""

    def write(rows: list[tuple[str | None, str]]) -> Path:
        (tmp_path / "images").mkdir()
        for index, logo in enumerate(logos[: len(rows)]):
            logo.save(tmp_path / "images" / f"{index:02d}.png")
        write_records(tmp_path / "records.jsonl", [record(i, *row) for i, row in enumerate(rows)])
        return tmp_path

    return write


def test_a_club_is_learned_or_held_out_with_all_its_eras(scraped: Callable[..., Path]) -> None:
    folder = scraped([(f"era {index % 4} of club {index // 4}", f"club {index // 4}") for index in range(16)])
    train, val, _ = read_captioned(CaptionDataConfig(records=folder, val_share=0.4), 8)
    assert len(train.captions) + len(val.captions) == 16
    assert len(train.captions) % 4 == len(val.captions) % 4 == 0
    clubs = [{caption.split()[-1] for caption in side.captions} for side in (train, val)]
    assert not clubs[0] & clubs[1]
    assert train.pixels.shape == (len(train.captions), 3, 8, 8)


def test_the_split_does_not_depend_on_the_order_or_on_others(scraped: Callable[..., Path]) -> None:
    folder = scraped([(f"club {index}", f"club {index}") for index in range(16)])
    settings = CaptionDataConfig(records=folder, val_share=0.4)
    _, val, first = read_captioned(settings, 8)
    rows = [record(index, f"club {index}", f"club {index}") for index in reversed(range(16))]
    write_records(folder / "records.jsonl", rows)
    _, again, other = read_captioned(settings, 8)
    assert set(again.captions) == set(val.captions)
    assert first != other


def test_too_few_descriptions_are_refused_with_a_way_out(scraped: Callable[..., Path]) -> None:
    folder = scraped([("a red crest", "one"), (None, "two"), ("a navy …", "three")])
    with pytest.raises(
        DataError, match=r"1 logos have a whole description, which leaves none to .*stock/captioner"
    ):
        read_captioned(CaptionDataConfig(records=folder), 8)


def test_shards_bring_their_own_split(tiny_world: Any) -> None:
    train, val, digest = read_captioned(CaptionDataConfig(records=tiny_world.shards), 16)
    assert (len(train.captions), len(val.captions), len(digest)) == (24, 8, 16)


def test_a_picture_that_is_gone_is_named(scraped: Callable[..., Path]) -> None:
    folder = scraped([(f"club {index}", f"club {index}") for index in range(8)])
    (folder / "images" / "05.png").unlink()
    with pytest.raises(DataError, match=r"05\.png: there is no such picture"):
        read_captioned(CaptionDataConfig(records=folder, val_share=0.4), 8)


def test_pixels_are_bytes_on_white(scraped: Callable[..., Path]) -> None:
    folder = scraped([(f"club {index}", f"club {index}") for index in range(16)])
    train, _, _ = read_captioned(CaptionDataConfig(records=folder, val_share=0.4), 8)
    assert torch.from_numpy(train.pixels[0]).dtype == torch.uint8
    assert train.pixels[0][:, 0, 0].min() > 250
