from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.data_duplicates import CHANGES, all_shown, figures
from crest.records import Record, content_id
from scraper.config import ScreenConfig
from scraper.likeness import look_at, pack_looks
from scraper.screen import candidates_of, judge, screen
from scraper.twins import CROWD


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


def test_mirrored_logo_is_dropped_by_its_own_name_but_other_lettering_is_not(run, draw):
    kept, dropped = run((draw(0, 240), {}), (ImageOps.mirror(draw(0, 240)), {"width_px": 239}))
    assert dropped == {"1": "mirrored_duplicate"}
    assert len(kept) == 1


def test_described_picture_is_kept_before_a_larger_one(run, draw):
    smaller = draw(0, 240).resize((200, 200), Image.Resampling.LANCZOS)
    kept, dropped = run((draw(0, 240), {"caption": None}), (smaller, {}))
    assert [record.caption for record in kept] == ["caption 1"]
    assert dropped == {"0": "near_duplicate"}


def test_renditions_of_one_file_share_a_group(run, draw):
    kept, _ = run(
        (draw(0), {"source_file": "a.example/x"}),
        (draw(1), {"source_file": "a.example/x"}),
        (draw(2), {"source_file": ""}),
        (draw(3), {"source_file": ""}),
    )
    groups = [record.group for record in kept]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_drop_names_its_picture_and_the_twin_that_was_kept(as_png, draw):
    pictures = [draw(0, 240), draw(0, 240).resize((200, 200), Image.Resampling.LANCZOS)]
    records = [
        Record(content_id(as_png(one)), f"images/{number}.png", "s", None, "g", width_px=one.width)
        for number, one in enumerate(pictures)
    ]
    looks = {record.id: look_at(one) for record, one in zip(records, pictures, strict=True)}
    (drop,) = screen(records, looks, ScreenConfig()).dropped
    assert {drop.image, drop.like} in ({"images/1.png", records[0].id}, {"images/0.png", records[1].id})


@pytest.fixture
def crowd(draw):
    """Records and looks of so many renditions of three logos."""

    def make(count):
        rng = np.random.default_rng(0)
        records, looks = [], []
        for number in range(count):
            picture = draw(number % 3, 160)
            levels = np.asarray(picture, dtype=np.int16) + rng.integers(-2, 3, (160, 160, 3))
            picture = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
            records.append(
                Record(
                    f"{number * 7919 % 10007:016x}", "", "s", None, f"g{number}", width_px=160, height_px=160
                )
            )
            looks.append(look_at(picture))
        return records, pack_looks(looks)

    return make


def test_verdicts_do_not_depend_on_the_order_of_the_pictures(crowd):
    records, looks = crowd(30)
    order = np.random.default_rng(1).permutation(30)
    there = judge(candidates_of(records, looks), ScreenConfig())
    back = judge(candidates_of([records[one] for one in order], looks[order]), ScreenConfig())
    assert (there.reason[order] == back.reason).all()
    assert [records[one].id for one in there.group[order]] == [records[order[one]].id for one in back.group]
    assert (there.twin[order] >= 0).tolist() == (back.twin >= 0).tolist()


def test_crowd_of_renditions_is_thinned_to_one_of_each_logo(crowd):
    count = 3 * CROWD + 30
    records, looks = crowd(count)
    verdicts = judge(candidates_of(records, looks), ScreenConfig())
    assert (verdicts.reason == 0).sum() == 3
    assert len(set(verdicts.group.tolist())) == 3
    lost = np.flatnonzero(verdicts.twin >= 0)
    assert (verdicts.reason[verdicts.twin[lost]] == 0).all()
    assert (verdicts.twin[lost] % 3 == lost % 3).all()


def test_group_is_named_by_the_lowest_key_whoever_stays(crowd):
    records, looks = crowd(9)
    candidates = candidates_of(records, looks)
    verdicts = judge(candidates, ScreenConfig())
    for logo in range(3):
        members = np.arange(logo, 9, 3)
        assert set(verdicts.group[members].tolist()) == {members[candidates.group[members].argmin()]}


def test_nothing_and_one_picture_are_judged(crowd):
    assert len(judge(candidates_of([], None), ScreenConfig()).reason) == 0
    records, looks = crowd(1)
    assert judge(candidates_of(records, looks), ScreenConfig()).reason.tolist() == [0]


def test_relatives_are_at_least_duplicates():
    with pytest.raises(ValueError, match="related_difference"):
        ScreenConfig(duplicate_difference=0.3, related_difference=0.2)


def test_copies_of_drawn_logos_are_found_and_no_other_is_merged():
    found = figures(list(all_shown(140)), ScreenConfig(min_side_px=32))
    assert {name.removeprefix("recall.") for name in found if "." in name} == set(CHANGES)
    assert found["recall"] >= 0.97
    assert (found["dropped_wrongly"], found["merged_wrongly"], found["faults"]) == (0, 0, 0)


@pytest.mark.slow
def test_ten_thousand_drawn_logos_with_planted_near_duplicates():
    found = figures(list(all_shown(10_000, workers=2)), ScreenConfig(min_side_px=32))
    assert found["recall"] >= 0.99
    assert found["merged_wrongly"] <= 0.001
    assert found["dropped_wrongly"] <= 0.001
