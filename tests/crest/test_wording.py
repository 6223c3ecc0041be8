import pytest

from crest.wording import colours_of, content_words, quoted_words, shared_limit, stem, vague_reasons
from demo.league import league

SITE = (
    # in the manner of the site that seed 002 scraped: written by people who looked
    "A navy blue circle with a gold lion's head facing left and the word “LIONS” in white above it.",
    'Red bird perched on a yellow baseball bat over the script wordmark "Cardinals" in red with navy trim.',
    'A navy shield with a white star above the word "Ravens" in gold',
    "A snarling black and orange tiger leaping out of a silver ring.",
    'The word "Braves" in red script with a navy outline and a tomahawk underneath.',
    "An orange basketball with black seams behind a purple mountain, team name in white below.",
    'Green letters "NY" interlocked and outlined in white.',
    "White anchor on a royal blue diamond, with two silver ropes crossed behind.",
)


@pytest.mark.parametrize("text", SITE)
def test_what_people_wrote_who_looked_is_not_vague(text: str) -> None:
    assert vague_reasons(text) == ()


def test_no_caption_of_the_league_is_vague() -> None:
    captions = [
        logo.caption for number in range(3) for club in league(5, number, 12).clubs for logo in club.logos
    ]
    flagged = {text: reasons for text in captions if (reasons := vague_reasons(text))}
    assert len(captions) > 60
    assert flagged == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A blue lion drawing.", "generic_phrase"),
        ("A circle-shaped diagram.", "no_object"),
        ("A circle-shaped diagram.", "no_colour"),
        ("A Football ball.", "too_short"),
        ("A Football ball.", "no_colour"),
        ("a black and white photo of a clock", "generic_phrase"),
        ("a close up of a red and white sign", "no_object"),
        ("a picture of a lion", "generic_phrase"),
        ("a blue and white logo with a white background", "no_object"),
        ("the logo of the team", "no_object"),
        ("A lion's head facing right", "no_colour"),
        ("A red shield with a gold crown above the…", "cut_short"),
        ("A red shield with a gold crown above the", "cut_short"),
        ("A red shield with a gold crown and...", "cut_short"),
        ("a red star with a red star with a red star on a shield", "duplicate_words"),
        ("a red red lion on a shield", "duplicate_words"),
        ("a lion and a red lion beside a lion under a lion", "duplicate_words"),
    ],
)
def test_words_that_fit_any_logo_are_flagged_by_rule(text: str, reason: str) -> None:
    assert reason in vague_reasons(text)


def test_words_shared_by_many_pictures_are_flagged() -> None:
    assert vague_reasons(SITE[0], is_shared=True) == ("shared_by_many",)
    assert [shared_limit(count) for count in (5, 37, 100, 1000)] == [3, 3, 10, 20]


def test_lettering_is_what_stands_in_quotes() -> None:
    text = 'The word "RED  WINGS" over “New York”, the club\'s old «Stars» and a 5" ball'
    assert quoted_words(text) == ["RED WINGS", "New York", "Stars"]
    assert quoted_words("a lion's head and a tiger's tail") == []


def test_a_repeated_wordmark_is_no_repetition() -> None:
    assert vague_reasons('A red shield under the word "Duran Duran Duran Duran" in white') == ()


def test_colours_of_lettering_are_no_colours() -> None:
    assert colours_of('A navy blue shield with the word "RED" in grey and navy') == ["navy", "gray"]


def test_content_words_are_things() -> None:
    text = 'A navy shield with two white stars above the word "Ravens", a wolf\'s head and wolves'
    assert content_words(text) == ["shield", "star", "word", "wolf", "head"]


@pytest.mark.parametrize(
    ("word", "singular"),
    [
        ("stars", "star"), ("Star's", "star"), ("wolves", "wolf"), ("waves", "wave"), ("berries", "berry"),
        ("foxes", "fox"), ("torches", "torch"), ("cross", "cross"), ("crosses", "cross"),
        ("cactus", "cactus"), ("horses", "horse"), ("axes", "axe"), ("eagles’", "eagle"), ("ties", "tie"),
    ],
)  # fmt: skip
def test_plurals_lose_their_ending(word: str, singular: str) -> None:
    assert stem(word) == singular
