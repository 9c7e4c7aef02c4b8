"""The AgenticSystem API: agents, and the turns that they take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .approvals import Approval, ApproveRequest
from .content import (
    MaxTokens,
    Message,
    ModelName,
    SamplingParams,
    Shields,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolDefinition,
    ToolResponse,
)
from .delegation import AgentId, Cause, ChildTurn, Limits, Spent, SubAgent, TurnRef
from .errors import ErrorInfo
from .filters import Filter
from .memory import MemoryBankDocument, SearchMode
from .safety import SafetyViolation
from .webmethod import webmethod
from .wire import Reply, Wire

MAX_RETRIEVED = 100
MAX_APPROVAL_SECONDS = 7 * 86_400.0


class ExecutionStepType(StrEnum):
    """The kinds of steps of a turn."""

    model_inference = "model_inference"
    tool_execution = "tool_execution"
    safety_filtering = "safety_filtering"
    memory_retrieval = "memory_retrieval"


class ModelInferenceStep(Wire, frozen=True, tag_field="step_type", tag="model_inference"):
    """The model spoke."""

    uuid: str
    text: str
    logprobs: dict[str, Any] | None = None
    stop_reason: Annotated[
        StopReason | None,
        Meta(
            description="Extension: `not_stopped` marks a step that was cut off and not continued."
        ),
    ] = None
    usage: Annotated[TokenUsage | None, Meta(description="Extension: tokens of this step.")] = None


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


class TurnStatus(StrEnum):
    """Where a turn is: `waiting` for a decision of a person, the last three are final."""

    queued = "queued"
    running = "running"
    waiting = "waiting"
    completed = "completed"
    cancelled = "cancelled"
    failed = "failed"


class HistoryPolicy(StrEnum):
    """What becomes of a history that exceeds the model's context."""

    window = "window"
    refuse = "refuse"
    summarise = "summarise"


class HistoryUse(Wire, frozen=True):
    """How much of its history an agent saw in a turn."""

    policy: HistoryPolicy
    turns: Annotated[int, Meta(description="Earlier turns that the model saw.")] = 0
    left_out: Annotated[int, Meta(description="Older ones that it did not see.")] = 0
    summary: Annotated[str | None, Meta(description="What it saw in their place.")] = None


class AgenticSystemTurn(Wire, frozen=True):
    """What a user said and all that the agent did about it; what follows `response_message` are extensions."""

    user_messages: list[Message]
    steps: list[ExecutionStep]
    response_message: Message
    turn_id: str | None = None
    usage: Annotated[TokenUsage | None, Meta(description="Tokens of all steps.")] = None
    history: HistoryUse | None = None


class Retrieval(Wire, frozen=True):
    """How an agent looks into its memory banks."""

    max_tokens: Annotated[
        int, Meta(ge=1, le=100_000, description="The most tokens (estimated) of what was found.")
    ] = 512
    k: Annotated[int, Meta(ge=1, le=MAX_RETRIEVED, description="Chunks of each bank.")] = 5
    mode: Annotated[
        SearchMode | None, Meta(description="As in `memory_bank.query`; by default `hybrid`.")
    ] = None
    filter: Filter | None = None
    min_score: float | None = None


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
    input_shields: Shields = []
    output_shields: Shields = []
    sampling_params: Annotated[
        SamplingParams, Meta(description="Extension: how the model chooses its tokens.")
    ] = SamplingParams()
    max_tokens: Annotated[
        MaxTokens, Meta(description="Extension: of each answer of the model; 0 is no limit.")
    ] = 0
    tool_choice: Annotated[
        str | None,
        Meta(description="Extension: as in `chat_completion`, for the first step of a turn."),
    ] = None
    max_steps: Annotated[
        int, Meta(ge=1, le=100, description="Extension: steps of the model in one turn.")
    ] = 10
    history_policy: Annotated[
        HistoryPolicy,
        Meta(
            description="Extension: what exceeds the model's context is left out, oldest first (`window`), or makes the "
            "turn fail (`refuse`), or the model sees a summary of it (`summarise`)."
        ),
    ] = HistoryPolicy.window
    retrieval: Annotated[
        Retrieval, Meta(description="Extension: how memory banks are looked into.")
    ] = Retrieval()
    require_approval: Annotated[
        set[str],
        Meta(
            description="Extension: those of the executable tools of which each call waits for a person's decision "
            "(`agentic_system.turn.approve`)."
        ),
    ] = set()
    approval_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_APPROVAL_SECONDS,
            description="Extension: seconds that a call waits for it; then it is denied.",
        ),
    ] = 3600.0
    sub_agents: Annotated[
        list[SubAgent],
        Meta(max_length=64, description="Extension: tools whose calls are turns of other agents."),
    ] = []
    limits: Annotated[
        Limits,
        Meta(description="Extension: what each turn may take, together with those that it starts."),
    ] = Limits()


