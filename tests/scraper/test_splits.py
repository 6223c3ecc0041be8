"""A split is a pure function of group and seed, leaks nothing, and stays put when data is added."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from crest.errors import DataError
from crest.records import SPLITS
from scraper.config import PackConfig
from scraper.screen import key_of
from scraper.splits import (
    EMPTY,
    LEDGER,
    Ledger,
    Links,
    divide,
    families,
    place_of,
    read_ledger,
    split_of,
    write_ledger,
)

DEFAULT = PackConfig()
ONLY_TRAIN = PackConfig(val_share=0, test_share=0)


def links_of(pictures, settings=DEFAULT):
    """Links of (id, group, caption) tuples; a fourth is the wordmark, a fifth the source file."""
    shared = {}
    for place, kind in ((2, "caption"), (3, "wordmark"), (4, "source_file")):
        pairs = [(n, key_of(one[place])) for n, one in enumerate(pictures) if len(one) > place and one[place]]
        shared[kind] = (
            np.array([n for n, _ in pairs], np.int64),
            np.array([key for _, key in pairs], np.uint64),
        )
    return Links(
        np.array([key_of(one[1]) for one in pictures], np.uint64),
        np.array([place_of(one[1], settings.seed) for one in pictures]),
        np.array([key_of(f"picture/{one[0]}") for one in pictures], np.uint64),
        shared,
    )


def divided(pictures, settings=DEFAULT, ledger=EMPTY):
    """id -> split, and all that divide says."""
    links = links_of(pictures, settings)
    found = families(links)
    said = divide(links, found, ledger, settings, "data")
    splits = said.splits[found.family_of[found.atom_of]]
    return {one[0]: SPLITS[code] for one, code in zip(pictures, splits, strict=True)}, said


def singles(count, start=0):
    return [(f"id{n}", f"g{n}", f"caption {n}") for n in range(start, start + count)]


def families_of(pictures):
    """The ids of each family."""
    links = links_of(pictures)
    found = families(links)
    members = {}
    for one, family in zip(pictures, found.family_of[found.atom_of].tolist(), strict=True):
        members.setdefault(family, set()).add(one[0])
    return sorted(members.values(), key=sorted)


def test_a_fresh_folder_equals_the_pure_function_of_group_and_seed():
    settings = PackConfig(seed=7)
    pictures = [(f"id{n}", f"g{n // 3}", f"caption {n}") for n in range(300)]
    splits, said = divided(pictures, settings)
    assert splits == {one[0]: split_of(place_of(one[1], 7), settings) for one in pictures}
    assert len(said.moved) == 0
    assert splits != divided(pictures, PackConfig(seed=8))[0]


def test_order_of_the_records_does_not_matter():
    pictures = [(f"id{n}", f"g{n // 2}", f"caption {n // 3}") for n in range(120)]
    assert divided(pictures)[0] == divided(pictures[::-1])[0]


def test_shares_are_about_what_was_asked_for():
    counts = Counter(divided(singles(5000), PackConfig(val_share=0.1, test_share=0.2))[0].values())
    assert 450 < counts["val"] < 550
    assert 920 < counts["test"] < 1080


@pytest.mark.parametrize("count", [3, 4, 5, 37])
def test_few_groups_still_fill_every_split(count):
    for seed in range(30):
        splits, _ = divided(singles(count), PackConfig(seed=seed))
        assert set(splits.values()) == set(SPLITS)


def test_too_few_groups_to_split_is_told():
    with pytest.raises(DataError, match="data: the logos form 2 groups, expected more than 2"):
        divided(singles(2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, "A red shield."), (2, "A red shield.")),
        ((3, "lions\nleeds"), (3, "lions\nleeds")),
        ((4, "2018/denver"), (4, "2018/denver")),
    ],
)
def test_groups_that_share_words_lettering_or_a_source_file_are_one(first, second):
    pictures = [[f"id{n}", f"g{n}", f"caption {n}", "", ""] for n in range(6)]
    pictures[0][first[0]], pictures[4][second[0]] = first[1], second[1]
    assert {"id0", "id4"} in families_of(pictures)
    assert len(families_of(pictures)) == 5


def test_what_belongs_together_by_a_chain_is_one_family():
    chain = [(f"id{n}", f"g{n}", f"caption {n // 2}", f"mark {(n + 1) // 2}") for n in range(400)]
    assert families_of([*chain, ("alone", "x", "y")])[0] == {"alone"}
    assert len(families_of([*chain, ("alone", "x", "y")])) == 2


def test_what_a_whole_class_shares_makes_no_relatives():
    pictures = [(f"id{n}", f"g{n}", "a logo" if n < 30 else f"caption {n}") for n in range(40)]
    links = links_of(pictures)
    assert len(families(links).namer) == 40
    assert families(links).too_common["caption"] == 1
    few = [(f"id{n}", f"g{n}", "a logo" if n < 20 else f"caption {n}") for n in range(40)]
    assert len(families_of(few)) == 21


def test_many_pictures_of_one_club_are_no_class():
    """25 eras of a club with its wordmark, and one logo elsewhere that bears it too."""
    pictures = [(f"id{n}", "club", f"caption {n}", "denver") for n in range(25)]
    pictures += [("else", "other", "caption else", "denver"), ("alone", "third", "alone", "")]
    assert len(families_of(pictures)) == 2


def test_one_prompt_for_every_picture_tells_none_apart():
    """Seed 003's folder: five photographs, one caption."""
    pictures = [(f"id{n}", f"g{n}", "a photo of sks logo") for n in range(5)]
    assert len(families_of(pictures)) == 5
    assert set(divided(pictures)[0].values()) == set(SPLITS)


