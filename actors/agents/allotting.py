"""What is to be done next for calls of sub-agents, by what has happened; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas import ApprovalDecision, AylluError, Limits, Spent
from .budget import allotted, exceeded, left, levels, without
from .delegation import Child, refusal_of
from .step import Calls
from .turn import Turn


@dataclass(frozen=True, slots=True)
class SplitCall:
    """Split a call into tasks, or answer why it cannot be."""

    place: int


@dataclass(frozen=True, slots=True)
class BeginTask:
    """Start the turn of a task, which may take so much."""

    place: int
    number: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class RefuseTask:
    """Write why the turn of a task cannot be started."""

    place: int
    number: int
    error: AylluError


@dataclass(frozen=True, slots=True)
class Gather:
    """Write the answer of a call whose turns have all ended."""

    place: int


Delegating = SplitCall | BeginTask | RefuseTask | Gather


def next_delegation(turn: Turn, now: float) -> Delegating | None:
    """Return what is to be done for the calls of sub-agents that may run; None while they wait for turns, or none is left.

    Args:
        turn: the turn.
        now: the time, in seconds since the epoch.
    """
    step = turn.step
    calls = step.calls if step is not None else Calls([], set())
    places = [place for place in calls.ready if is_delegation(turn, calls, place)]
    for place in places:
        children = calls.children.get(place)
        if children is None:
            return SplitCall(place)
        if all(child.returned is not None for child in children):
            return Gather(place)
    for place in places:
        number = _next_task(turn, calls, place)
        todo = _begun(turn, calls, place, number, now) if number is not None else None
        if todo is not None:
            return todo
    return None


def is_delegation(turn: Turn, calls: Calls, place: int) -> bool:
    """Tell whether a call is turns of other agents, or hands the conversation back; one that is not to be made is neither."""
    tool, decided = turn.tool(calls.wanted[place].tool_name), calls.decided.get(place)
    denied = decided is not None and decided.decision is ApprovalDecision.deny
    return tool is not None and tool.takes == "turns" and not denied


def _next_task(turn: Turn, calls: Calls, place: int) -> int | None:
    """Return the next task of a call that may begin; None where as many run as may."""
    children = calls.children[place]
    sub = turn.sub_agent(calls.wanted[place].tool_name)
    most = sub.at_once if sub is not None else 1
    if sum(child.runs for child in children) >= most:
        return None
    waiting = (number for number, child in enumerate(children) if _waits(child))
    return next(waiting, None)


def _waits(child: Child) -> bool:
    return child.limits is None and child.returned is None


def _begun(turn: Turn, calls: Calls, place: int, number: int, now: float) -> Delegating | None:
    """Return what becomes of a task that may begin; None where all is allotted to turns that run: they may leave something."""
    opening = turn.opening
    child = calls.children[place][number]
    refused = refusal_of(turn.lineage, child.task.agent, child.turn, levels(opening.limits))
    if refused is not None:
        return RefuseTask(place, number, refused)
    pool = left(opening.limits, turn.spent, now - opening.at)
    for _, _, other in calls.running_children:
        pool = without(pool, other.limits or Limits())
    waiting = sum(_waits(one) for place in calls.left for one in calls.children.get(place, ()))
    sub = turn.sub_agent(calls.wanted[place].tool_name)
    limits = allotted(pool, sub.limits if sub is not None else Limits(), waiting)
    over = exceeded(limits, Spent())
    if over is None:
        return BeginTask(place, number, limits)
    return None if calls.running_children else RefuseTask(place, number, over)