class AgenticSystemCreateResponse(Reply, frozen=True):
    """The agent was created."""

    agent_uuid: str


class WhenBusy(StrEnum):
    """What becomes of a turn that comes while another one of the agent runs."""

    queue = "queue"
    reject = "reject"
    interrupt = "interrupt"


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
    turn_id: Annotated[
        AgentId | None,
        Meta(
            description="Extension: the turn's id; by default a new one. A request that is sent again under the same id is "
            "the same turn."
        ),
    ] = None
    when_busy: Annotated[
        WhenBusy,
        Meta(
            description="Extension: while another turn of the agent runs, wait (`queue`), fail with `conflict` (`reject`), "
            "or cancel all that runs and waits (`interrupt`)."
        ),
    ] = WhenBusy.queue
    expires_in: Annotated[
        Annotated[float, Meta(gt=0, le=31_536_000)] | None,
        Meta(description="Extension: seconds after which the turn is not begun any more."),
    ] = None
    limits: Annotated[
        Limits,
        Meta(
            description="Extension: what the turn may take, together with those that it starts; the agent's own limits hold, too."
        ),
    ] = Limits()
    detached: Annotated[
        bool,
        Meta(
            description="Extension: the turn stands beside the agent's others: it does not wait for them, and has no part in "
            "their history."
        ),
    ] = False
    cause: Annotated[
        Cause | None, Meta(description="Extension: the event that it is started for.")
    ] = None


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
    approval: Annotated[
        Approval | None,
        Meta(description="Extension: a call that waits for a decision, or what was decided."),
    ] = None
    child_turn: Annotated[
        ChildTurn | None, Meta(description="Extension: a turn that a call has started.")
    ] = None
    child: Annotated[
        ChildEvent | None,
        Meta(
            description="Extension: an event of a turn that this one has started; it is not counted."
        ),
    ] = None
    call: Annotated[
        int | None,
        Meta(
            description="Extension: of an answer of other agents, the place of the call in its step."
        ),
    ] = None


class Agent(Reply, frozen=True):
    """An agent, as it was created."""

    agent_uuid: str
    created_at: datetime
    config: AgenticSystemCreateRequest


class Turn(Reply, frozen=True):
    """A turn as far as it has come."""

    agent_uuid: str
    turn_id: str
    status: TurnStatus
    epoch: Annotated[int, Meta(description="Changes when events that were sent may be lost.")]
    index: Annotated[int, Meta(description="The index of the next event.")]
    user_messages: list[Message] = []
    steps: Annotated[list[ExecutionStep], Meta(description="Those that have ended.")] = []
    partial_text: Annotated[
        str, Meta(description="What the model has said in its present step.")
    ] = ""
    response_message: Message | None = None
    error: Annotated[ErrorInfo | None, Meta(description="Why it was cancelled or failed.")] = None
    usage: TokenUsage | None = None
    history: HistoryUse | None = None
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    approvals: Annotated[list[Approval], Meta(description="Calls that wait for a decision.")] = []
    children: Annotated[
        list[ChildTurn], Meta(description="The turns that it has started, in their order.")
    ] = []
    parent: Annotated[
        TurnRef | None, Meta(description="The turn that has started it, if one did.")
    ] = None
    cause: Annotated[
        Cause | None, Meta(description="The event that it was started for, if it was.")
    ] = None
    limits: Limits = Limits()
    spent: Spent = Spent()


