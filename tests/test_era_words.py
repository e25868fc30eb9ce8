"""The words that eras were told, and how much a query is in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.era_words import Words, familiarity
from tests.parts import same_words as same

NIGHT = Words.of([[f"at night star {i} goes leftward"] for i in range(100)])
SEA = Words.of([[f"under the sea fish {i} swims left"] for i in range(100)])


def test_an_era_is_as_familiar_as_the_share_of_the_querys_words_that_it_says_most() -> None:
    (night, sea) = familiarity(["night", "at night left"], [NIGHT, SEA])
    # Few clips are believed a little less than all, and the mean of both fills the rest.
    assert night.tolist() == pytest.approx([(100 + 16) / 132, (100 * 2 / 3 + 32 / 2) / 132])
    assert sea.tolist() == pytest.approx([16 / 132, (100 / 3 + 32 / 2) / 132])


def test_words_that_no_era_was_told_say_nothing_and_nor_does_a_query_without_any() -> None:
    np.testing.assert_array_equal(familiarity(["zebra", "", "?!"], [NIGHT, SEA]), 0)
    known, mixed = familiarity(["night", "night zebra"], [NIGHT, SEA]).T
    np.testing.assert_allclose(known, mixed)
    np.testing.assert_array_equal(familiarity(["night"], [Words(), Words()]), 0)
    assert familiarity([], [NIGHT, SEA]).shape == (2, 0)


def test_a_rare_word_says_more_than_one_that_is_in_all_captions() -> None:
    some = Words.of([["the dog runs"]] * 99 + [["the cat runs"]])
    others = Words.of([["the bird runs"]] * 100)
    told = familiarity(["the cat", "the bird", "the"], [some, others])
    assert told[0, 0] - told[1, 0] > 0.6 * (told[1, 1] - told[0, 1])
    assert told[0, 2] == told[1, 2]
    rare, usual = 1 + math.log(200), 1 + math.log(200 / 200)
    assert told[0, 0] - told[1, 0] == pytest.approx(rare / (rare + usual) * 100 / 132)


def test_how_often_a_word_is_said_counts_beside_the_era_that_says_it_most() -> None:
    often, seldom = Words.of([["robot"]] * 100), Words.of([["robot"]] * 25 + [["arm"]] * 75)
    told = familiarity(["robot"], [often, seldom])[:, 0]
    assert told[0] - told[1] == pytest.approx((1 - math.sqrt(25 / 100)) * 100 / 132)


@pytest.mark.parametrize("clips", [0, 1, 8, 32, 1000])
def test_an_era_of_few_clips_is_as_familiar_as_the_others_on_average(clips: int) -> None:
    young = Words.of([["night"]] * clips)
    night, sea, new = familiarity(["night", "sea"], [NIGHT, SEA, young])
    if clips == 0:
        np.testing.assert_allclose(new, (night + sea) / 2, rtol=1e-6)
    if clips == 1:
        assert new[0] == pytest.approx(new[1], abs=0.15)
    if clips == 1000:
        assert new[0] > 0.97
        assert new[1] < 0.03


def test_a_clip_counts_once_for_each_word_however_often_its_captions_say_it() -> None:
    assert same(Words.of([["a red, RED star", "A star"]]), Words.of([["star red a"]]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(("它在夜里走", 5), ("夜の star", 3), ("ночью звезда", 2), ("ดาว", 3), ("snake_case 4K", 3), ("a😀b", 2)),
        *(("3人の男", 4), ("Tシャツの男", 6), ("𠀋字", 2), ("हिन्दी में तारा।", 3), ("தமிழ் மொழி", 2), ("İstanbul", 1)),
        *(("", 0), ("\0", 0), ("?! _", 0), ("\ud800", 0)),
    ],
)
def test_words_of_any_script_are_told_apart(text: str, words: int) -> None:
    assert len(Words.of([[text]]).words) == words


@pytest.mark.parametrize(
    ("text", "same_text"), [("cafe\u0301", "CAFÉ"), ("\uff14\uff2b ｽﾀｰ", "4k スター"), ("ﬁsh", "fish")]
)
def test_a_word_is_the_same_however_its_signs_are_encoded(text: str, same_text: str) -> None:
    assert same(Words.of([[text]]), Words.of([[same_text]]))


captions = st.lists(
    st.lists(st.sampled_from(["a star", "the sea", "a fish swims", "night", ""]), max_size=3), max_size=9
)


@given(captions, captions)
@settings(max_examples=50, deadline=None)
def test_words_of_two_parts_are_the_words_of_both_and_can_be_taken_apart(
    some: list[list[str]], more: list[list[str]]
) -> None:
    both = Words.of([*some, *more])
    assert same(Words.of(some).plus(Words.of(more)), both)
    assert same(both.less(Words.of(more)), Words.of(some))
    assert same(Words.of(some).less(both), Words())
    assert (np.diff(both.words) > 0).all()


def test_of_more_words_than_are_kept_the_rarest_go() -> None:
    usual = Words.of([["usual one"]] * 2)
    for i in range(0, 80_000, 20_000):
        usual = usual.plus(Words.of([[" ".join(f"w{n}" for n in range(i, i + 20_000))]]))
    assert len(usual.words) <= 65_536
    assert same(Words(usual.words[usual.counts > 1], usual.counts[usual.counts > 1], 2), Words.of([["usual one"]] * 2))
    assert usual.clips == 6
