"""Streamed answers as deltas: text, log probabilities, tool calls in pieces, counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.openai_double import finished, text, usage

from ayllu.actors.engines.engine import Delta
from ayllu.actors.engines.openai.answer import MAX_CALLS, Answer
from ayllu.actors.engines.openai.errors import Quote
from ayllu.schemas import EngineError, StopReason, ToolCall

DONE = b"[DONE]"


def stream(*data: object) -> bytes:
    """Return events as bytes."""
    written = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in data]
    return b"".join(b"data: " + one + b"\n\n" for one in written)


def read(*data: object, **wanted: bool) -> list[Delta]:
    answer = Answer(Quote(), **wanted)
    return [*answer.feed(stream(*data)), *answer.finish()]


def piece(
    index: int | None = None, id_: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    """Return a piece of a call; what is None is left out."""
    function = {"name": name, "arguments": arguments}
    call = {
        "index": index,
        "id": id_,
        "function": {key: value for key, value in function.items() if value is not None},
    }
    return {key: value for key, value in call.items() if value is not None}


def calling(*pieces: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": None, "tool_calls": list(pieces)}}]}


def calls(*data: object) -> list[ToolCall | None]:
    *found, last = read(*data, finished("tool_calls"), DONE)
    assert last.stop_reason is StopReason.finished_ok
    return [delta.tool_call for delta in found]


@pytest.mark.requirement("upstream-stream")
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", StopReason.finished_ok),
        ("length", StopReason.max_tokens),
        ("content_filter", StopReason.finished_ok),
        ("something new", StopReason.finished_ok),
    ],
)
def test_stop_reasons(reason: str, expected: StopReason) -> None:
    assert read(text("a"), finished(reason))[-1].stop_reason is expected


@pytest.mark.requirement("upstream-stream")
@pytest.mark.parametrize(
    "data",
    [
        [finished(), usage(3, 2)],
        [{**finished(), "usage": {"prompt_tokens": 3, "completion_tokens": 2}}],
        [{**finished(), "usage": None}, {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}],
    ],
)
def test_counts_come_in_the_last_chunk_or_in_one_of_their_own(data: list[Any]) -> None:
    found = read(text("a"), text("b"), *data, DONE)
    assert found == [Delta("a"), Delta("b"), Delta("", None, None, StopReason.finished_ok, 3, 2)]


@pytest.mark.requirement("upstream-stream")
def test_pieces_are_counted_where_the_server_does_not() -> None:
    last = read(text("a"), text(""), text("b"), finished())[-1]
    assert (last.prompt_tokens, last.completion_tokens) == (0, 2)


@pytest.mark.requirement("upstream-stream")
def test_thoughts_are_no_part_of_the_answer() -> None:
    answer = Answer(Quote())
    assert not answer.feed(stream({"choices": [{"delta": {"role": "assistant"}}]}))
    assert not answer.begun
    assert not answer.feed(stream({"choices": [{"delta": {"reasoning_content": "hm"}}]}))
    assert answer.begun
    assert answer.feed(stream({"choices": [{"delta": {"refusal": "no"}}]})) == [Delta("no")]


@pytest.mark.requirement("upstream-stream")
def test_nothing_counts_after_the_end() -> None:
    answer = Answer(Quote())
    assert answer.feed(stream(text("a"), finished(), DONE, text("b"), b"<html>")) == [Delta("a")]
    assert answer.done


CHAT = {
    "content": [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": None,
            "top_logprobs": [{"token": "é", "logprob": -0.5}, {"token": "e", "logprob": None}],
        }
    ],
    "refusal": None,
}
LEGACY = {
    "tokens": ["é"],
    "token_logprobs": [-0.5],
    "top_logprobs": [{"e": None, "é": -0.5}],
    "text_offset": [0],
}
KNOWN = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
OTHER = {"token": "e", "logprob": -9999.0, "bytes": [101]}


@pytest.mark.requirement("upstream-logprobs")
@pytest.mark.parametrize("kind", ["text", "delta"])
@pytest.mark.parametrize("logprobs", [CHAT, LEGACY])
def test_log_probabilities_have_one_form(kind: str, logprobs: dict[str, Any]) -> None:
    said = {"text": "é"} if kind == "text" else {"delta": {"content": "é"}}
    chunk = {"choices": [{**said, "logprobs": logprobs}]}
    found = read(chunk, finished(), logprobs=True)
    assert found[0] == Delta("é", [{**KNOWN, "top_logprobs": [KNOWN, OTHER]}])
    assert read(chunk, finished())[0] == Delta("é")


@pytest.mark.requirement("upstream-logprobs")
def test_lists_that_are_not_there_are_borne_with() -> None:
    chunk = {"choices": [{"text": "é", "logprobs": {"tokens": ["é"], "top_logprobs": [None]}}]}
    found = read(chunk, finished(), logprobs=True)[0].logprobs
    assert found == [{**KNOWN, "logprob": -9999.0, "top_logprobs": []}]


@pytest.mark.requirement("upstream-tools")
def test_calls_come_in_pieces_in_turn() -> None:
    found = calls(
        text("I look."),
        calling(piece(0, "a", "weather", "")),
        calling(piece(1, "b", "time"), piece(0, arguments='{"city": ')),
        calling(piece(1, arguments="{}"), piece(0, arguments='"Lima"}')),
    )
    assert found == [None, ToolCall("weather", {"city": "Lima"}), ToolCall("time", {})]


@pytest.mark.requirement("upstream-tools")
@pytest.mark.parametrize("index", [None, 0])
def test_servers_that_do_not_number_calls_are_understood(index: int | None) -> None:
    found = calls(
        calling(piece(index, "a", "weather", '{"city": "Lima"}')),
        calling(piece(index, "b", "weather", '{"city": ')),
        calling(piece(index, None, None, '"Oslo"}')),
    )
    assert found == [ToolCall("weather", {"city": city}) for city in ("Lima", "Oslo")]


@pytest.mark.requirement("upstream-tools")
def test_a_name_may_be_repeated_and_arguments_be_an_object() -> None:
    assert calls(
        calling(piece(0, "a", "f", '{"a"')),
        calling(piece(0, "a", "f", ": 1}")),
        calling(piece(1, "b", "g", {"b": 2})),
        calling(piece(2, "c", "h")),
    ) == [ToolCall("f", {"a": 1}), ToolCall("g", {"b": 2}), ToolCall("h", {})]


@pytest.mark.requirement("upstream-tools")
@pytest.mark.parametrize("arguments", ["[1]", '{"a": ', "nonsense", "[" * 5000])
def test_arguments_that_are_no_object_are_an_error(arguments: str) -> None:
    with pytest.raises(EngineError, match="no JSON object"):
        calls(calling(piece(0, "a", "f", arguments)))


@pytest.mark.requirement("upstream-tools")
def test_a_call_without_a_name_is_an_error() -> None:
    with pytest.raises(EngineError, match="without a name"):
        calls(calling(piece(0, "a", None, "{}")))


@pytest.mark.requirement("upstream-tools")
def test_calls_are_bounded() -> None:
    with pytest.raises(EngineError, match="too many"):
        read(calling(*(piece(n, "a", "f") for n in range(MAX_CALLS + 1))), finished())
    with pytest.raises(EngineError, match="too many"):
        read(*[calling(piece(0, None, "f", "x" * 100_000))] * 11, finished())


@pytest.mark.requirement("upstream-tools")
def test_of_calls_that_were_cut_off_the_whole_ones_count() -> None:
    found = read(
        calling(piece(0, "a", "f", '{"a": 1}'), piece(1, "b", "g", '{"b"'), piece(2, "c", "h")),
        finished("length"),
        forced=True,
    )
    assert [(delta.tool_call, delta.text) for delta in found] == [
        (ToolCall("f", {"a": 1}), ""),
        (None, '{"b"'),
        (None, ""),
    ]


@pytest.mark.requirement("upstream-tools")
def test_a_forced_call_is_one() -> None:
    assert read(calling(piece(0, "a", "f")), finished(), forced=True)[0].tool_call
    with pytest.raises(EngineError, match="no call"):
        read(text("No."), finished(), forced=True)


@given(st.lists(st.integers(0, 2000), max_size=10))
@pytest.mark.requirement("upstream-stream")
def test_an_answer_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    whole = stream(
        text("¡Hola"),
        calling(piece(0, "a", "f", '{"a": "¿')),
        text("!"),
        calling(piece(1, "b", "g"), piece(0, arguments='"}')),
        finished("tool_calls"),
        usage(4, 5),
        DONE,
    )
    places = sorted(cut % len(whole) for cut in cuts)
    answer = Answer(Quote())
    found: list[Delta] = []
    for begin, end in zip([0, *places], [*places, len(whole)], strict=True):
        found += answer.feed(whole[begin:end])
    assert [*found, *answer.finish()] == [
        Delta("¡Hola"),
        Delta("!"),
        Delta(tool_call=ToolCall("f", {"a": "¿"})),
        Delta(tool_call=ToolCall("g", {})),
        Delta("", None, None, StopReason.finished_ok, 4, 5),
    ]


@given(st.binary(max_size=300))
@pytest.mark.requirement("upstream-faults")
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    answer = Answer(Quote(), logprobs=True)
    try:
        answer.feed(b"data: " + data + b"\n\n")
        answer.finish()
    except EngineError:
        pass
