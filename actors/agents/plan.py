"""What to do next in a turn, by what has happened in it; no I/O.

Shields on what the user said first; retrieval, where the agent has memory banks; then the model; its calls of tools that the
server runs, all of one step at once, but for those that wait for a person; the model again; until it answers, wants a tool of the
client's, has taken its steps, or is stopped by a shield.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...schemas import (
    AylluError,
    ExecutionStep,
    ExecutionStepType,
    HistoryPolicy,
    InvalidRequest,
    Message,
    ModelInferenceStep,
    Role,
    SafetyFilteringStep,
    ShieldStage,
    StepLimitExceeded,
    StopReason,
    ToolCall,
    ToolExecutionStep,
    ToolResponse,
    TurnStatus,
)
from .allotting import is_delegation, next_delegation
from .budget import exceeded
from .checks import refusal
from .history import retrieves, to_fetch
from .records import Answered, CheckBegan, Checked, JournalRecord, Retrieved, Said
from .step import Calls, Kind, OpenStep
from .turn import Turn

MAX_INVALID = 3
"""How many calls with wrong arguments go back to the model."""
MAX_ATTEMPTS = 5
"""How often executors may take up a turn that does not move."""


@dataclass(frozen=True, slots=True)
class BeginStep:
    """Write that a step begins."""

    kind: ExecutionStepType
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Look into the memory banks."""


