"""Subjects: every name becomes one token, and comes back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.bus.subjects import MAX_TOKEN, decode_token, encode_token, matches, operation_subject
from ayllu.schemas import OPERATIONS, InvalidRequest

names = st.text(max_size=40).filter(lambda text: text.isprintable() or text.isascii())
tokens = st.text("ab", min_size=1, max_size=2)


@pytest.mark.requirement("subject-encoding")
@given(names)
def test_every_name_comes_back_from_its_token(name: str) -> None:
    token = encode_token(name)
    assert decode_token(token) == name
    assert re.fullmatch(r"[A-Za-z0-9=-]+", token)


@pytest.mark.requirement("subject-encoding")
@given(names, names)
def test_two_names_have_two_tokens(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@pytest.mark.parametrize("name", ["\ud800", "x" * (MAX_TOKEN + 1)])
def test_a_name_that_no_subject_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        encode_token(name)


@pytest.mark.parametrize(
    "token", ["", "a.b", "=4", "=61", "=zz", "ä", "=FF", "a" * (MAX_TOKEN + 1)]
)
def test_what_is_no_token_is_not_decoded(token: str) -> None:
    with pytest.raises(ValueError, match=r"not an encoded name|utf-8"):
        decode_token(token)


def test_a_model_is_the_last_token_of_its_subject() -> None:
    operation = OPERATIONS["chat_completion.stream"]
    subject = operation_subject(operation, "meta/llama 3.1")
    assert subject == "ayllu.v1.op.chat_completion.stream.meta=2Fllama=203=2E1"
    assert operation_subject(OPERATIONS["models"]) == "ayllu.v1.op.models"


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
    ],
)
def test_patterns(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


@given(st.lists(tokens, min_size=1, max_size=4), st.data())
def test_a_subject_falls_under_itself_with_any_token_wild(
    parts: list[str], data: st.DataObject
) -> None:
    wild = [data.draw(st.sampled_from([part, "*"])) for part in parts]
    assert matches(".".join(wild), ".".join(parts))
