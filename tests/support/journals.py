"""Records of turns for tests of the machines."""

from __future__ import annotations

from typing import Any

from ayllu.actors.agents.records import AgentRecord, Began, BoundTool
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    ExecutionStepType,
    HistoryPolicy,
    HistoryUse,
    MemoryBankDocument,
    Message,
    Role,
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
