"""A turn as a state machine that does no I/O: records of its journal go in, events and the next action come out.

The same machine drives an executor, tells a reader what has happened, and folds a journal after a crash: whoever has applied
the same records knows the same.
"""

from __future__ import annotations

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseEventType,
    AgenticSystemTurn,
    Approval,
    AylluError,
    Cancelled,
    ErrorInfo,
    ExecutionStepType,
    HistoryUse,
    InvalidRequest,
    MemoryBankDocument,
    MemoryRetrievalStep,
    Message,
    Role,
    StopReason,
    SubAgent,
    TurnRef,
    TurnStatus,
)
from .delegation import HAND_BACK, HAND_BACK_TOOL, Child, sub_agent
from .records import (
    Attached,
    Began,
    BoundTool,
    Claimed,
    Ended,
    HistoryCut,
    JournalRecord,
    StepBegan,
)
from .state import LONGEST
from .step import Event
from .steps import Steps, call_id, message_of

Type = AgenticSystemExecuteResponseEventType


class Turn(Steps):
    """A turn; feed it with `apply`."""

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
                events = self.open(record.kind, record.at, record.calls, record.approvals)
            case Attached():
                self.attached, self.dialog = True, list(record.messages)
            case HistoryCut():
                self.use = record.use
            case Ended():
                self.ended, self.step = record, None
            case _:
                events = self.in_step(record)
        return events

    def _begin(self, record: Began) -> list[Event]:
        self.began = record
        self.attempt, self.epoch, self.deltas = record.attempt, record.epoch, record.deltas
        self.use = record.use
        self.dialog = list(record.messages)
        calls = record.calls if record.step is ExecutionStepType.tool_execution else ()
        return self.open(record.step, record.at, calls)

    # What it came to.

    def tool(self, name: str) -> BoundTool | None:
        """Return a tool that the server runs."""
        found = next((tool for tool in self.opening.agent.tools if tool.name == name), None)
        if found is None and name == HAND_BACK and self.was_handed:
            return HAND_BACK_TOOL
        return found

    def sub_agent(self, name: str) -> SubAgent | None:
        """Return the sub-agents that a tool stands for, if it does."""
        return sub_agent(self.opening.agent.config, name)

    @property
    def running_children(self) -> list[tuple[int, int, Child]]:
        """The turns that run for calls of the step that runs; see `Calls.running_children`."""
        return self.step.calls.running_children if self.step is not None else []

    @property
    def was_handed(self) -> bool:
        """Whether another agent has handed the conversation over to this one."""
        origin = self.opening.origin
        return origin is not None and origin.handed

    @property
    def lineage(self) -> list[TurnRef]:
        """The turns above this one, and itself."""
        opening, origin = self.opening, self.opening.origin
        own = TurnRef(opening.agent.config.uuid, opening.turn)
        return [*(origin.lineage if origin is not None else ()), own]

    @property
    def deadline(self) -> float:
        """When the turn must have ended, in seconds since the epoch."""
        opening = self.opening
        # A journal is kept for 30 days: no turn must outlive it.
        return opening.at + min(opening.limits.seconds or LONGEST, LONGEST)

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
    def told_use(self) -> HistoryUse:
        """How much of the history the model sees, for readers: no shield has looked at what it makes of the rest."""
        return msgspec.structs.replace(self.use, summary=None) if self.withholds else self.use

    @property
    def visible_turns(self) -> list[list[Message]]:
        """The earlier turns that the model sees, each with its messages."""
        return self.opening.history[self.hidden :]

    @property
    def visible_history(self) -> list[Message]:
        """The messages of earlier turns that the model sees."""
        return [message for turn in self.visible_turns for message in turn]

    @property
    def status(self) -> TurnStatus:
        """Where the turn is."""
        if self.ended is not None:
            return self.ended.status
        if self.began is None:
            return TurnStatus.queued
        if self.step is not None and self.waiting and not self.step.calls.ready:
            return TurnStatus.waiting
        return TurnStatus.running

    @property
    def waiting(self) -> list[Approval]:
        """The calls that wait for a decision."""
        step = self.step
        places = sorted(step.calls.waiting) if step is not None else []
        names = [call_id(step, place) for place in places if step is not None]
        return [self.approvals[name] for name in names if name in self.approvals]

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
            history=self.told_use,
        )

    @property
    def holder(self) -> str:
        """The tool by which the conversation is handed over when this turn has ended; empty where this agent has it."""
        if self.handed is not None:
            return self.handed[0]
        # Where the other agent had no say, since a shield or a cancel came first, it keeps the conversation.
        calls = [] if self.inferences else self.opening.calls
        return calls[0].tool_name if calls else ""

    def left_behind(self) -> list[Message]:
        """Return what later turns see of this one: nothing if it failed before the model said anything."""
        if self.ended is None or self.ended.status is TurnStatus.failed:
            return []
        dialog = list(self.dialog)
        said = self.said
        if said is not None and said.stop_reason is StopReason.not_stopped and said.text:
            dialog.append(message_of(said))
        if self.handed is not None:
            # Beside the answer, the way that it came says nothing.
            dialog = [
                *dialog[: len(self.opening.messages)],
                Message(role=Role.assistant, content=self.handed[1]),
            ]
        return dialog if len(dialog) > len(self.opening.messages) else []


def error_of(info: ErrorInfo | None) -> AylluError:
    """Return the error that a turn ended in."""
    from ...schemas import error_from

    return error_from(info) if info is not None else Cancelled("the turn was cancelled")
