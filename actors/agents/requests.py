"""From the request of a turn to the command that stands on the bus; no I/O."""

from __future__ import annotations

from ...schemas import AgenticSystemExecuteRequest, InvalidRequest, Role, WhenBusy
from .records import Execute


def check_messages(request: AgenticSystemExecuteRequest) -> None:
    """Refuse what no turn can begin with.

    Raises:
        InvalidRequest: there is no message, or one is not the user's, or none of its tools'.
    """
    if not request.messages:
        raise InvalidRequest("messages: a turn begins with at least one")
    for number, message in enumerate(request.messages):
        if message.role not in (Role.user, Role.tool):
            raise InvalidRequest(
                f"messages[{number}].role: a turn begins with messages of the roles user and tool, not {message.role}"
            )
        if not message.content and not message.tool_responses:
            raise InvalidRequest(f"messages[{number}]: it is empty")


def execute_of(
    request: AgenticSystemExecuteRequest, turn: str, *, created: float = 0.0, traceparent: str = ""
) -> Execute:
    """Return the command of a request.

    Args:
        request: what is asked for.
        turn: the turn's id.
        created: when its agent was created; 0 where that is not known.
        traceparent: of whoever asks.
    """
    history = request.turn_history
    if request.detached and history is None:
        history = []
    return Execute(
        turn=turn,
        messages=request.messages,
        created=created,
        turn_history=history,
        interrupt=request.when_busy is WhenBusy.interrupt,
        traceparent=traceparent,
        detached=request.detached,
        limits=request.limits,
        cause=request.cause,
    )