@dataclass(frozen=True, slots=True)
class Summarise:
    """Let the model sum up turns that it will not see."""

    turns: Sequence[Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Infer:
    """Let the model go on after what it has said already."""

    said: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Fetch what the addresses of the user's attachments stand for."""


@dataclass(frozen=True, slots=True)
class BeginCheck:
    """Write that shields look at what the step that runs has come to."""

    stage: ShieldStage


@dataclass(frozen=True, slots=True)
class RunShields:
    """Let shields look."""

    stage: ShieldStage


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run the calls of a step that may run and have no response.

    Attributes:
        calls: the calls, with their places.
        in_flight: the places of those that may have been in flight when an executor died.
    """

    calls: tuple[tuple[int, ToolCall], ...]
    in_flight: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Delegate:
    """Do what there is to do for calls of sub-agents; see `next_delegation`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until people have decided, or turns have ended, but no longer than to ``until``, in seconds since the epoch."""

    until: float


@dataclass(frozen=True, slots=True)
class End:
    """Write that the turn has ended; ``lost``: its command becomes a dead letter."""

    status: TurnStatus
    response: Message | None = None
    error: AylluError | None = None
    lost: bool = False


Action = (
    BeginStep
    | Attach
    | Retrieve
    | Summarise
    | Infer
    | BeginCheck
    | RunShields
    | RunTools
    | Delegate
    | Wait
    | End
)


def next_action(turn: Turn) -> Action | None:
    """Return what the executor must do; None when the turn has ended."""
    if turn.ended is not None:
        return None
    if turn.still >= MAX_ATTEMPTS:
        error = AylluError(f"{MAX_ATTEMPTS} executors were lost over this turn")
        return End(TurnStatus.failed, error=error, lost=True)
    if not turn.attached and to_fetch(turn.opening.messages):
        return Attach()
    if turn.step is not None:
        return _go_on(turn, turn.step)
    return _after(turn, turn.steps[-1])


def _after(turn: Turn, last: ExecutionStep) -> Action:
    if turn.blocked is not None:
        return End(TurnStatus.completed, refusal(turn.blocked))
    if isinstance(last, ModelInferenceStep):
        return _after_inference(turn)
    if isinstance(last, ToolExecutionStep):
        return _after_tools(turn)
    config = turn.opening.agent.config
    if isinstance(last, SafetyFilteringStep) and turn.opening.calls:
        return BeginStep(Kind.tool_execution, tuple(turn.opening.calls))
    if isinstance(last, SafetyFilteringStep) and retrieves(config, turn.opening.messages):
        return BeginStep(Kind.memory_retrieval)
    return BeginStep(Kind.model_inference)


def _go_on(turn: Turn, step: OpenStep) -> Action:
    if step.check is not None:
        return RunShields(step.check.stage)
    if step.kind is Kind.memory_retrieval:
        return Retrieve()
    if step.kind is Kind.tool_execution:
        return _go_on_with_tools(turn, step)
    if step.said is not None:
        return BeginCheck(ShieldStage.output)
    use = turn.use
    if use.policy is HistoryPolicy.summarise and use.left_out and use.summary is None:
        return Summarise(turn.opening.history[: turn.hidden])
    return Infer(step.text)


def _go_on_with_tools(turn: Turn, step: OpenStep) -> Action:
    calls = step.calls
    if turn.shields(ShieldStage.tool_input):
        return BeginCheck(ShieldStage.tool_input)
    if not calls.left:
        return BeginCheck(ShieldStage.tool_output)
    if next_delegation(turn, turn.opening.at) is not None:
        return Delegate()
    ready = [place for place in calls.ready if not is_delegation(turn, calls, place)]
    if not ready:
        return Wait(min(calls.expires, turn.deadline) if calls.waiting else turn.deadline)
    in_flight = frozenset(place for place in ready if calls.released[place] < turn.attempt)
    return RunTools(tuple((place, calls.wanted[place]) for place in ready), in_flight)


def _after_inference(turn: Turn) -> Action:
    said = turn.said
    if said is not None and said.stop_reason is StopReason.not_stopped:
        return _inference(turn)  # It was cut off, and could not be continued.
    # A call of a tool that nobody has declared goes back to the model, too.
    calls = tuple(call for call in turn.pending if not turn.is_client_tool(call.tool_name))
    if calls:
        return BeginStep(Kind.tool_execution, calls)
    return _answer(turn)


def _after_tools(turn: Turn) -> Action:
    if turn.handed is not None or turn.back is not None:
        text = turn.handed[1] if turn.handed is not None else turn.back
        response = Message(role=Role.assistant, content=text or "")
        return End(TurnStatus.completed, response)
    if turn.invalid > MAX_INVALID:
        error = InvalidRequest(f"the model called tools wrongly {turn.invalid} times")
        return End(TurnStatus.failed, error=error)
    if any(turn.is_client_tool(call.tool_name) for call in turn.pending):
        return _answer(turn)
    return _inference(turn)


def _inference(turn: Turn) -> Action:
    most = turn.opening.agent.config.max_steps
    if turn.inferences >= most:
        error = StepLimitExceeded(f"the turn has taken {most} steps of the model")
        return End(TurnStatus.failed, error=error)
    over = exceeded(turn.opening.limits, turn.spent)
    if over is not None:
        return End(TurnStatus.failed, error=over)
    return BeginStep(Kind.model_inference)


def _answer(turn: Turn) -> End:
    """End with what the model said last, and with the calls that are the client's."""
    text = turn.said.text if turn.said is not None else ""
    calls = [call for call in turn.pending if turn.is_client_tool(call.tool_name)]
    response = Message(role=Role.assistant, content=text, tool_calls=calls)
    return End(TurnStatus.completed, response)


def closing_record(turn: Turn, at: float, said: Said | None) -> JournalRecord | None:
    """Return the next record that closes the step that runs when the turn is cancelled; None when it is closed.

    Args:
        turn: the turn.
        at: the time.
        said: what an inference has said so far.
    """
    step = turn.step
    if step is None:
        return None
    if step.check is not None:
        return Checked(at=at, cancelled=True)
    if step.kind is Kind.memory_retrieval:
        return Retrieved(at=at, documents=[], scores=[])
    if step.said is not None:
        return CheckBegan(at=at, stage=ShieldStage.output)
    if step.kind is Kind.model_inference:
        text, cuts = step.text, step.cuts
        return said or Said(at=at, text=text, cuts=cuts, stop_reason=StopReason.not_stopped)
    return _closing_call(step.calls, at)


def _closing_call(calls: Calls, at: float) -> JournalRecord:
    if not calls.left:
        return CheckBegan(at=at, stage=ShieldStage.tool_output)
    place = calls.left[0]
    name = calls.wanted[place].tool_name
    return Answered(
        at=at,
        call=place,
        response=ToolResponse(name, "The turn was cancelled."),
        outcome="cancelled",
    )
