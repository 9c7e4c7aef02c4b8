"""What to do next in a turn, by what has happened in it; no I/O.

Retrieval first, where the agent has memory banks; then the model; its calls of tools that the server runs, all of one step at
once; the model again; until it answers, wants a tool of the client's, or has taken its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...schemas import (
    AylluError,
    ExecutionStepType,
    HistoryPolicy,
    InvalidRequest,
    Message,
    ModelInferenceStep,
    Role,
    StepLimitExceeded,
    StopReason,
    ToolCall,
    ToolExecutionStep,
    ToolResponse,
    TurnStatus,
)
from .records import Answered, JournalRecord, Retrieved, Said
from .turn import Kind, OpenStep, Turn

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
class RunTools:
    """Run the calls of a step that have no response; some may have been in flight when an executor died."""

    calls: tuple[tuple[int, ToolCall], ...]
    in_flight: bool


@dataclass(frozen=True, slots=True)
class End:
    """Write that the turn has ended; ``lost``: its command becomes a dead letter."""

    status: TurnStatus
    response: Message | None = None
    error: AylluError | None = None
    lost: bool = False


Action = BeginStep | Retrieve | Summarise | Infer | RunTools | End


def next_action(turn: Turn) -> Action | None:
    """Return what the executor must do; None when the turn has ended."""
    if turn.ended is not None:
        return None
    if turn.still >= MAX_ATTEMPTS:
        error = AylluError(f"{MAX_ATTEMPTS} executors were lost over this turn")
        return End(TurnStatus.failed, error=error, lost=True)
    if turn.step is not None:
        return _go_on(turn, turn.step)
    last = turn.steps[-1]
    if isinstance(last, ModelInferenceStep):
        return _after_inference(turn)
    if isinstance(last, ToolExecutionStep):
        return _after_tools(turn)
    return BeginStep(Kind.model_inference)


def _go_on(turn: Turn, step: OpenStep) -> Action:
    if step.kind is Kind.memory_retrieval:
        return Retrieve()
    if step.kind is Kind.tool_execution:
        left = [one for one in enumerate(step.calls) if one[0] not in step.responses]
        return RunTools(tuple(left), in_flight=step.attempt < turn.attempt)
    use = turn.use
    if use.policy is HistoryPolicy.summarise and use.left_out and use.summary is None:
        return Summarise(turn.opening.history[: turn.hidden])
    return Infer(step.text)


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
    return BeginStep(Kind.model_inference)


def _answer(turn: Turn) -> End:
    """End with what the model said last, and with the calls that are the client's."""
    text = turn.said.text if turn.said is not None else ""
    calls = [call for call in turn.pending if turn.is_client_tool(call.tool_name)]
    response = Message(role=Role.assistant, content=text, tool_calls=calls)
    return End(TurnStatus.completed, response)


def closing_records(turn: Turn, at: float, said: Said | None) -> list[JournalRecord]:
    """Return the records that close the step that runs when the turn is cancelled.

    Args:
        turn: the turn.
        at: the time.
        said: what an inference has said so far.
    """
    step = turn.step
    if step is None:
        return []
    if step.kind is Kind.memory_retrieval:
        return [Retrieved(at=at, documents=[], scores=[])]
    if step.kind is Kind.model_inference:
        text, cuts = step.text, step.cuts
        return [said or Said(at=at, text=text, cuts=cuts, stop_reason=StopReason.not_stopped)]
    return [
        Answered(
            at=at,
            call=number,
            response=ToolResponse(call.tool_name, "The turn was cancelled."),
            outcome="cancelled",
        )
        for number, call in enumerate(step.calls)
        if number not in step.responses
    ]