def test_nothing_moves_when_data_is_added_in_rounds_unless_it_is_linked():
    rng = np.random.default_rng(5)
    for seed in range(6):
        settings, ledger, before = PackConfig(seed=seed), EMPTY, {}
        pictures = []
        for round_number in range(6):
            count = int(rng.integers(4, 60)) if pictures else 40
            start = len(pictures)
            # some of the new pictures join old clubs, some repeat an old caption
            for n in range(start, start + count):
                group = f"g{rng.integers(0, n + 1)}" if rng.random() < 0.5 else f"g{n}"
                caption = f"c{rng.integers(0, n + 1)}" if rng.random() < 0.1 else f"c{n}"
                pictures.append((f"id{n}", group, caption))
            splits, said = divided(pictures, settings, ledger)
            moved = {one for one in before if before[one] != splits[one]}
            assert len(said.moved) == len(moved)
            for family in families_of(pictures):
                assert len({splits[one] for one in family}) == 1
                held = {before[one] for one in family if one in before}
                if len(held) == 1:  # its known members agreed: nothing of it moves
                    assert not family & moved, round_number
                elif held:
                    assert {splits[one] for one in family} == {max(held, key=SPLITS.index)}
            ledger, before = said.ledger, splits


def test_rounds_without_links_move_nothing_and_equal_the_pure_function():
    settings, ledger, before = PackConfig(), EMPTY, {}
    for count in (200, 400, 800):
        splits, said = divided(singles(count), settings, ledger)
        assert len(said.moved) == 0
        assert before.items() <= splits.items()
        ledger, before = said.ledger, splits
    assert before == divided(singles(800))[0]


def test_a_split_that_was_filled_by_the_nearest_group_keeps_it():
    few, said = divided(singles(5))
    many, _ = divided(singles(500), ledger=said.ledger)
    assert few.items() <= many.items()


def test_the_most_held_out_split_wins_where_new_data_links_two():
    splits, said = divided(singles(300))
    one_of = {split: next(n for n in range(300) if splits[f"id{n}"] == split) for split in SPLITS}
    for held, other in pairwise(reversed(SPLITS)):
        bridge = ("new", f"g{one_of[other]}", f"caption {one_of[held]}")
        after, said_after = divided([*singles(300), bridge], ledger=said.ledger)
        assert {after["new"], after[f"id{one_of[other]}"], after[f"id{one_of[held]}"]} == {held}
        assert said_after.moved.tolist() == [one_of[other]]


def test_a_picture_whose_group_got_another_name_stays():
    """Screening names a merged group by one of its groups, which new data can change."""
    splits, said = divided(singles(100))
    renamed = [(one[0], f"now {one[1]}", one[2]) for one in singles(100)]
    assert divided(renamed, ledger=said.ledger)[0] == splits


def test_what_vanished_and_comes_back_is_where_it_was():
    splits, said = divided(singles(100))
    _, without = divided(singles(50, 50), ledger=said.ledger)
    assert divided(singles(100), ledger=without.ledger)[0] == splits


def test_ledger_is_the_same_bytes_again_and_bound_to_seed_and_shares(tmp_path):
    settings = PackConfig()
    _, said = divided(singles(40))
    write_ledger(tmp_path, said.ledger, settings)
    first = (tmp_path / LEDGER).read_bytes()
    write_ledger(tmp_path, said.ledger, settings)
    assert (tmp_path / LEDGER).read_bytes() == first
    back = read_ledger(tmp_path, settings.model_copy(update={"side_px": 64}))
    assert isinstance(back, Ledger)
    assert np.array_equal(back.keys, said.ledger.keys)
    assert np.array_equal(back.splits, said.ledger.splits)
    for change in ({"seed": 1}, {"val_share": 0.2}):
        assert read_ledger(tmp_path, settings.model_copy(update=change)) is None
    assert read_ledger(tmp_path / "none", settings) is EMPTY


def test_a_damaged_ledger_is_told(tmp_path):
    (tmp_path / LEDGER).write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(DataError, match=r"splits\.npz: is not a ledger of splits"):
        read_ledger(tmp_path, PackConfig())


def test_without_held_out_shares_all_is_trained_on():
    assert set(divided(singles(1), ONLY_TRAIN)[0].values()) == {"train"}


def test_a_hundred_thousand_pictures_take_a_moment():
    rng = np.random.default_rng(0)
    count = 100_000
    keys = rng.integers(1, 1 << 63, count).astype(np.uint64)
    captions = rng.integers(1, 80_000, count).astype(np.uint64)
    links = Links(
        keys[rng.integers(0, count, count)],
        rng.random(count),
        ~keys,
        {"caption": (np.arange(count), captions)},
    )
    found = families(links)
    said = divide(links, found, EMPTY, PackConfig(), "data")
    again = divide(replace(links, places=1 - links.places), found, said.ledger, PackConfig(), "data")
    assert len(again.moved) == 0


def test_a_club_whose_pictures_are_all_gone_keeps_its_split_for_new_ones():
    """By its group alone: the pure function would say otherwise, as this split was filled by the nearest."""
    few, said = divided(singles(5))
    settings = DEFAULT
    moved = [n for n in range(5) if few[f"id{n}"] != split_of(place_of(f"g{n}", settings.seed), settings)]
    assert moved
    successors = [(f"new{n}", f"g{n}", f"other words {n}") for n in range(5)]
    after, _ = divided([*successors, *singles(300, 100)], ledger=said.ledger)
    assert [after[f"new{n}"] for n in range(5)] == [few[f"id{n}"] for n in range(5)]
