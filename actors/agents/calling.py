"""Running the calls of a step, also those that people let go while others run; each answer is written as it comes."""

from __future__ import annotations

import time
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from ...bus.bus import Bus
from ...schemas import (
    ApprovalDecision,
    Attachment,
    AylluError,
    Content,
    ShieldStage,
    ToolCall,
    ToolResponse,
)
from ...schemas.tasks import first_of
from ..tools.checking import problem_with
from .allotting import is_delegation
from .approvals import Decisions, changed_note
from .checks import definition
from .entries import Fenced
from .journal import Journal
from .plan import RunTools
from .records import Answered
from .shielding import call_message, violation_of
from .tools import Answer, run_tool, told, unknown_outcome
from .turn import Turn


class Calling:
    """Runs calls of the step that runs.

    Args:
        bus: the bus.
        journal: what comes of them goes there.
        decisions: of people, about calls that wait.

    Attributes:
        writing: held by whoever writes.
    """

    def __init__(self, bus: Bus, journal: Journal, decisions: Decisions) -> None:
        self._bus = bus
        self._journal = journal
        self._decisions = decisions
        self.writing = anyio.Lock()

    async def run(self, action: RunTools) -> None:
        """Run calls at once, to the last of them; cancelling it cancels the tools' work.

        Raises:
            Fenced: another executor writes.
            AylluError: what came of one cannot be written.
        """
        try:
            async with anyio.create_task_group() as hiring:
                async with anyio.create_task_group() as calls:
                    for place, _ in action.calls:
                        calls.start_soon(self._call, place, place in action.in_flight)
                    hiring.start_soon(self._hire, calls)
                hiring.cancel_scope.cancel()
        except* (Fenced, AylluError) as group:
            raise first_of(group) from None

    async def _hire(self, calls: TaskGroup) -> None:
        """Run what people let go meanwhile."""
        while True:
            await self._decisions.news.wait()
            async with self.writing:
                places = await self._decisions.write(self._journal)
            for place in places:
                # Where all others have ended by now, the plan has them run next.
                with suppress(RuntimeError):
                    calls.start_soon(self._call, place, False)

    async def _call(self, place: int, in_flight: bool) -> None:
        step = self._journal.turn.step
        if step is None or place in step.calls.responses:
            return
        if is_delegation(self._journal.turn, step.calls, place):
            return  # It was let go just now, and is a turn next.
        answer = await self._answer(self._journal.turn, place, in_flight)
        async with self.writing:
            await self._journal.write(
                Answered(
                    at=time.time(), call=place, response=answer.response, outcome=answer.outcome
                )
            )

    async def _answer(self, turn: Turn, place: int, in_flight: bool) -> Answer:
        """Return what comes of a call: that of its tool, or why that is not run."""
        step = turn.step
        if step is None:
            raise ValueError("no step runs")
        calls = step.calls
        call, tool = calls.wanted[place], turn.tool(calls.wanted[place].tool_name)
        violation, decided = calls.blocked.get(place), calls.decided.get(place)
        if violation is not None:
            return _blocked(call, violation.shield, violation.details)
        if decided is not None and decided.decision is ApprovalDecision.deny:
            why = f": {decided.reason}" if decided.reason else "."
            return told(call, f"The call was not approved{why}", "denied")
        required = turn.opening.agent.config.require_approval
        if decided is None and tool is not None and call.tool_name in required:
            # Nobody was asked, since the arguments were wrong: whatever they seem to be now, it is not run.
            problem = problem_with(tool.schema, call.arguments) or "they could not be checked"
            return told(call, f"The arguments are wrong: {problem}", "invalid")
        if in_flight and tool is not None and not tool.idempotent:
            return unknown_outcome(call)
        changed = decided is not None and decided.arguments is not None
        if changed:
            # Shields have seen other arguments.
            blocked = await self._changed(turn, call)
            if blocked is not None:
                return blocked
        earlier = [one.arguments for one in turn.done if one.tool_name == call.tool_name]
        key = f"{turn.opening.turn}/{step.uuid}/{place}"
        answer = await run_tool(self._bus, tool, call, key, earlier)
        return _noted(answer, call) if changed else answer

    async def _changed(self, turn: Turn, call: ToolCall) -> Answer | None:
        tool = definition(turn.opening.agent.config, call.tool_name)
        for shield in tool.input_shields if tool is not None else ():
            message = call_message(call)
            violation = await violation_of(self._bus, shield, ShieldStage.tool_input, [message])
            if violation is not None and not violation.observed:
                return _blocked(call, violation.shield, violation.details)
        return None


def _blocked(call: ToolCall, shield: str | None, details: str) -> Answer:
    by = f" by the shield {shield}" if shield else ""
    return told(call, f"The call was blocked{by}, and not made: {details}", "blocked")


def _noted(answer: Answer, call: ToolCall) -> Answer:
    """Return an answer with a note for the model, which had wanted something else."""
    note = changed_note(call)
    content = answer.response.content
    parts: list[str | Attachment] = content if isinstance(content, list) else [content]
    noted: Content = f"{note}\n{content}" if isinstance(content, str) else [note, *parts]
    response = ToolResponse(answer.response.tool_name, noted)
    return Answer(response, answer.outcome)
