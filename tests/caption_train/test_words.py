"""Which words of a caption count, and for how much."""

import pytest

from caption_train.words import frequent_words, object_words, word_scores


def test_objects_are_neither_colours_nor_function_words_nor_lettering() -> None:
    caption = 'A gold and navy blue striped Shield with a star above the wordmark "STAR CITY" in dark gray.'
    assert object_words(caption) == {"striped", "shield", "star", "wordmark"}


def test_names_that_hardly_occur_do_not_count() -> None:
    captions = ["a red star"] * 300 + ["a red heart of Arden"]
    assert frequent_words(captions) == {"star"}


def test_precision_and_recall_count_each_word_once_a_caption() -> None:
    scores = word_scores(
        ["a red and red star", "a navy heart"], ["a red and gold star", "a navy blue ball"], {"star", "ball"}
    )
    assert scores == {
        "colour_word_precision": 1.0,
        "colour_word_recall": pytest.approx(2 / 3),
        "colour_word_f1": pytest.approx(0.8),
        "object_word_precision": 1.0,
        "object_word_recall": 0.5,
        "object_word_f1": pytest.approx(2 / 3),
    }


def test_silence_scores_nothing_and_nothing_to_say_breaks_nothing() -> None:
    assert set(word_scores([""], ["a red star"], {"star"}).values()) == {0.0}
    assert set(word_scores([], [], {"star"}).values()) == {0.0}
