"""A stream of chunks amounts to the whole response."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu import schemas as s

USAGE = s.TokenUsage(prompt_tokens=3, completion_tokens=2)
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
CALL = s.ToolCall(tool_name="weather", arguments={"city": "Cusco"})


@pytest.mark.requirement("stream-assembles")
@given(st.lists(st.text()))
def test_text_is_joined_in_order(deltas: list[str]) -> None:
    text = "".join(deltas)
    chunks = [s.CompletionResponseStreamChunk(text_delta=delta) for delta in deltas]
    chats = [s.ChatCompletionResponseStreamChunk(text_delta=delta) for delta in deltas]
    assert s.assemble_completion(chunks) == s.CompletionResponse(content=text)
    assert s.assemble_chat(chats) == s.ChatCompletionResponse(content=text)


@pytest.mark.requirement("stream-assembles")
def test_the_end_of_a_completion_and_all_logprobs_are_kept() -> None:
    chunks = [
        s.CompletionResponseStreamChunk(text_delta="a", logprobs={"content": [TOKEN]}),
        s.CompletionResponseStreamChunk(
            text_delta="a",
            logprobs={"content": [TOKEN]},
            stop_reason=s.StopReason.max_tokens,
            usage=USAGE,
        ),
    ]
    assert s.assemble_completion(chunks) == s.CompletionResponse(
        content="aa",
        stop_reason=s.StopReason.max_tokens,
        logprobs={"content": [TOKEN, TOKEN]},
        usage=USAGE,
    )


@pytest.mark.requirement("stream-assembles")
def test_the_tool_calls_of_a_chat_are_kept() -> None:
    chunks = [
        s.ChatCompletionResponseStreamChunk(text_delta="", tool_call=CALL),
        s.ChatCompletionResponseStreamChunk(text_delta="", tool_call=CALL),
        s.ChatCompletionResponseStreamChunk(text_delta="", stop_reason=s.StopReason.finished_ok),
    ]
    whole = s.assemble_chat(chunks)
    assert whole.tool_calls == [CALL, CALL]
    assert whole.stop_reason is s.StopReason.finished_ok
    assert whole.logprobs is None


@pytest.mark.requirement("stream-assembles")
@pytest.mark.parametrize("name", ["completion.stream", "chat_completion.stream"])
def test_the_table_says_how_to_assemble(name: str) -> None:
    operation = s.OPERATIONS[name]
    assert operation.assemble is not None
    assert isinstance(operation.assemble([]), s.CompletionResponse | s.ChatCompletionResponse)
