"""The incremental parser of tool calls."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.tool_calls import (
    CLOSING,
    OPENING,
    ForcedCallParser,
    PlainText,
    ToolCallParser,
    render_calls,
)
from ayllu.schemas import ToolCall

CALL = ToolCall(tool_name="get_weather", arguments={"city": "Paris"})
WRITTEN = '{"name": "get_weather", "arguments": {"city": "Paris"}}'

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    ToolCall,
    tool_name=st.text(min_size=1),
    arguments=st.dictionaries(st.text(), values, max_size=3),
)
fragments = st.sampled_from(
    [
        OPENING,
        CLOSING,
        "<",
        "<tool",
        "</tool_call",
        "[",
        "]",
        '"',
        "\\",
        "{}",
        f"[{WRITTEN}]",
        "a b",
    ]
)
texts = st.lists(fragments | st.text(max_size=5), max_size=12).map("".join)


def parse(pieces: list[str]) -> list[str | ToolCall]:
    """Parse pieces and join neighbouring texts."""
    parser = ToolCallParser()
    found = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    assert "" not in found
    joined: list[str | ToolCall] = []
    for part in found:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in pairwise(bounds)]


@pytest.mark.requirement("tool-calls-parsed")
@given(cut_texts())
def test_any_split_gives_the_same_calls_and_text(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    assert parse(pieces) == parse([text]) == parse(list(text))


@pytest.mark.requirement("tool-calls-parsed")
@given(texts.filter(lambda text: "name" not in text))
def test_text_without_calls_comes_out_as_it_is(text: str) -> None:
    assert "".join(str(part) for part in parse([text])) == text


@pytest.mark.requirement("tool-calls-parsed")
@given(
    st.lists(calls | st.sampled_from(["text", " <", " <tool_", "</tool_call>", ' "']), max_size=6)
)
def test_what_is_rendered_is_read_again(parts: list[str | ToolCall]) -> None:
    text = "".join(part if isinstance(part, str) else render_calls([part]) for part in parts)
    found = parse([text])
    assert [part for part in found if isinstance(part, ToolCall)] == [
        part for part in parts if isinstance(part, ToolCall)
    ]
    assert (
        "".join(part if isinstance(part, str) else render_calls([part]) for part in found) == text
    )


@pytest.mark.requirement("tool-calls-parsed")
@given(st.lists(calls, min_size=1, max_size=3))
def test_several_calls_between_two_markers(made: list[ToolCall]) -> None:
    assert parse([render_calls(made)]) == made


@pytest.mark.parametrize("body", [f"[{WRITTEN}]", WRITTEN, f"\n[{WRITTEN}]\n"])
@pytest.mark.requirement("tool-calls-parsed")
def test_a_call_is_found_with_and_without_list_and_closing_marker(body: str) -> None:
    assert parse([f"Let me see.{OPENING}{body}{CLOSING}"]) == ["Let me see.", CALL]
    assert parse([OPENING + body]) == [CALL]


@pytest.mark.requirement("tool-calls-parsed")
@pytest.mark.parametrize(
    "body",
    [
        "",
        "nonsense",
        "[]",
        '[{"name": 1}]',
        '[{"name": ""}]',
        '[{"nam',
        "[" * 5000,
        '{"name": "a", "arguments": []}',
    ],
)
def test_malformed_calls_are_text(body: str) -> None:
    text = f"before {OPENING}{body}{CLOSING} after"
    assert parse([text]) == [text]


@pytest.mark.requirement("tool-calls-parsed")
def test_text_streams_and_only_a_possible_marker_is_withheld() -> None:
    parser = ToolCallParser()
    assert parser.feed("Hello <") == ["Hello "]
    assert parser.feed("b> <tool_") == ["<b> "]
    assert parser.feed("x") == ["<tool_x"]
    assert parser.feed(OPENING + f"[{WRITTEN}]</tool_") == []
    assert parser.feed("call>!") == [CALL, "!"]
    assert parser.finish() == []


@pytest.mark.requirement("tool-calls-forced")
def test_a_forced_call_is_read_whole() -> None:
    parser = ForcedCallParser()
    assert parser.feed(WRITTEN[:9]) == parser.feed(WRITTEN[9:]) == []
    assert parser.finish() == [CALL]


@pytest.mark.requirement("tool-calls-forced")
def test_a_forced_call_that_was_cut_off_is_text() -> None:
    parser = ForcedCallParser()
    parser.feed('{"name": "a')
    assert parser.finish() == ['{"name": "a']
    assert ForcedCallParser().finish() == []


def test_plain_text_passes() -> None:
    parser = PlainText()
    assert parser.feed(OPENING) == [OPENING]
    assert parser.feed("") == parser.finish() == []
