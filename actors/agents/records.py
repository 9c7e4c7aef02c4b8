"""What agents store on the bus: agents, commands, the records of a journal, deltas, history; `streams` says where.

An entry of a journal is a list of records, which stand there together or not at all. They have a version; what an older one
wrote stays readable (tests/actors/agents/journals).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ...schemas import (
    AgenticSystemCreateRequest,
    AgenticSystemTurn,
    ApprovalDecision,
    Cause,
    ErrorInfo,
    ExecutionStepType,
    HistoryUse,
    Limits,
    MemoryBankDocument,
    Message,
    SafetyViolation,
    ShieldStage,
    Spent,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolResponse,
    TurnRef,
    TurnStatus,
)
from ...schemas.tools import MAX_OUTPUT, TOOL_SECONDS

VERSION = 1


class BoundTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the server runs: an operation of an actor on the bus.

    Attributes:
        name: what the model calls it.
        operation: the operation.
        subject: where its requests go.
        schema: the JSON schema of its arguments.
        idempotent: whether a call whose outcome is unknown may be made again.
        description: what it does, as its actor says.
        seconds: how long a call may take.
        max_output: how many bytes of text it may answer.
        takes: see `ToolOffer`; calls that are ``turns`` are those of a `SubAgent`.
    """

    name: str
    operation: str
    subject: str
    schema: dict[str, Any]
    idempotent: bool = False
    description: str = ""
    seconds: float = TOOL_SECONDS
    max_output: int = MAX_OUTPUT
    takes: Literal["arguments", "request", "turns"] = "arguments"


class AgentRecord(msgspec.Struct, frozen=True):
    """An agent.

    Attributes:
        config: what it was created with.
        tools: what that was resolved to.
        context: the model's, in tokens.
        created: when.
        prices: cost units of a thousand tokens of prompts and of answers.
    """

    config: AgenticSystemCreateRequest
    tools: list[BoundTool]
    context: int
    created: float
    prices: tuple[float, float] = (0.0, 0.0)


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """From where a child turn comes.

    Attributes:
        lineage: the turns above it, from the root on; the last one has started it.
        lane: of that one, which waits to hear of its end.
        handed: whether it was handed the conversation.
    """

    lineage: list[TurnRef]
    lane: str
    handed: bool = False


# Commands.


class Execute(msgspec.Struct, frozen=True, tag_field="c", tag="execute", omit_defaults=True):
    """Take a turn.

    Attributes:
        turn: its id.
        messages: what is said.
        created: when its agent was.
        turn_history: see `AgenticSystemExecuteRequest`.
        interrupt: cancel what runs and waits before it.
        traceparent: of whoever asked for it.
        detached: it has a lane of its own, and no part in the agent's history.
        limits: what it may take, whatever its agent may.
        cause: the event that it is started for.
        reply: the subject on which its answer is told.
        expires: when it is not begun any more, in seconds since the epoch, if its entry does not say so; 0 is never.
        origin: from where it comes, if another turn has started it.
        history: the earlier turns that its model sees, in place of the agent's own; ``turn_history`` in another form.
    """

    turn: str
    messages: list[Message]
    created: float = 0.0
    turn_history: list[AgenticSystemTurn] | None = None
    interrupt: bool = False
    traceparent: str = ""
    detached: bool = False
    limits: Limits = Limits()
    cause: Cause | None = None
    reply: str = ""
    expires: float = 0.0
    origin: Origin | None = None
    history: list[list[Message]] | None = None


class Cancel(msgspec.Struct, frozen=True, tag_field="c", tag="cancel"):
    """Cancel a turn."""

    turn: str
    reason: str


class Delete(msgspec.Struct, frozen=True, tag_field="c", tag="delete"):
    """The agent, as it was, is removed: end all of its turns, and forget it."""

    agent: AgentRecord


class Decide(msgspec.Struct, frozen=True, tag_field="c", tag="decide", omit_defaults=True):
    """A person has decided about a call of a turn."""

    turn: str
    call_id: str
    decision: ApprovalDecision
    reason: str = ""
    arguments: dict[str, Any] | None = None


class Finished(msgspec.Struct, frozen=True, tag_field="c", tag="finished"):
    """A turn that this one started has ended."""

    turn: str
    child: TurnRef


Command = Execute | Cancel | Delete | Decide | Finished


# The journal.


class Record(msgspec.Struct, frozen=True, tag_field="e", kw_only=True, omit_defaults=True):
    """An entry of a journal; ``at`` is its time in seconds since the epoch."""

    at: float


class Began(Record, frozen=True, tag="began", kw_only=True):
    """The turn, and its first step, began.

    Attributes:
        version: of the records.
        agent: the agent as it was then.
        messages: what the user said.
        history: the earlier turns that the model may see, oldest first.
        use: how much of the history that is.
        step: the kind of the first step.
        attempt: the executor's claim on the turn, from 1.
        executor: who made it.
        epoch: see `TurnEvent`.
        deltas: which stream of deltas was there.
        traceparent: of whoever asked for it.
        detached: see `Execute`.
        limits: what the turn may take, together with those that it starts.
        cause: the event that it was started for.
        origin: from where it comes, if another turn has started it.
        calls: of the first step, if that executes tools: the conversation was handed over in an earlier turn.
        entry: where the command stands that it began by; 0 in what an older version wrote.
    """

    version: int = VERSION
    agent: AgentRecord
    turn: str
    messages: list[Message]
    history: list[list[Message]]
    use: HistoryUse
    step: ExecutionStepType
    attempt: int = 1
    executor: str = ""
    epoch: int = 1
    deltas: str = ""
    traceparent: str = ""
    detached: bool = False
    limits: Limits = Limits()
    cause: Cause | None = None
    origin: Origin | None = None
    calls: list[ToolCall] = []
    entry: int = 0


