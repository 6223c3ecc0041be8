"""What counts as alike: captions that repeat each other and copies of a picture, and nothing beside them."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clip_train import positives as module
from clip_train.positives import CROWD, near_captions, near_pictures, positives
from crest.images import square, to_array
from crest.pixels import Pictures
from tests.conftest import draw_logo

Pixels = NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[2]


def pictures(captions: Sequence[str], pixels: Pixels | None = None) -> Pictures:
    """A split with these captions; by default every picture is another logo."""
    if pixels is None:
        pixels = np.stack([to_array(draw_logo(index, 32)) for index in range(len(captions))])
    names = [str(number) for number in range(len(captions))]
    return Pictures(names, list(captions), names, pixels, "0")


def different(count: int) -> list[str]:
    return [f"logo {chr(97 + number) * 3}" for number in range(count)]


def pairs_of(captions: Sequence[str], captions_alike: float = 0.7) -> list[list[int]]:
    return near_captions(captions, captions_alike).tolist()


def matrix(split: Pictures, captions_alike: float = 0.7, pictures_alike: float = 0.05) -> list[list[int]]:
    numbers = np.arange(len(split))
    alike = positives(split, captions_alike=captions_alike, pictures_alike=pictures_alike)
    return alike.matrix(numbers, numbers).int().tolist()


def test_nothing_is_alike_among_different_logos() -> None:
    assert matrix(pictures(different(16))) == np.eye(16, dtype=int).tolist()


def test_equal_captions_are_alike_whatever_their_case_and_spaces() -> None:
    captions = ["A red lion.", "a  RED\tlion. ", "A red lion", "A gold lion."]
    alike = matrix(pictures(captions), captions_alike=2.0)
    assert alike == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_captions_near_an_equal_one_are_alike_to_all_of_its_samples() -> None:
    captions = ["A red lion on gold.", "A RED lion on gold.", "A red lion on gold, roaring.", "A crown."]
    alike = matrix(pictures(captions))
    assert alike == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


SEED_TWINS = (
    "The Dallas Chaparrals featured logo is a blue chaparral bird running across the state of Texas "
    'dribbling a red, white and blue basketball. A wordmark "CHAPARRALS" in red.',
    "A blue chaparral bird running across the state of Texas with a red, white and blue basketball. A "
    'wordmark "CHAPARRALS" in red.',
)


def test_a_caption_that_repeats_another_with_a_few_words_more_is_near() -> None:
    assert pairs_of(SEED_TWINS) == [[0, 1]]
    assert pairs_of(SEED_TWINS[::-1]) == [[0, 1]]
    words = [set(module._WORD.findall(text.lower())) for text in SEED_TWINS]
    index = len(words[0] & words[1]) / len(words[0] | words[1])
    assert index == 17 / 23  # counted by hand
    assert pairs_of(SEED_TWINS, index) == [[0, 1]]
    assert pairs_of(SEED_TWINS, index + 1e-9) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('A blue bird in a circle, wordmark "BOSTON"', 'A blue bird in a circle, wordmark "PORTLAND"'),
        ("A blue, grey and white logo of V8", "A blue, white, grey and sky blue logo of V8"),
        ("A purple and white logo of Tor", "A purple, white and black logo of Tor"),
        ("A gold lion on a red shield", "A red lion on a gold shield"),
        ("A black lion, a red shield, a black crown", "A black lion, a red shield, a red crown"),
        ("A black emblem of Model Context Protocol", "A black wordmark of Model Context Protocol"),
        ("A red crest with a navy charge, number 5", "A red crest with a navy charge, number 6"),
        ("A red shield with two stars above a lion", "A red shield with three stars above a lion"),
        ("A red shield with stars above a lion", "A red shield with two stars above a lion"),
        ("A red star above a lion on a shield", "A red star below a lion on a shield"),
        ("A lion above a shield in red", "A shield above a lion in red"),
        ("A red lion with a crown on a shield", "A red lion without a crown on a shield"),
        ("A red lion, crown, on a shield", "A red lion, no crown, on a shield"),
    ],
)  # fmt: skip
def test_captions_that_differ_in_what_matters_are_not_near(one: str, other: str) -> None:
    words = [set(module._WORD.findall(text.lower())) for text in (one, other)]
    assert len(words[0] & words[1]) / len(words[0] | words[1]) >= 0.7  # the index alone would join them
    assert pairs_of([one, other]) == []


def test_articles_and_points_make_no_difference() -> None:
    assert pairs_of(["A lion with the crown, and a shield.", "Lion; crown; shield!"], 0.4) == [[0, 1]]


def test_few_shared_words_are_not_near() -> None:
    assert pairs_of(["lion", "a lion that leaps over a burning river at night"]) == []


def test_captions_without_words_are_alike_only_when_equal() -> None:
    assert pairs_of(["", "…", "!!", "a the of"], 0.0) == []
    assert matrix(pictures(["", " ", "…"]))[0] == [1, 1, 0]


def test_the_search_finds_every_pair_that_the_rules_allow() -> None:
    rng = np.random.default_rng(0)
    words = ["lion", "crown", "red", "gold", "two", "over", "a", "with", "no", "star"]
    texts = sorted({" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(150)})
    for threshold in (0.3, 0.5, 0.75, 1.0):
        expected = []
        for i in range(len(texts)):
            for j in range(i + 1, len(texts)):
                one, other = texts[i].split(), texts[j].split()
                index = len({*one} & {*other}) / len({*one} | {*other})
                said = [[word for word in text if word not in module._GLUE] for text in (one, other)]
                repeats = any(
                    bool(a) and module._repeats(a, b) for a, b in ((said[0], said[1]), (said[1], said[0]))
                )
                same = module._facts(texts[i], one) == module._facts(texts[j], other)
                if index >= threshold and repeats and same:
                    expected.append([i, j])
        assert pairs_of(texts, threshold) == expected
        assert expected  # the test would be empty otherwise


def test_a_word_is_repeated_in_its_order_and_as_often() -> None:
    assert module._repeats(["star", "star"], ["star", "moon", "star"])
    assert not module._repeats(["star", "star"], ["star", "moon"])
    assert not module._repeats(["moon", "star"], ["star", "moon"])
    assert not module._repeats(["star"], ["star", "without", "moon"])
    assert module._repeats(["no", "star"], ["no", "star"])


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


@pytest.mark.parametrize("side_px", [16, 36, 64, 224])
def test_copies_in_another_format_or_size_are_near_and_other_logos_are_not(side_px: int) -> None:
    copies = []
    for index in range(12):
        whole = draw_logo(index, 256)
        small = whole.resize((160, 160), Image.Resampling.BILINEAR)
        copies += [to_array(square(copy, side_px)) for copy in (whole, jpeg(whole, 60), small)]
    found = {tuple(pair) for pair in near_pictures(np.stack(copies), 0.05).tolist()}
    assert found == {(3 * logo + a, 3 * logo + b) for logo in range(12) for a, b in ((0, 1), (0, 2), (1, 2))}


def wordmark(text: str, ground: str = "white", ink: str = "black") -> Pixels:
    picture = Image.new("RGB", (64, 64), ground)
    ImageDraw.Draw(picture).text((6, 26), text, fill=ink)
    return to_array(picture)


def test_wordmarks_are_told_apart_though_most_of_them_is_the_same_white() -> None:
    pixels = np.stack([wordmark("BOSTON"), wordmark("DENVER"), wordmark("BOSTON", ink="#0b0b0b")])
    plain = np.abs(pixels[0].astype(float) - pixels[1]).mean() / 255
    assert plain < 0.05  # what a mean over the whole picture would call near
    assert near_pictures(pixels, 0.05).tolist() == [[0, 2]]


def test_one_letter_in_a_family_of_icons_is_a_difference() -> None:
    def icon(letter: str) -> Pixels:
        picture = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(picture)
        pen.rectangle((4, 4, 59, 59), fill="orange")
        pen.text((24, 20), letter, fill="white", font=ImageFont.load_default(20))
        return to_array(picture)

    pixels = np.stack([icon("C"), icon("K"), icon("C")])
    assert np.abs(pixels[0].astype(float) - pixels[1]).mean() / 255 < 0.02
    assert near_pictures(pixels, 0.05).tolist() == [[0, 2]]


def test_gold_on_orange_is_seen() -> None:
    def pennant(corners: int) -> Pixels:
        picture = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(picture)
        pen.rectangle((4, 4, 59, 59), fill="#f57c14")
        pen.regular_polygon((32, 32, 12), corners, fill="#ffd133")
        return to_array(picture)

    pixels = np.stack([pennant(3), pennant(6), pennant(3)])
    assert near_pictures(pixels, 0.08).tolist() == [[0, 2]]


def test_the_ground_of_a_picture_is_its_own() -> None:
    dark = [wordmark(text, "navy", "white") for text in ("BOSTON", "DENVER")]
    pixels = np.stack([*dark, wordmark("BOSTON", "#00007a", "white"), wordmark("BOSTON", "white", "white")])
    assert near_pictures(pixels, 0.05).tolist() == [[0, 2]]


def test_the_measure_by_hand() -> None:
    one = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    other = one.clone()
    one[..., 8:12, 8:16] = 0  # 32 cells, 4 rows of 8: in one window they are all that is drawn
    other[..., 8:12, 8:16] = 51
    assert float(module._differences(one, other)) == pytest.approx(0.2)
    single = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    single[..., 9, 9] = 0  # one cell is judged among 16
    assert float(module._differences(single, torch.full_like(single, 255))) == pytest.approx(1 / 16)
    grounds = torch.full_like(single, 255), torch.full_like(single, 204)
    assert float(module._differences(*grounds)) == pytest.approx(0.2)


def test_nearly_blank_pictures_are_near_to_none() -> None:
    blank = np.full((2, 3, 32, 32), 255, np.uint8)
    blank[1, :, 5, 5] = 0
    assert near_pictures(blank, 0.5).tolist() == []
    assert matrix(pictures(different(2), blank)) == [[1, 0], [0, 1]]
    assert matrix(pictures(different(2), blank[[1, 1]])) == [[1, 1], [1, 1]]  # equal in every pixel


def test_the_search_finds_every_pair_that_the_measure_allows() -> None:
    rng = np.random.default_rng(1)
    logos = np.stack([to_array(draw_logo(index, 32)) for index in range(10)]).astype(np.float32)
    faded = [255 - (255 - logos) * strength for strength in (1.0, 0.95, 0.8)]
    darker = [logos - levels for levels in (5, 12)]  # their grounds differ
    noise = rng.normal(0, 6, logos.shape)
    noisy = np.concatenate([*faded, *darker, logos + noise]).clip(0, 255).astype(np.uint8)
    assert len(noisy) < CROWD
    thumbs = module._thumbs(noisy)
    for threshold in (0.01, 0.05, 0.1, 0.2):
        expected = []
        for i in range(len(noisy)):
            apart = module._differences(thumbs[i : i + 1].expand_as(thumbs), thumbs)
            expected += [[i, j] for j in torch.nonzero(apart <= threshold)[:, 0].tolist() if j > i]
        assert near_pictures(noisy, threshold).tolist() == expected
        assert len(expected) > 10 or threshold == 0.01


def test_equal_pictures_are_alike_where_near_ones_are_not_asked_for() -> None:
    pixels = np.stack([to_array(draw_logo(index, 32)) for index in (0, 1, 0)])
    assert matrix(pictures(different(3), pixels), pictures_alike=-1) == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_alike_is_not_handed_on() -> None:
    """A's picture is B's, and B's caption is C's: A and C may still be two logos."""
    pixels = np.stack([to_array(draw_logo(index, 32)) for index in (0, 0, 1)])
    assert matrix(pictures(["a lion", "a crown", "a crown"], pixels)) == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_the_matrix_is_symmetric_and_takes_any_rows_and_columns_also_repeated() -> None:
    captions = [f"a {word} lion" for word in ("red", "gold", "red", "navy", "gold", "red")]
    alike = positives(pictures(captions), captions_alike=0.7, pictures_alike=0.05)
    numbers = np.arange(6)
    whole = alike.matrix(numbers, numbers)
    assert whole.dtype == torch.bool
    assert torch.equal(whole, whole.T)
    assert whole.diagonal().all()
    rows, columns = np.array([5, 5, 1]), np.array([0, 2, 3, 2, 5])
    assert torch.equal(alike.matrix(rows, columns), whole[rows][:, columns])
    assert torch.equal(alike.matrix(torch.tensor(rows), torch.tensor(columns)), whole[rows][:, columns])
    assert alike.matrix(rows[:0], columns).shape == (0, 5)
    assert len(alike) == 6


def test_the_pairs_of_each_kind_are_counted() -> None:
    pixels = np.stack([to_array(draw_logo(index, 32)) for index in (0, 0, 0, 1, 2)])
    pixels[2, :, 10:14, 10:14] ^= 4  # near
    captions = ["a red lion on gold", "A red lion on gold", "a red lion on gold roaring", "a crown", "a star"]
    counts = positives(pictures(captions, pixels), captions_alike=0.7, pictures_alike=0.05).counts()
    assert counts == {"equal_captions": 1, "near_captions": 2, "equal_pictures": 1, "near_pictures": 2}


def test_one_sample_and_none_are_no_mistake() -> None:
    assert matrix(pictures(["a lion"])) == [[1]]
    none = np.zeros((0, 3, 32, 32), np.uint8)
    assert len(positives(pictures([], none), captions_alike=0.7, pictures_alike=0.05)) == 0


def test_another_process_finds_the_same() -> None:
    """Sets of words have another order in each process."""
    program = (
        "import json, sys; from clip_train.positives import near_captions;"
        "print(json.dumps(near_captions(json.load(sys.stdin), 0.4).tolist()))"
    )
    texts = [f"lion {' '.join(chosen)}" for chosen in ("ab", "abc", "abcd", "abd", "ba", "bc", "abcde", "cd")]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(done.stdout) == pairs_of(texts, 0.4) != []


def test_a_crowd_of_near_pictures_costs_no_pair_of_all() -> None:
    rng = np.random.default_rng(2)
    logo = to_array(draw_logo(0, 32)).astype(np.int16)
    count = 4 * CROWD
    pixels = (logo[None] + rng.integers(-3, 4, (count, 3, 32, 32))).clip(0, 255).astype(np.uint8)
    found = near_pictures(pixels, 0.05)
    assert count * CROWD // 2 <= len(found) <= count * CROWD


def test_many_samples_never_need_all_pairs_at_once() -> None:
    """A matrix of one byte a pair would be 16 MB for these 4,000, half of them of one caption."""
    count = 4000
    rng = np.random.default_rng(3)
    captions = [f"caption {number}" if number % 2 else "a logo" for number in range(count)]
    pixels = rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    split = pictures(captions, pixels)
    tracemalloc.start()
    alike = positives(split, captions_alike=0.7, pictures_alike=0.05)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert alike.counts()["equal_captions"] == 2000 * 1999 // 2
