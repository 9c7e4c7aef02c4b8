"""Records of turns for tests of the machines."""

from __future__ import annotations

from typing import Any

import msgspec

from ayllu.actors.agents.plan import closing_record
from ayllu.actors.agents.records import (
    AgentRecord,
    Answered,
    Began,
    BoundTool,
    JournalRecord,
    Said,
    StepBegan,
)
from ayllu.actors.agents.step import Event, Kind
from ayllu.actors.agents.turn import Turn
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    ExecutionStepType,
    HistoryPolicy,
    HistoryUse,
    MemoryBankDocument,
    Message,
    Role,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolDefinition,
)

AT = 1_700_000_000.0
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def user(text: str) -> Message:
    return Message(role=Role.user, content=text)


def weather(city: str) -> ToolCall:
    return ToolCall(tool_name="weather", arguments={"city": city})


def passage(uuid: str, text: str = "a passage") -> MemoryBankDocument:
    return MemoryBankDocument(uuid, text.encode(), {}, "text/plain")


def agent(**config: Any) -> AgentRecord:
    """Return an agent with a tool of the server's, ``weather``, and one of the client's, ``clock``."""
    fields: dict[str, Any] = {
        "available_tools": [ToolDefinition("weather", SCHEMA), ToolDefinition("clock")],
        "executable_tools": {"weather"},
        **config,
    }
    request = AgenticSystemCreateRequest(uuid="al", instructions="Help.", model="m", **fields)
    tool = BoundTool("weather", "weather", "ayllu.v1.op.weather", SCHEMA)
    return AgentRecord(request, [tool], 4096, AT)


def began(
    step: ExecutionStepType = ExecutionStepType.model_inference,
    history: list[list[Message]] | None = None,
    policy: HistoryPolicy = HistoryPolicy.window,
    left_out: int = 0,
    **config: Any,
) -> Began:
    """Return the beginning of a turn."""
    turns = history or []
    return Began(
        at=AT,
        agent=agent(**config),
        turn="t",
        messages=[user("How is it in Cusco?")],
        history=turns,
        use=HistoryUse(policy=policy, turns=len(turns), left_out=left_out),
        step=step,
    )


def said(
    text: str = "It is sunny.",
    *calls: ToolCall,
    cuts: list[int] | None = None,
    stop: StopReason = StopReason.finished_ok,
) -> Said:
    ends = [len(text)] if text else []
    return Said(
        at=AT,
        text=text,
        cuts=ends if cuts is None else cuts,
        tool_calls=list(calls),
        stop_reason=stop,
        usage=TokenUsage(prompt_tokens=5, completion_tokens=2),
    )


def answered(number: int, text: str = "sunny", outcome: str = "ok") -> Answered:
    return msgspec.convert(
        {
            "e": "answered",
            "at": AT,
            "call": number,
            "response": {"tool_name": "weather", "content": text},
            "outcome": outcome,
        },
        type=Answered,
    )


def tools(*calls: ToolCall, approvals: list[int] | None = None) -> StepBegan:
    return StepBegan(at=AT, kind=Kind.tool_execution, calls=list(calls), approvals=approvals or [])


def inference() -> StepBegan:
    return StepBegan(at=AT, kind=Kind.model_inference)


def folded(*records: JournalRecord) -> tuple[Turn, list[Event]]:
    turn, events = Turn(), list[Event]()
    for record in records:
        events += turn.apply(record)
    assert [event.index for event in events] == list(range(len(events)))
    assert turn.index == len(events)
    return turn, events


def told(events: list[Event]) -> list[str]:
    """Return events in short."""
    found = []
    for event in events:
        chunk = event.chunk
        word = str(chunk.event_type).removeprefix("step_")
        if chunk.step_type is Kind.safety_filtering:
            word = f"check {word}"
        if chunk.violation is not None:
            word += f" {chunk.violation.violation_type}"
        if chunk.response_text_delta is not None:
            word = f"text {chunk.response_text_delta!r}"
        elif chunk.tool_call is not None:
            word = f"call {chunk.tool_call.tool_name}"
        elif chunk.tool_response_delta is not None:
            word = f"response {chunk.tool_response_delta.content}"
        elif chunk.approval is not None:
            word = f"{chunk.approval.decision or 'asked'} {chunk.approval.tool_call.arguments}"
        elif chunk.retrieved_document is not None:
            word = f"document {chunk.retrieved_document.uuid}"
        found.append(word)
    return found


def close(turn: Turn, spoken: Said | None = None) -> list[Event]:
    """Close the step that runs, as when the turn is cancelled."""
    events: list[Event] = []
    while (record := closing_record(turn, AT, spoken)) is not None:
        events += turn.apply(record)
    return events
