"""The AgenticSystem API: agents, and the turns that they take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import (
    Message,
    ModelName,
    ShieldConfig,
    StopReason,
    ToolCall,
    ToolDefinition,
    ToolResponse,
)
from .memory import MemoryBankDocument
from .webmethod import webmethod
from .wire import Reply, Wire


class ExecutionStepType(StrEnum):
    """The kinds of steps of a turn."""

    model_inference = "model_inference"
    tool_execution = "tool_execution"
    safety_filtering = "safety_filtering"
    memory_retrieval = "memory_retrieval"


class SafetyViolation(Wire, frozen=True):
    """What a shield found."""

    violation_type: str
    details: str
    suggested_user_response: str | None = None


class ModelInferenceStep(Wire, frozen=True, tag_field="step_type", tag="model_inference"):
    """The model spoke."""

    uuid: str
    text: str
    logprobs: dict[str, Any] | None = None


class ToolExecutionStep(Wire, frozen=True, tag_field="step_type", tag="tool_execution"):
    """Tools ran, several perhaps at once."""

    uuid: str
    tool_calls: list[ToolCall]
    tool_responses: list[ToolResponse]


class SafetyFilteringStep(Wire, frozen=True, tag_field="step_type", tag="safety_filtering"):
    """Shields looked at what was said."""

    uuid: str
    violation: SafetyViolation | None = None


class MemoryRetrievalStep(Wire, frozen=True, tag_field="step_type", tag="memory_retrieval"):
    """Documents were fetched from memory banks."""

    uuid: str
    documents: list[MemoryBankDocument]
    scores: list[float]


ExecutionStep = ModelInferenceStep | ToolExecutionStep | SafetyFilteringStep | MemoryRetrievalStep


class AgenticSystemTurn(Wire, frozen=True):
    """What a user said and all that the agent did about it."""

    user_messages: list[Message]
    steps: list[ExecutionStep]
    response_message: Message


class AgenticSystemCreateRequest(Wire, frozen=True):
    """Create an agent."""

    uuid: str
    instructions: str
    model: ModelName
    available_tools: list[ToolDefinition] = []
    executable_tools: Annotated[
        set[str],
        Meta(
            description="Tools that the server runs; the others are emitted as tool calls, for the client to run."
        ),
    ] = set()
    memory_bank_uuids: list[str] = []
    input_shields: list[ShieldConfig] = []
    output_shields: list[ShieldConfig] = []


class AgenticSystemCreateResponse(Reply, frozen=True):
    """The agent was created."""

    agent_uuid: str


class AgenticSystemExecuteRequest(Wire, frozen=True):
    """Let an agent take a turn."""

    agent_uuid: str
    messages: list[Message]
    turn_history: Annotated[
        list[AgenticSystemTurn] | None,
        Meta(
            description="Replaces the history that the server holds, for this call; when absent, that one is used."
        ),
    ] = None
    stream: bool = False


class AgenticSystemExecuteResponse(Reply, frozen=True):
    """Non-stream response from the agentic system."""

    turn: AgenticSystemTurn


class AgenticSystemExecuteResponseEventType(StrEnum):
    """The type of event."""

    step_start = "step_start"
    step_end = "step_end"
    step_progress = "step_progress"


class AgenticSystemExecuteResponseStreamChunk(Reply, frozen=True):
    """Streamed agent execution response."""

    event_type: AgenticSystemExecuteResponseEventType
    step_uuid: str
    step_type: ExecutionStepType
    violation: SafetyViolation | None = None
    tool_call: ToolCall | None = None
    tool_response_delta: ToolResponse | None = None
    response_text_delta: str | None = None
    retrieved_document: MemoryBankDocument | None = None
    stop_reason: StopReason | None = None


class AgenticSystem(Protocol):
    """Create agents and let them take turns."""

    @webmethod(route="/agentic_system/create", operation_id="create_agentic_system")
    async def create(self, request: AgenticSystemCreateRequest) -> AgenticSystemCreateResponse:
        """Create an agent."""
        ...

    @webmethod(route="/agentic_system/execute", operation_id="create_agentic_system_execute")
    async def execute(self, request: AgenticSystemExecuteRequest) -> AgenticSystemExecuteResponse:
        """Let an agent take a turn."""
        ...

    @webmethod(route="/agentic_system/execute", operation_id="create_agentic_system_execute")
    def stream_execute(
        self, request: AgenticSystemExecuteRequest
    ) -> AsyncIterator[AgenticSystemExecuteResponseStreamChunk]:
        """Let an agent take a turn, and see every step and token of it."""
        ...

    @webmethod(
        route="/agentic_system/delete", method="DELETE", operation_id="delete_agentic_system"
    )
    async def delete(self, agent_id: str) -> None:
        """Remove an agent."""
        ...