class Claimed(Record, frozen=True, tag="claimed"):
    """Another executor goes on; see `Began`."""

    attempt: int
    executor: str
    epoch: int
    deltas: str = ""


class StepBegan(Record, frozen=True, tag="step"):
    """A step began.

    Attributes:
        kind: its kind.
        calls: those of a tool execution, which from here on may be in flight, unless shields look at them first.
        approvals: the places of those that wait for a decision before they run.
    """

    kind: ExecutionStepType
    calls: list[ToolCall] = []
    approvals: list[int] = []


class Attached(Record, frozen=True, tag="attached"):
    """What the user said, with what its attachments' addresses stood for when the turn began."""

    messages: list[Message]


class CheckBegan(Record, frozen=True, tag="check"):
    """Shields look at what the step that runs has come to."""

    stage: ShieldStage


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a shield found in a message or call, by its place among those that were looked at."""

    place: int
    violation: SafetyViolation


class Checked(Record, frozen=True, tag="checked"):
    """The shields have looked; ``cancelled``: the turn ended before they had."""

    findings: list[Finding] = []
    cancelled: bool = False


class Decided(Record, frozen=True, tag="decided"):
    """A call that waited has a decision; ``arguments``: it runs with these."""

    call: int
    decision: ApprovalDecision
    reason: str = ""
    arguments: dict[str, Any] | None = None


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent is asked for by a call of another one."""

    agent: str
    message: str = ""


class Split(Record, frozen=True, tag="split"):
    """A call of sub-agents is these tasks: each will be a turn."""

    call: int
    tasks: list[Task]


class Delegated(Record, frozen=True, tag="delegated"):
    """A task of a call is a turn now, which may take so much; see `child_id`."""

    call: int
    task: int
    limits: Limits = Limits()


class Returned(Record, frozen=True, tag="returned"):
    """The turn of a task has ended, or cannot be.

    Attributes:
        call: the call.
        task: the task.
        status: how it ended.
        text: what it answered.
        error: why it was cancelled, or failed.
        spent: what it took, together with those that it started.
        back: whether it handed the conversation back.
    """

    call: int
    task: int
    status: TurnStatus
    text: str = ""
    error: ErrorInfo | None = None
    spent: Spent = Spent()
    back: bool = False


class Retrieved(Record, frozen=True, tag="retrieved"):
    """A memory retrieval ended."""

    documents: list[MemoryBankDocument]
    scores: list[float]


class Said(Record, frozen=True, tag="said"):
    """A model inference ended.

    Attributes:
        text: all of it.
        cuts: where each delta that readers may have seen ended, in characters: so that each can be told again.
        tool_calls: what the model wants to be run.
        stop_reason: why it ended; ``not_stopped`` if it was cut off.
        usage: its tokens.
        logprobs: one for each token, if the agent wants them.
    """

    text: str
    cuts: list[int]
    tool_calls: list[ToolCall] = []
    stop_reason: StopReason = StopReason.finished_ok
    usage: TokenUsage | None = None


class Resumed(Record, frozen=True, tag="resumed"):
    """What of a cut-off inference readers may have seen: the next executor goes on from there; see `Said`."""

    text: str
    cuts: list[int]


Outcome = Literal["ok", "failed", "invalid", "unknown", "cancelled", "denied", "blocked"]


class Answered(Record, frozen=True, tag="answered"):
    """A tool call, by its place in the step, has its response; only an ``ok`` one is the tool's own."""

    call: int
    response: ToolResponse
    outcome: Outcome = "ok"


class HistoryCut(Record, frozen=True, tag="history"):
    """So many turns of the history, from the oldest on, are not shown to the model any more; a summary may be."""

    use: HistoryUse


class Ended(Record, frozen=True, tag="ended"):
    """The turn ended."""

    status: TurnStatus
    response: Message | None = None
    error: ErrorInfo | None = None


JournalRecord = (
    Began
    | Claimed
    | StepBegan
    | Attached
    | Retrieved
    | Said
    | Resumed
    | Answered
    | CheckBegan
    | Checked
    | Decided
    | Split
    | Delegated
    | Returned
    | HistoryCut
    | Ended
)


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of the step that runs, or, without any, the seal with which an executor begins its attempt.

    Attributes:
        attempt: whose they are; after the first of a later attempt those of an earlier one count no more, for everybody
            alike, since all read them in the order of their stream.
        index: the index of the first one's event.
        texts: the deltas.
    """

    attempt: int
    index: int
    texts: list[str] = []


class HistoryTurn(msgspec.Struct, frozen=True):
    """What a turn left behind.

    Attributes:
        turn: its id.
        messages: as the model sees them.
        holder: the tool by which the conversation was handed over, if it was and was not handed back.
    """

    turn: str
    messages: list[Message]
    holder: str = ""