class TurnEvent(Reply, frozen=True):
    """An event of a turn under its position, or where the reader stands; or an event of a turn that it has started.

    What stands in ``child`` does not count: ``epoch`` and ``index`` are those of the next event of the turn itself. The last event of a turn that has ended is its whole state, in ``turn``. So is the first one where the position that the
    reader gave is gone: then ``recovered`` is false, and the events that follow go on from that state.
    """

    epoch: int
    index: int
    event: AgenticSystemExecuteResponseStreamChunk | None = None
    turn: Turn | None = None
    recovered: bool = True
    child: ChildEvent | None = None


class ChildEvent(Reply, frozen=True):
    """An event of a turn that another one has started, under its own position."""

    agent_uuid: str
    turn_id: str
    step_uuid: Annotated[str, Meta(description="The step that has started it.")]
    event: TurnEvent
    children: Annotated[
        str, Meta(description="What to say as `children` to follow on after this event.")
    ] = ""


def assemble_turn(
    chunks: Sequence[AgenticSystemExecuteResponseStreamChunk],
) -> AgenticSystemExecuteResponse:
    """Is never called: a turn's stream brings its own result, since chunks do not tell all of it.

    Raises:
        TypeError: it was called.
    """
    raise TypeError(f"{len(chunks)} chunks are no turn")


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

    @webmethod(
        route="/agentic_system/execute",
        operation_id="create_agentic_system_execute",
        assemble=assemble_turn,
    )
    def stream_execute(
        self, request: AgenticSystemExecuteRequest
    ) -> AsyncIterator[AgenticSystemExecuteResponseStreamChunk]:
        """Let an agent take a turn, and see every step and token of it."""
        ...

    @webmethod(
        route="/agentic_system/delete", method="DELETE", operation_id="delete_agentic_system"
    )
    async def delete(self, agent_id: str) -> None:
        """Remove an agent; its turns end."""
        ...

    @webmethod(route="/agentic_system/get", method="GET")
    async def get(self, agent_id: str) -> Agent:
        """Return an agent (extension)."""
        ...

    @webmethod(route="/agentic_system/list", method="GET")
    def list(self) -> AsyncIterator[Agent]:
        """List all agents (extension)."""
        ...


class AgentTurns(Protocol):
    """Look at turns, follow them, cancel them (extensions)."""

    @webmethod(route="/agentic_system/turn/get", method="GET", api="AgenticSystem")
    async def get(self, agent_id: str, turn_id: str) -> Turn:
        """Return a turn as far as it has come."""
        ...

    @webmethod(route="/agentic_system/turn/list", method="GET", api="AgenticSystem")
    def list(self, agent_id: str, limit: int = 100) -> AsyncIterator[Turn]:
        """List the last turns of an agent, oldest first, without their steps."""
        ...

    @webmethod(
        route="/agentic_system/turn/events",
        method="GET",
        api="AgenticSystem",
        sse=True,
        timeout=86_400.0,
    )
    def events(
        self, agent_id: str, turn_id: str, epoch: int = 0, index: int = 0, children: str = ""
    ) -> AsyncIterator[TurnEvent]:
        """Follow a turn from a position: what was, then what comes, to its end.

        An ``epoch`` of 0 means that the reader has seen nothing that could be lost. ``children`` says what it has seen of the
        turns that this one has started: ``children`` of the last event of such a turn.
        """
        ...

    @webmethod(route="/agentic_system/turn/cancel", api="AgenticSystem")
    async def cancel(self, agent_id: str, turn_id: str, reason: str = "") -> Turn:
        """Cancel a turn, and return it when it has ended; what it has finished is kept."""
        ...

    @webmethod(route="/agentic_system/turn/approve", api="AgenticSystem")
    async def approve(self, request: ApproveRequest) -> Approval:
        """Decide about a call that waits: let it run, with other arguments if given, or deny it.

        Sent again, the same decision is answered again; once one holds, another one is refused with `conflict`.
        """
        ...

    @webmethod(route="/agentic_system/turn/approvals", method="GET", api="AgenticSystem")
    def approvals(self, agent_id: str | None = None) -> AsyncIterator[Approval]:
        """List the calls that wait for a decision, of one agent or of all."""
        ...
