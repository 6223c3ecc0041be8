from dataclasses import replace

import pytest
from PIL import Image, ImageDraw

from crest.records import Record, content_id
from scraper.config import ScreenConfig
from scraper.likeness import look_at
from scraper.screen import screen


@pytest.fixture
def run(as_png):
    def screened(*shown, **settings):
        """(picture, changes to its record) -> kept names, dropped name -> reason."""
        records, looks = [], {}
        for number, (picture, changes) in enumerate(shown):
            content = as_png(picture)
            record = Record(
                id=content_id(content),
                image="",
                source="test",
                caption=f"caption {number}",
                group=f"g{number}",
                image_url=f"{number}",
                width_px=picture.width,
                height_px=picture.height,
            )
            records.append(replace(record, **changes))
            looks[record.id] = look_at(picture)
        done = screen(records, looks, ScreenConfig(**{"min_side_px": 32, **settings}))
        return done.records, {drop.what: drop.reason for drop in done.dropped}

    return screened


def shield(colour, letter=None):
    picture = Image.new("RGB", (96, 96), "white")
    pen = ImageDraw.Draw(picture)
    pen.polygon([(10, 10), (86, 10), (48, 90)], fill=colour)
    if letter:
        pen.text((42, 20), letter, fill="white", font_size=22)
    return picture


def test_each_reason_is_counted_by_name(run, draw):
    white = Image.new("RGBA", (50, 50), (255, 255, 255, 0))
    ImageDraw.Draw(white).ellipse((5, 5, 40, 40), fill=(255, 255, 255, 255))
    kept, dropped = run(
        (draw(0), {}),
        (draw(1, 20), {}),
        (draw(2).resize((600, 30)), {}),
        (Image.new("RGB", (50, 50), "navy"), {}),
        (white, {}),
        (draw(3), {"kind": "wordmark"}),
        (draw(4), {"kind": ""}),
        kinds=("primary",),
    )
    assert [record.image_url for record in kept] == ["0", "2", "6"]
    assert dropped == {
        "1": "too_small",
        "3": "blank",
        "4": "invisible_on_white",
        "5": "kind_wordmark",
    }


def test_wide_wordmark_is_kept_whole(run, draw):
    kept, dropped = run(
        (draw(0).resize((480, 60)), {}),
    )
    assert len(kept) == 1
    assert dropped == {}


def test_same_file_twice_is_kept_once_with_words_and_one_group(run, draw):
    kept, dropped = run(
        (draw(0), {"caption": None}), (draw(0), {"caption": "words"}), (draw(1), {"group": "g1"})
    )
    assert [record.caption for record in kept] == ["words", "caption 2"]
    assert list(dropped.values()) == ["duplicate"]
    assert [record.group for record in kept] == ["g0", "g0"]  # g1 was met in both


def test_same_pixels_in_another_file_are_a_duplicate(run, draw):
    kept, dropped = run((draw(0), {}), (draw(0).convert("RGBA"), {}))
    assert list(dropped.values()) == ["duplicate"]  # equals: the lower content key stays
    assert len(kept) == 1


def test_near_duplicate_across_groups_keeps_the_larger(run, draw):
    smaller = draw(0, 240).resize((200, 200), Image.Resampling.LANCZOS)
    kept, dropped = run((smaller, {}), (draw(0, 240), {}))
    assert [record.image_url for record in kept] == ["1"]
    assert dropped == {"0": "near_duplicate"}


def test_other_colours_are_no_duplicates_and_no_relatives(run):
    kept, dropped = run((shield("red"), {}), (shield("navy"), {}))
    assert dropped == {}
    assert {record.group for record in kept} == {"g0", "g1"}


def test_other_letters_are_no_duplicates_and_no_relatives(run):
    kept, dropped = run((shield("red", "A"), {}), (shield("red", "B"), {}))
    assert dropped == {}
    assert {record.group for record in kept} == {"g0", "g1"}


def test_relatives_stay_but_share_a_group(run, draw):
    smaller = draw(0, 240).resize((200, 200), Image.Resampling.LANCZOS)
    kept, dropped = run((smaller, {}), (draw(0, 240), {}), (draw(1, 240), {}), duplicate_difference=0.0)
    assert dropped == {}
    assert kept[0].group == kept[1].group != kept[2].group


def test_order_of_the_source_stays(run, draw):
    shown = [(draw(seed, 40 + 8 * seed), {}) for seed in range(6)]
    kept, _ = run(*shown)
    assert [record.image_url for record in kept] == [str(number) for number in range(6)]
