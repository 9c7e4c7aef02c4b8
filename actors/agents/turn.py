"""A turn as a state machine that does no I/O: records of its journal go in, events and the next action come out.

The same machine drives an executor, tells a reader what has happened, and folds a journal after a crash: whoever has applied
the same records knows the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import NAMESPACE_OID, uuid5

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseEventType,
    AgenticSystemExecuteResponseStreamChunk,
    AgenticSystemTurn,
    AylluError,
    Cancelled,
    ErrorInfo,
    ExecutionStep,
    ExecutionStepType,
    HistoryPolicy,
    HistoryUse,
    InvalidRequest,
    MemoryBankDocument,
    MemoryRetrievalStep,
    Message,
    ModelInferenceStep,
    Role,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolExecutionStep,
    ToolResponse,
    TurnStatus,
)
from .records import (
    Answered,
    Began,
    BoundTool,
    Claimed,
    Ended,
    HistoryCut,
    JournalRecord,
    Resumed,
    Retrieved,
    Said,
    StepBegan,
)

Chunk = AgenticSystemExecuteResponseStreamChunk
Kind = ExecutionStepType


class Event(msgspec.Struct, frozen=True):
    """An event of a turn under its index."""

    index: int
    chunk: Chunk


@dataclass(slots=True)
class OpenStep:
    """The step that runs.

    Attributes:
        uuid: its id.
        kind: its kind.
        first: the index of its first event after the start.
        attempt: whose attempt began it.
        calls: of a tool execution.
        responses: of those calls that have one, by place.
        text: of an inference, what is known to have been said by an earlier attempt.
        cuts: see `Said`.
    """

    uuid: str
    kind: ExecutionStepType
    first: int
    attempt: int
    calls: list[ToolCall] = field(default_factory=list)
    responses: dict[int, ToolResponse] = field(default_factory=dict)
    text: str = ""
    cuts: list[int] = field(default_factory=list)


class Turn:
    """A turn; feed it with `apply`.

    Attributes:
        began: its first record; None before it.
        attempt: the executor's claim that holds.
        still: claims since the journal last moved.
        epoch: see `TurnEvent`.
        deltas: which stream of deltas the executor that holds the claim found.
        index: of the next event.
        steps: those that have ended.
        step: the one that runs.
        ended: how the turn ended.
        usage: tokens of all steps.
        use: how much of the history the model sees.
        dialog: what was said in the turn, as the model sees it.
        inferences: steps of the model that began.
        invalid: calls with wrong arguments.
        said: what the model said last.
        pending: the calls that it made then.
    """

    def __init__(self) -> None:
        self.began: Began | None = None
        self.attempt = 0
        self.still = 0
        self.epoch = 0
        self.deltas = ""
        self.index = 0
        self.steps: list[ExecutionStep] = []
        self.step: OpenStep | None = None
        self.ended: Ended | None = None
        self.usage = TokenUsage(prompt_tokens=0, completion_tokens=0)
        self.use = HistoryUse(policy=HistoryPolicy.window)
        self.dialog: list[Message] = []
        self.inferences = 0
        self.invalid = 0
        self.pending: list[ToolCall] = []
        self.said: Said | None = None

    # What has happened.

    @property
    def opening(self) -> Began:
        """The first record.

        Raises:
            InvalidRequest: the turn has not begun.
        """
        if self.began is None:
            raise InvalidRequest("a journal begins with the beginning of its turn")
        return self.began

    def apply(self, record: JournalRecord) -> list[Event]:
        """Take the next record of the journal, and return the events that it stands for.

        Raises:
            InvalidRequest: no journal has this record here.
        """
        if self.ended is not None:
            raise InvalidRequest("nothing follows the end of a turn")
        if (self.began is None) != isinstance(record, Began):
            raise InvalidRequest("a journal begins with the beginning of its turn, once")
        self.still = self.still + 1 if isinstance(record, Claimed) else 0
        events: list[Event] = []
        match record:
            case Began():
                events = self._begin(record)
            case Claimed():
                self.attempt, self.epoch = record.attempt, record.epoch
                self.deltas = record.deltas
            case StepBegan():
                events = [self._open(record.kind, record.calls)]
            case HistoryCut():
                self.use = record.use
            case Ended():
                self.ended, self.step = record, None
            case Retrieved():
                events = self._retrieved(self._running(Kind.memory_retrieval), record)
            case Resumed():
                events = self._resumed(self._running(Kind.model_inference), record)
            case Said():
                events = self._said(self._running(Kind.model_inference), record)
            case _:
                events = self._answered(self._running(Kind.tool_execution), record)
        return events

    def _begin(self, record: Began) -> list[Event]:
        self.began = record
        self.attempt, self.epoch, self.deltas = record.attempt, record.epoch, record.deltas
        self.use = record.use
        self.dialog = list(record.messages)
        return [self._open(record.step)]

    def _running(self, kind: ExecutionStepType) -> OpenStep:
        if self.step is None or self.step.kind is not kind:
            raise InvalidRequest(f"no step of kind {kind} runs")
        return self.step

    def _open(self, kind: ExecutionStepType, calls: Sequence[ToolCall] = ()) -> Event:
        if self.step is not None:
            raise InvalidRequest("a step runs already")
        number = len(self.steps)
        uuid = step_uuid(self.opening.agent.config.uuid, self.opening.turn, number)
        self.step = OpenStep(uuid, kind, self.index + 1, self.attempt, list(calls))
        if kind is Kind.model_inference:
            self.inferences += 1
        return self._event(self.step, AgenticSystemExecuteResponseEventType.step_start)

    def _event(
        self, step: OpenStep, type_: AgenticSystemExecuteResponseEventType, **fields: object
    ) -> Event:
        event = Event(self.index, Chunk(type_, step.uuid, step.kind, **fields))  # type: ignore[arg-type]
        self.index += 1
        return event

    def _progress(self, step: OpenStep, **fields: object) -> Event:
        return self._event(step, AgenticSystemExecuteResponseEventType.step_progress, **fields)

    def _close(self, step: OpenStep, ended: ExecutionStep, **fields: object) -> Event:
        self.steps.append(ended)
        self.step = None
        return self._event(step, AgenticSystemExecuteResponseEventType.step_end, **fields)

    def _retrieved(self, step: OpenStep, record: Retrieved) -> list[Event]:
        events = [self._progress(step, retrieved_document=one) for one in record.documents]
        ended = MemoryRetrievalStep(step.uuid, record.documents, record.scores)
        return [*events, self._close(step, ended)]

    def _texts(self, step: OpenStep, text: str, cuts: Sequence[int]) -> list[Event]:
        """Return the deltas of a text from the first one that is not counted yet."""
        told = self.index - step.first
        bounds = [0, *cuts]
        return [
            self._progress(step, response_text_delta=text[bounds[number] : bounds[number + 1]])
            for number in range(told, len(cuts))
        ]

    def _resumed(self, step: OpenStep, record: Resumed) -> list[Event]:
        step.text, step.cuts = record.text, record.cuts
        return self._texts(step, record.text, record.cuts)

    def _said(self, step: OpenStep, record: Said) -> list[Event]:
        events = self._texts(step, record.text, record.cuts)
        events += [self._progress(step, tool_call=call) for call in record.tool_calls]
        if record.usage is not None:
            self.usage = TokenUsage(
                prompt_tokens=self.usage.prompt_tokens + record.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + record.usage.completion_tokens,
            )
        # What was cut off and is not continued is said anew.
        cut = record.stop_reason is StopReason.not_stopped
        if not cut and (record.text or record.tool_calls):
            self.dialog.append(_spoken(record))
        self.said = record
        self.pending = record.tool_calls
        ended = ModelInferenceStep(
            step.uuid, record.text, stop_reason=record.stop_reason, usage=record.usage
        )
        return [*events, self._close(step, ended, stop_reason=record.stop_reason)]

    def _answered(self, step: OpenStep, record: Answered) -> list[Event]:
        if record.call in step.responses or record.call >= len(step.calls):
            raise InvalidRequest("each call of a step has one response")
        step.responses[record.call] = record.response
        self.invalid += record.outcome == "invalid"
        events = [self._progress(step, tool_response_delta=record.response)]
        if len(step.responses) == len(step.calls):
            responses = [step.responses[number] for number in range(len(step.calls))]
            self.dialog.append(Message(role=Role.tool, content="", tool_responses=responses))
            ended = ToolExecutionStep(step.uuid, step.calls, responses)
            events.append(self._close(step, ended))
        return events

    def tool(self, name: str) -> BoundTool | None:
        """Return a tool that the server runs."""
        return next((tool for tool in self.opening.agent.tools if tool.name == name), None)

    def is_client_tool(self, name: str) -> bool:
        """Tell whether a tool is declared, and left to the client."""
        declared = (tool.tool_name for tool in self.opening.agent.config.available_tools)
        return self.tool(name) is None and name in declared

    @property
    def hidden(self) -> int:
        """Turns of the history that the model does not see, from the oldest on."""
        return len(self.opening.history) - self.use.turns

    @property
    def found(self) -> list[MemoryBankDocument]:
        """What was found in memory banks."""
        steps = [step for step in self.steps if isinstance(step, MemoryRetrievalStep)]
        return [document for step in steps for document in step.documents]

    @property
    def visible_history(self) -> list[Message]:
        """The messages of earlier turns that the model sees."""
        turns = self.opening.history[self.hidden :]
        return [message for turn in turns for message in turn]

    # What it came to.

    @property
    def status(self) -> TurnStatus:
        """Where the turn is."""
        if self.ended is not None:
            return self.ended.status
        return TurnStatus.queued if self.began is None else TurnStatus.running

    def whole(self) -> AgenticSystemTurn:
        """Return a turn that was completed, in the draft's form.

        Raises:
            AylluError: why it was not.
        """
        if self.ended is None or self.ended.response is None:
            raise error_of(self.ended.error if self.ended else None)
        return AgenticSystemTurn(
            user_messages=self.opening.messages,
            steps=self.steps,
            response_message=self.ended.response,
            turn_id=self.opening.turn,
            usage=self.usage,
            history=self.use,
        )

    def left_behind(self) -> list[Message]:
        """Return what later turns see of this one: nothing if it failed before the model said anything."""
        if self.ended is None or self.ended.status is TurnStatus.failed:
            return []
        dialog = list(self.dialog)
        said = self.said
        if said is not None and said.stop_reason is StopReason.not_stopped and said.text:
            dialog.append(_spoken(said))
        return dialog if len(dialog) > len(self.opening.messages) else []


def _spoken(said: Said) -> Message:
    return Message(role=Role.assistant, content=said.text, tool_calls=said.tool_calls)


def error_of(info: ErrorInfo | None) -> AylluError:
    """Return the error that a turn ended in."""
    from ...schemas import error_from

    return error_from(info) if info is not None else Cancelled("the turn was cancelled")


def step_uuid(agent: str, turn: str, number: int) -> str:
    """Return the id of a step: the same, whoever executes it."""
    return str(uuid5(NAMESPACE_OID, msgspec.json.encode([agent, turn, number]).decode()))
