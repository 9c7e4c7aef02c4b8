"""The steps of a turn: what each record of its journal makes of the step that runs, and the events that it stands for. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, uuid5

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseEventType,
    Approval,
    ChildTurn,
    Delegation,
    ExecutionStep,
    ExecutionStepType,
    HistoryPolicy,
    HistoryUse,
    InvalidRequest,
    MemoryRetrievalStep,
    Message,
    ModelInferenceStep,
    Role,
    SafetyFilteringStep,
    SafetyViolation,
    ShieldStage,
    Spent,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolExecutionStep,
    TurnRef,
)
from .budget import added
from .checks import (
    CANCELLED,
    OWN,
    Shields,
    blocking,
    definition,
    main_violation,
    refusal,
    shields_of,
    withheld,
    withholds,
)
from .delegation import HAND_BACK, Child, child_id, sub_agent
from .records import (
    Answered,
    Began,
    CheckBegan,
    Checked,
    Decided,
    Delegated,
    Ended,
    Resumed,
    Retrieved,
    Returned,
    Said,
    Split,
)
from .step import Calls, Check, Chunk, Event, Kind, OpenStep
from .streams import DAY

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


LONGEST = 25 * DAY
"""After what time of a turn no call waits for a decision any more, in seconds."""


class Steps:
    """What has happened in a turn.

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
        attached: whether the addresses of attachments were followed.
        dialog: what was said in the turn, as the model sees it.
        inferences: steps of the model that began.
        invalid: calls with wrong arguments.
        said: what the model said last.
        pending: the calls that it made then.
        done: the calls that tools have answered.
        approvals: what was asked of people, by the id of the call.
        blocked: what a shield has stopped the turn for.
        below: what the turns that it started have taken.
        children: these turns.
        handed: the tool by which the conversation was handed over, and what the other agent answered.
        back: what is said to the agent that the conversation is handed back to.
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
        self.attached = False
        self.dialog: list[Message] = []
        self.inferences = 0
        self.invalid = 0
        self.pending: list[ToolCall] = []
        self.said: Said | None = None
        self.done: list[ToolCall] = []
        self.approvals: dict[str, Approval] = {}
        self.blocked: SafetyViolation | None = None
        self.below = Spent()
        self.children: list[ChildTurn] = []
        self.handed: tuple[str, str] | None = None
        self.back: str | None = None
        self._opened = 0

    @property
    def opening(self) -> Began:
        """The first record.

        Raises:
            InvalidRequest: the turn has not begun.
        """
        if self.began is None:
            raise InvalidRequest("a journal begins with the beginning of its turn")
        return self.began

    @property
    def spent(self) -> Spent:
        """What the turn has taken, together with those that it started and that have ended."""
        prices = self.began.agent.prices if self.began is not None else (0.0, 0.0)
        usage = self.usage
        own = Spent(
            self.inferences,
            usage.prompt_tokens + usage.completion_tokens,
            (usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]) / 1000,
        )
        return added(own, self.below)

    @property
    def parent(self) -> TurnRef | None:
        """The turn that has started it, if one did."""
        origin = self.began.origin if self.began is not None else None
        return origin.lineage[-1] if origin is not None else None

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

    def _running(self, kind: ExecutionStepType) -> OpenStep:
        step = self.step
        if step is None or step.kind is not kind or step.check is not None or step.said is not None:
            raise InvalidRequest(f"no step of kind {kind} runs")
        return step

    def _uuid(self) -> str:
        """Return the id of the next step."""
        self._opened += 1
        return step_uuid(self.opening.agent.config.uuid, self.opening.turn, self._opened - 1)

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

    def _event(self, type_: Type, uuid: str, kind: ExecutionStepType, **fields: object) -> Event:
        event = Event(self.index, Chunk(type_, uuid, kind, **fields))  # type: ignore[arg-type]
        self.index += 1
        return event

    def _progress(self, step: OpenStep, **fields: object) -> Event:
        return self._event(Type.step_progress, step.uuid, step.kind, **fields)

    def _close(self, step: OpenStep, ended: ExecutionStep, **fields: object) -> Event:
        self.steps.append(ended)
        self.step = None
        return self._event(Type.step_end, step.uuid, step.kind, **fields)

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

    def shields(self, stage: ShieldStage) -> Shields:
        """Return which shields look at what in the step that runs; see `shields_of`."""
        if self.step is None or stage in self.step.checked:
            return {}
        return shields_of(self.opening.agent.config, stage, self.step, self.dialog)

    @property
    def withholds(self) -> bool:
        """Whether nobody may see what the model says before shields have."""
        return withholds(self.opening.agent.config.output_shields)

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


def step_uuid(agent: str, turn: str, number: int) -> str:
    """Return the id of a step: the same, whoever executes it."""
    return str(uuid5(NAMESPACE_OID, msgspec.json.encode([agent, turn, number]).decode()))
