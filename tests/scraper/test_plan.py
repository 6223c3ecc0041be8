"""Records and captions, joined as they stream by."""

import pytest

from crest.errors import DataError
from crest.records import Caption, Record, write_captions, write_records
from scraper.config import PackConfig
from scraper.plan import NO_CAPTIONS, lines_at, make_plan, wordmarks


def records(count):
    return [Record(f"{n:016x}", f"images/{n}.png", "test", f"own {n}", f"g{n}") for n in range(count)]


@pytest.fixture
def plan(tmp_path):
    """Call with records and captions: the plan."""

    def make(given, captions=None, **settings):
        write_records(tmp_path / "records.jsonl", given)
        if captions is not None:
            write_captions(tmp_path / "captions.jsonl", captions)
        return make_plan(tmp_path, PackConfig(**settings), captions is not None)

    return make


def test_lines_are_found_again_where_they_begin(plan, tmp_path):
    given = records(5)
    captions = [Caption(one.id, f"{text} {n} “é”", "human") for n, one in enumerate(given) for text in "ab"]
    made = plan(given, captions)
    for number in range(5):
        row = next(lines_at(tmp_path / "records.jsonl", int(made.record_at[number])))[2]
        assert row["id"] == given[number].id
        first = next(lines_at(tmp_path / "captions.jsonl", int(made.caption_at[number])))[2]
        assert first["text"] == f"a {number} “é”"


def test_words_of_the_source_serve_where_nothing_was_captioned(plan):
    made = plan([*records(3), Record("f" * 16, "x", "test", None, "g9")])
    assert made.caption_at.tolist() == [NO_CAPTIONS] * 3
    assert made.dropped == {"no_caption": 1}


def test_what_cannot_be_packed_is_counted(plan):
    given = records(3)
    captions = [Caption(given[0].id, "by hand", "human"), Caption(given[1].id, "by a model", "model")]
    assert plan(given, captions).dropped == {"no_caption": 1}
    assert plan(given, captions, use_captions="human").dropped == {"no_caption": 1, "model_caption": 1}


def test_captions_of_other_records_or_in_another_order_are_told(plan):
    given = records(3)
    captions = [Caption(one.id, "x", "human") for one in reversed(given)]
    with pytest.raises(DataError, match=r"captions\.jsonl: describes \w+, expected captions in the order"):
        plan(given, captions)
    with pytest.raises(DataError, match=r"captions\.jsonl: describes abc, expected"):
        plan(given, [Caption("abc", "x", "human")])


def test_a_broken_line_is_named(plan, tmp_path):
    plan(records(2))
    path = tmp_path / "records.jsonl"
    first = len(path.read_bytes().splitlines(keepends=True)[0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"records\.jsonl: the line at byte {first} is not JSON"):
        make_plan(tmp_path, PackConfig(), False)


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        (['A shield, "LIONS" below.', "x"], ["“Lions” in blue"]),
        (['"Leeds" over "United"'], ['"united" and "LEEDS"']),
        (["«Олимп»"], ['"ОЛИМП"']),
    ],
)
def test_lettering_is_one_set_whatever_its_case_order_and_quotes(texts, same):
    assert wordmarks(texts) == wordmarks(same) != ""


def test_a_single_letter_is_no_wordmark():
    assert wordmarks(['The letter "B" in gold']) == wordmarks(['"!"']) == wordmarks(["none"]) == ""


def test_the_order_of_samples_is_drawn_by_seed_and_id_alone(plan):
    one, other = plan(records(50)), plan(records(50)[::-1])
    assert sorted(one.order.tolist()) == sorted(other.order.tolist()) == sorted(set(one.order.tolist()))
    assert one.order.tolist() != plan(records(50), seed=1).order.tolist()
    assert one.order.tolist() != sorted(one.order.tolist())


def test_a_models_further_words_make_no_relatives(plan):
    given = records(2)
    captions = [
        Caption(one.id, text, origin, weight=weight)
        for one in given
        for text, origin, weight in ((f"mine {one.id}", "human", 1.0), ("A logo.", "model", 0.5))
    ]
    made = plan(given, captions)
    assert len(made.links.shared["caption"][0]) == 2
