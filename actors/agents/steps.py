"""The steps of a turn: what each record of its journal makes of the step that runs, and the events that it stands for. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseEventType,
    Approval,
    ChildTurn,
    Delegation,
    ExecutionStepType,
    InvalidRequest,
    MemoryRetrievalStep,
    Message,
    ModelInferenceStep,
    Role,
    SafetyFilteringStep,
    SafetyViolation,
    ShieldStage,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolExecutionStep,
)
from .budget import added
from .checks import (
    CANCELLED,
    OWN,
    blocking,
    definition,
    main_violation,
    refusal,
    withheld,
    withholds,
)
from .delegation import HAND_BACK, Child, child_id, sub_agent
from .records import (
    Answered,
    CheckBegan,
    Checked,
    Decided,
    Delegated,
    Resumed,
    Retrieved,
    Returned,
    Said,
    Split,
)
from .state import LONGEST, State
from .step import Calls, Check, Event, Kind, OpenStep

Type = AgenticSystemExecuteResponseEventType


StepRecord = (
    Retrieved
    | Resumed
    | Said
    | CheckBegan
    | Checked
    | Decided
    | Split
    | Delegated
    | Returned
    | Answered
)
"""The records of a step that runs."""


class Steps(State):
    """Takes the records of the steps of a turn."""

    def in_step(self, record: StepRecord) -> list[Event]:
        """Take a record of the step that runs; see `Turn.apply`."""
        match record:
            case Retrieved():
                events = self._retrieved(self._running(Kind.memory_retrieval), record)
            case Resumed():
                events = self._resumed(self._running(Kind.model_inference), record)
            case Said():
                events = self._said(self._running(Kind.model_inference), record)
            case CheckBegan():
                events = self._check(record)
            case Checked():
                events = self._checked(record)
            case Decided():
                events = self._decided(self._running(Kind.tool_execution), record)
            case Split() | Delegated() | Returned():
                events = self._of_child(self._running(Kind.tool_execution), record)
            case _:
                events = self._answered(self._running(Kind.tool_execution), record)
        return events

    def open(
        self,
        kind: ExecutionStepType,
        at: float,
        calls: Sequence[ToolCall] = (),
        approvals: Sequence[int] = (),
    ) -> list[Event]:
        """Begin a step; see `StepBegan`."""
        if self.step is not None:
            raise InvalidRequest("a step runs already")
        step = OpenStep(self._uuid(), kind, self.index + 1, self.attempt)
        self.step = step
        events = [self._event(Type.step_start, step.uuid, kind)]
        if kind is Kind.model_inference:
            self.inferences += 1
        elif kind is Kind.safety_filtering:
            step.check = Check(step.uuid, ShieldStage.input)
        elif kind is Kind.tool_execution:
            step.calls = Calls(list(calls), set(approvals))
            if not self.shields(ShieldStage.tool_input):
                events += self._let_go(step, at)
        return events

    def _retrieved(self, step: OpenStep, record: Retrieved) -> list[Event]:
        events = [self._progress(step, retrieved_document=one) for one in record.documents]
        ended = MemoryRetrievalStep(step.uuid, record.documents, record.scores)
        return [*events, self._close(step, ended)]

    # What the model says.

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
        if record.usage is not None:
            self.usage = TokenUsage(
                prompt_tokens=self.usage.prompt_tokens + record.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + record.usage.completion_tokens,
            )
        cut = record.stop_reason is StopReason.not_stopped
        if cut and self.withholds:
            record = _silenced(record)  # What shields have not seen, nobody sees.
        step.said = record
        if cut or not self.shields(ShieldStage.output):
            return self._spoken(step, record)
        return [] if self.withholds else self._speak(step, record)

    def _speak(self, step: OpenStep, record: Said) -> list[Event]:
        """Tell what was said, as far as it was not told."""
        events = self._texts(step, record.text, record.cuts)
        events += [self._progress(step, tool_call=call) for call in record.tool_calls]
        step.told, step.text = True, record.text
        return events

    def _spoken(self, step: OpenStep, record: Said) -> list[Event]:
        """End what the model says."""
        events = [] if step.told else self._speak(step, record)
        # What was cut off and is not continued is said anew.
        cut = record.stop_reason is StopReason.not_stopped
        if not cut and (record.text or record.tool_calls):
            self.dialog.append(message_of(record))
        self.said, self.pending = record, record.tool_calls
        ended = ModelInferenceStep(
            step.uuid, record.text, stop_reason=record.stop_reason, usage=record.usage
        )
        return [*events, self._close(step, ended, stop_reason=record.stop_reason)]

    # What tools do.

    def _let_go(self, step: OpenStep, at: float) -> list[Event]:
        """Let the calls of a step run, but for those about which people are asked."""
        calls, opening = step.calls, self.opening
        calls.waiting -= calls.blocked.keys()
        # A journal is kept for 30 days: what waits must not outlive it.
        calls.expires = min(at + opening.agent.config.approval_timeout, opening.at + LONGEST)
        expires = datetime.fromtimestamp(calls.expires, UTC)
        events = []
        for place, call in enumerate(calls.wanted):
            if place in calls.waiting:
                name = call_id(step, place)
                asked = Approval(opening.agent.config.uuid, opening.turn, name, call, expires)
                self.approvals[name] = asked
                events.append(self._progress(step, approval=asked))
            else:
                calls.released[place] = self.attempt
        return events

    def _decided(self, step: OpenStep, record: Decided) -> list[Event]:
        calls = step.calls
        if record.call not in calls.waiting:
            raise InvalidRequest("a call is decided once, while it waits")
        calls.waiting.discard(record.call)
        calls.decided[record.call] = record
        calls.released[record.call] = self.attempt
        if record.arguments is not None:
            name = calls.wanted[record.call].tool_name
            calls.wanted[record.call] = ToolCall(name, record.arguments)
        name = call_id(step, record.call)
        told = self.approvals[name] = msgspec.structs.replace(
            self.approvals[name],
            tool_call=calls.wanted[record.call],
            decision=record.decision,
            reason=record.reason,
            changed=record.arguments is not None,
        )
        return [self._progress(step, approval=told)]

    def _of_child(self, step: OpenStep, record: Split | Delegated | Returned) -> list[Event]:
        """Take what becomes of a call of sub-agents."""
        calls, place = step.calls, record.call
        if place not in calls.left or (place in calls.children) is isinstance(record, Split):
            raise InvalidRequest("a call of sub-agents is split once, before its turns begin")
        if isinstance(record, Split):
            calls.children[place] = [
                Child(task, child_id(step.uuid, place, number))
                for number, task in enumerate(record.tasks)
            ]
            return []
        child = calls.children[place][record.task]
        if child.returned is not None or (
            child.limits is not None and isinstance(record, Delegated)
        ):
            raise InvalidRequest("a turn begins once, and ends once")
        if isinstance(record, Returned):
            child.returned = record
            self.below = added(self.below, record.spent)
            return []
        child.limits = record.limits
        name = calls.wanted[place].tool_name
        told = ChildTurn(child.task.agent, child.turn, name, step.uuid, place)
        self.children.append(told)
        return [self._progress(step, child_turn=told)]

    def _answered(self, step: OpenStep, record: Answered) -> list[Event]:
        calls = step.calls
        if record.call not in calls.left:
            raise InvalidRequest("each call of a step has one response")
        calls.waiting.discard(record.call)
        calls.responses[record.call] = record.response
        calls.outcomes[record.call] = record.outcome
        self.invalid += record.outcome == "invalid"
        events = []
        if not self._is_held(step, record.call):
            events = [self._tool_answer(step, record.call)]
        if not calls.left and not self.shields(ShieldStage.tool_output):
            events += self._done(step)
        return events

    def _tool_answer(self, step: OpenStep, place: int) -> Event:
        call = place if place in step.calls.children else None
        return self._progress(step, tool_response_delta=step.calls.responses[place], call=call)

    def _is_held(self, step: OpenStep, place: int) -> bool:
        """Tell whether nobody may see an answer before shields have."""
        tool = definition(self.opening.agent.config, step.calls.wanted[place].tool_name)
        shielded = tool is not None and withholds(tool.output_shields)
        return shielded and step.calls.outcomes[place] in OWN

    def _done(self, step: OpenStep) -> list[Event]:
        """End an execution of tools."""
        calls = step.calls
        responses = [calls.responses[place] for place in range(len(calls.wanted))]
        self.done += [
            call for place, call in enumerate(calls.wanted) if calls.outcomes[place] == "ok"
        ]
        self.dialog.append(Message(role=Role.tool, content="", tool_responses=responses))
        self._move(calls)
        return [self._close(step, ToolExecutionStep(step.uuid, calls.wanted, responses))]

    def _move(self, calls: Calls) -> None:
        """Note where the conversation goes, if a call hands it over or back."""
        config, origin = self.opening.agent.config, self.opening.origin
        for place, call in enumerate(calls.wanted):
            sub = sub_agent(config, call.tool_name)
            if calls.outcomes[place] != "ok":
                continue
            if sub is not None and sub.kind is Delegation.hand_off:
                returned = calls.children[place][0].returned
                if returned is not None and not returned.back:
                    self.handed = (call.tool_name, returned.text)
            elif call.tool_name == HAND_BACK and origin is not None and origin.handed:
                self.back = str(call.arguments["message"])

    # What shields look at.

    def _check(self, record: CheckBegan) -> list[Event]:
        step = self.step
        if step is None or step.check is not None or not self.shields(record.stage):
            raise InvalidRequest("there is nothing for shields to look at")
        step.check = Check(self._uuid(), record.stage)
        return [self._event(Type.step_start, step.check.uuid, Kind.safety_filtering)]

    def _checked(self, record: Checked) -> list[Event]:
        step = self.step
        if step is None or step.check is None:
            raise InvalidRequest("no shields look at anything")
        check, step.check = step.check, None
        step.checked.add(check.stage)
        main = CANCELLED if record.cancelled else main_violation(record.findings)
        self.steps.append(SafetyFilteringStep(check.uuid, main))
        kind = Kind.safety_filtering
        events = [
            self._event(Type.step_progress, check.uuid, kind, violation=finding.violation)
            for finding in record.findings
            if finding.violation is not main
        ]
        events.append(self._event(Type.step_end, check.uuid, kind, violation=main))
        found = blocking(record)
        if check.stage is ShieldStage.input:
            self.step, self.blocked = None, next(iter(found.values()), None)
        elif step.said is not None:
            events += self._passed(step, step.said, record, found.get(0))
        elif check.stage is ShieldStage.tool_input:
            step.calls.blocked = found
            events += [] if record.cancelled else self._let_go(step, record.at)
        else:
            events += self._shown(step, record, found)
        return events

    def _passed(
        self, step: OpenStep, said: Said, record: Checked, violation: SafetyViolation | None
    ) -> list[Event]:
        """End what the model said, now that shields have looked at it."""
        if not step.told:
            step.first = self.index
        if violation is None and not (record.cancelled and self.withholds):
            return self._spoken(step, said)
        events = self._spoken(step, _silenced(said))
        if violation is not None:
            self.blocked = violation
            self.dialog.append(refusal(violation))
        return events

    def _shown(
        self, step: OpenStep, record: Checked, found: Mapping[int, SafetyViolation]
    ) -> list[Event]:
        """Tell what tools answered, now that shields have looked at it."""
        calls = step.calls
        events = []
        for place, response in sorted(calls.responses.items()):
            held = self._is_held(step, place)
            violation = CANCELLED if record.cancelled and held else found.get(place)
            if violation is not None:
                calls.responses[place] = withheld(response, violation)
            if held:
                events.append(self._tool_answer(step, place))
        return events + self._done(step)


def message_of(said: Said) -> Message:
    """Return what the model said as a message."""
    return Message(role=Role.assistant, content=said.text, tool_calls=said.tool_calls)


def _silenced(said: Said) -> Said:
    """Return what was said without a word of it."""
    return msgspec.structs.replace(said, text="", cuts=[], tool_calls=[])


def call_id(step: OpenStep, place: int) -> str:
    """Return what people call a call of a step."""
    return f"{step.uuid}:{place}"
