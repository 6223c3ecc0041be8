import pytest

from scraper.cut_text import completions, cut_back, is_cut, stem, tidy


@pytest.mark.parametrize("end", ["…", " …", "...", " [...]", " […]"])
def test_every_spelling_of_a_cut_is_seen(end: str) -> None:
    assert is_cut(f"A red shield in{end}")
    assert stem(f"A red shield in{end}") == "A red shield in"


def test_whole_caption_is_not_cut() -> None:
    assert not is_cut("A red shield.")


def test_completion_must_begin_with_the_same_words() -> None:
    texts = [
        "A red shield in gold.",
        "A red shields all.",
        "The red shield in gold.",
        "A  red\nshield in gold.",
    ]
    assert completions("A red shield in…", texts) == ["A red shield in gold."]


def test_completion_sees_through_quotes_and_spaces() -> None:
    assert completions('The "A" in…', ["The “A” in red."]) == ["The “A” in red."]


def test_cut_text_completes_nothing() -> None:
    assert completions("A red shield…", ["A red shield in…"]) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            'A gray battleship on a yellow patch. Wordmark "SAN DIEGO" in yellow on top and "FLEET" in…',
            "A gray battleship on a yellow patch.",
        ),
        ('A gold crown above a wordmark "A" in gold and "Leg…', 'A gold crown above a wordmark "A" in gold.'),
        ("A red, maroon and silver shield with a silhouette of the…", "A red, maroon and silver shield."),
        ("A red bird of the city of St. Louis above a…", "A red bird of the city of St. Louis."),
        (
            'A bat becomes the "K" of the word “Yankees." Also a hat…',
            'A bat becomes the "K" of the word “Yankees."',
        ),
        ("A red…", None),
        ('"Maxie the Miner…', None),
    ],
)
def test_cut_caption_ends_at_its_last_sentence_or_clause(text: str, left: str | None) -> None:
    assert cut_back(text) == left


def test_spaces_of_all_kinds_become_one() -> None:
    assert tidy(" A\u00a0 red\n\u200bshield ") == "A red shield"
