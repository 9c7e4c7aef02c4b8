"""Calls that wait for a person: which they are, and what was decided about them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio

from ...schemas import ApprovalDecision, ToolCall, encode
from ..tools.checking import problem_with
from .journal import Journal
from .records import Decide, Decided
from .steps import call_id
from .turn import Turn


def needing_approval(turn: Turn, calls: Sequence[ToolCall]) -> list[int]:
    """Return the places of the calls about which people are asked: not of those that cannot be run as they are."""
    required = turn.opening.agent.config.require_approval
    found = []
    for place, call in enumerate(calls):
        tool = turn.tool(call.tool_name)
        if tool is None or call.tool_name not in required:
            continue
        if problem_with(tool.schema, call.arguments) is None:
            found.append(place)
    return found


class Decisions:
    """What people have decided about a turn, and nobody has written down yet.

    Attributes:
        news: set when there is something.
    """

    def __init__(self) -> None:
        self.news = anyio.Event()
        self._commands: list[Decide] = []

    def add(self, command: Decide) -> None:
        """Keep a decision."""
        self._commands.append(command)
        self.news.set()

    def concern(self, turn: Turn) -> bool:
        """Tell whether something was decided about a call that waits."""
        return any(_place_of(turn, command.call_id) is not None for command in self._commands)

    async def write(self, journal: Journal) -> list[int]:
        """Write down what was decided about calls that wait, and return their places; the first decision holds.

        What comes too late is a denial.
        """
        self.news = anyio.Event()
        places = []
        while self._commands:
            command = self._commands.pop(0)
            place = _place_of(journal.turn, command.call_id)
            step = journal.turn.step
            if place is None or step is None:
                continue
            now, expires = time.time(), step.calls.expires
            decided = Decided(
                at=now,
                call=place,
                decision=command.decision,
                reason=command.reason,
                arguments=command.arguments,
            )
            await journal.write(
                decided if now < expires else _expired(journal.turn, place, expires)
            )
            places.append(place)
        return places


def changed_note(call: ToolCall) -> str:
    """Return what a model is told of a call that was approved with other arguments."""
    arguments = encode(call.arguments).decode()
    return f"[Whoever approved the call changed its arguments to {arguments}]"


def _place_of(turn: Turn, name: str) -> int | None:
    """Return the place of a call that waits."""
    step = turn.step
    if step is None:
        return None
    return next((place for place in step.calls.waiting if call_id(step, place) == name), None)


async def deny_expired(journal: Journal, until: float) -> None:
    """Write that the calls that still wait are denied: nobody has decided in time."""
    step = journal.turn.step
    for place in sorted(step.calls.waiting) if step is not None else ():
        await journal.write(_expired(journal.turn, place, until))


def _expired(turn: Turn, place: int, at: float) -> Decided:
    reason = f"nobody decided within {turn.opening.agent.config.approval_timeout:g} s"
    return Decided(at=at, call=place, decision=ApprovalDecision.deny, reason=reason)
