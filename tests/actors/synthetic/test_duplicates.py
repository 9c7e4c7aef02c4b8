"""Duplicates among the answers to a prompt."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ayllu.actors.synthetic.duplicates import (
    Distinct,
    duplicates_of,
    normalised,
    similarity,
    words_of,
)

WORDS = st.lists(st.sampled_from(["a", "B", "cat", "4", ".", "漢", "é"]), max_size=8)
TEXTS = st.text(max_size=20) | WORDS.map(" ".join) | WORDS.map("".join)
BOUNDS = st.floats(0, 1, exclude_min=True) | st.sampled_from([0.5, 0.7, 0.75, 0.8, 1.0])


@pytest.mark.requirement("synthetic-duplicates")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The  answer\nis 42.", " the answer is 42. "),
        ("STRASSE", "straße"),
        ("ﬁne", "fine"),
        ("e\u0301tat", "état"),
        ("\uff11\uff12", "12"),
        ("", " \t\n"),
    ],
)
def test_texts_that_only_look_different_are_equal(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert similarity(one, other) == 1


@pytest.mark.requirement("synthetic-duplicates")
@given(TEXTS, TEXTS)
@example("it's", "it 's")
@example("ab", "a b")
@example("", "a")
def test_similarity_is_symmetric_and_1_just_for_equal_texts(one: str, other: str) -> None:
    found = similarity(one, other)
    assert 0 <= found <= 1
    assert found == similarity(other, one)
    assert (found == 1) == (normalised(one) == normalised(other))


@given(TEXTS)
def test_words_are_the_text(text: str) -> None:
    text = normalised(text)
    assert "".join(words_of(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it's 3.5 m", ["it", "'", "s", " 3", ".", "5", " m"]),
        ("die 3 größten", ["die", " 3", " größten"]),
        ("答えは 42 だ。", ["答", "え", "は", " 42", " だ", "。"]),
        ("ไทย", ["ไ", "ท", "ย"]),
    ],
)
def test_words_signs_and_characters_of_spaceless_scripts(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_similarity_is_the_share_of_common_words_in_their_order() -> None:
    assert similarity("the answer is 42", "the answer is 43") == 0.75
    assert similarity("so the answer is 42", "the answer is so 42") == pytest.approx(0.6)
    assert similarity("一二三四", "一二三五") == 0.75
    assert similarity("yes", "no") == 0


@pytest.mark.requirement("synthetic-duplicates")
@given(st.lists(TEXTS, max_size=12), BOUNDS)
def test_the_first_of_similar_texts_stays(texts: list[str], bound: float) -> None:
    """As a loop without any short cut says."""
    kept: list[str] = []
    expected = set()
    for place, text in enumerate(texts):
        if any(similarity(text, other) >= bound for other in kept):
            expected.add(place)
        else:
            kept.append(text)
    assert duplicates_of(texts, bound) == expected


def test_equal_texts_are_found_at_any_bound() -> None:
    texts = ["a b c d", "A b  c d", "a b c e", "x", "X"]
    assert duplicates_of(texts, 1.0) == {1, 4}
    assert duplicates_of(texts, 0.75) == {1, 2, 4}
    assert duplicates_of([], 0.5) == set()


def test_a_duplicate_makes_no_duplicates() -> None:
    # Each is like the one before; the last one is not like the first.
    assert duplicates_of(["a b c d", "a b c x", "a b y x"], 0.75) == {1}


def test_what_was_taken_is_told_at_once() -> None:
    distinct = Distinct(0.75)
    assert [distinct.add(text) for text in ("a b c d", "a b c e", "f", "F")] == [
        *(True, False, True, False)
    ]
