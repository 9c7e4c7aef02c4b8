"""The turns that a turn has started, in the hands of its executor: they are asked for, their ends are taken, they are cancelled."""

from __future__ import annotations

import logging
import time
from functools import partial

import anyio

from ...schemas import (
    AylluError,
    Message,
    NotFound,
    Role,
    Spent,
    ToolResponse,
    TurnRef,
    TurnStatus,
    decode,
)
from ...schemas.tasks import first_of
from ..patience import persistently
from ..tools.checking import problem_with
from .allotting import BeginTask, Delegating, Gather, RefuseTask, SplitCall, next_delegation
from .approvals import changed_note
from .asking import ask
from .delegation import HAND_BACK, Child, gathered, hands_off, tasks_of
from .desk import AGENT_BUCKET, Desk
from .ending import text_of
from .entries import unpacked
from .journal import Journal
from .reader import FINAL, state_of
from .records import (
    AgentRecord,
    Answered,
    Cancel,
    Delegated,
    Execute,
    Finished,
    JournalRecord,
    Origin,
    Outcome,
    Returned,
    Split,
)
from .streams import lane_of
from .turn import Turn

log = logging.getLogger(__name__)


class Children:
    """The turns that one turn has started.

    Args:
        desk: the executor's, for the turn's lane.
        journal: of the turn.
    """

    def __init__(self, desk: Desk, journal: Journal) -> None:
        self._desk = desk
        self._journal = journal
        self._bus = desk.office.bus
        self._claims = desk.office.claims

    async def progress(self) -> None:
        """Do all that can be done for calls of sub-agents: write it first, then ask for the turns that begin by it.

        Raises:
            Fenced: another executor writes.
            BusError: the bus is away.
        """
        turn = self._journal.turn
        begun: list[tuple[int, int]] = []
        while (todo := next_delegation(turn, time.time())) is not None:
            self._journal.note(self._done(turn, todo))
            if isinstance(todo, BeginTask):
                begun.append((todo.place, todo.number))
        await self._journal.write()
        refused = await self._ask_all(begun)
        if refused:
            await self._journal.write(*refused)
            await self.progress()

    def _done(self, turn: Turn, todo: Delegating) -> JournalRecord:
        now = time.time()
        match todo:
            case SplitCall():
                return _split(turn, todo.place, now)
            case BeginTask():
                return Delegated(at=now, call=todo.place, task=todo.number, limits=todo.limits)
            case RefuseTask():
                return _failed(todo.place, todo.number, todo.error)
            case Gather():
                return _gathered(turn, todo.place)

    async def _ask_all(self, begun: list[tuple[int, int]]) -> list[Returned]:
        """Ask for turns, and return those that cannot be."""
        refused: list[Returned] = []

        async def ask_for(place: int, number: int) -> None:
            try:
                await persistently(partial(self._ask, place, number))
            except NotFound as error:
                refused.append(_failed(place, number, error))

        try:
            async with anyio.create_task_group() as tasks:
                for place, number in begun:
                    tasks.start_soon(ask_for, place, number)
        except* AylluError as group:
            raise first_of(group) from None
        return refused

    async def _ask(self, place: int, number: int) -> None:
        """Ask for the turn of a task; asked for again, it is the same turn.

        Raises:
            NotFound: the agent has been removed.
        """
        turn = self._journal.turn
        child = self._child(place, number)
        agent = child.task.agent
        bucket = await self._bus.storage.key_value(AGENT_BUCKET)
        entry = await bucket.get(agent)
        if entry is None:
            raise NotFound(f"there is no agent {agent!r}")
        record = decode(await unpacked(self._claims, entry.value), AgentRecord)
        command = self._command(turn, place, child, record.created)
        lane = lane_of(agent, child.turn)
        msg_id = f"{agent}/{child.turn}"
        await ask(self._bus, self._claims, lane, command, msg_id, start=self._desk.office.start)

    def _command(self, turn: Turn, place: int, child: Child, created: float) -> Execute:
        step = turn.step
        name = step.calls.wanted[place].tool_name if step is not None else ""
        sub = turn.sub_agent(name)
        handed = hands_off(sub)
        messages = [Message(role=Role.user, content=child.task.message)]
        if handed:
            note = f"[{self._desk.agent} hands the conversation over to you: {child.task.message}]"
            messages = turn.dialog[: len(turn.opening.messages)]
            if child.task.message:
                messages = [*messages, Message(role=Role.user, content=note)]
        return Execute(
            turn=child.turn,
            messages=messages,
            created=created,
            traceparent=turn.opening.traceparent,
            detached=True,
            limits=child.limits or turn.opening.limits,
            origin=Origin(turn.lineage, self._desk.lane, handed),
            history=turn.visible_turns if handed else [],
        )

    def _child(self, place: int, number: int) -> Child:
        step = self._journal.turn.step
        if step is None:
            raise ValueError("no step runs")
        return step.calls.children[place][number]

    async def collect(self, ended: set[TurnRef] | None = None) -> bool:
        """Write down which turns have ended, and go on from there; return whether any had.

        Args:
            ended: which have, as far as is known; None looks at all that run.
        """
        found = [
            returned
            for place, number, child in self._journal.turn.running_children
            if ended is None or TurnRef(child.task.agent, child.turn) in ended
            if (returned := await self._returned(place, number, child)) is not None
        ]
        if found:
            self._journal.note(*found)
            await self.progress()
        return bool(found)

    async def any_ended(self) -> bool:
        """Tell whether one of the turns that run has ended, or was never asked for; the latter are asked for."""
        for place, number, child in self._journal.turn.running_children:
            agent, turn = child.task.agent, child.turn
            timeline = await state_of(self._bus, self._claims, agent, turn)
            if timeline is None:
                try:
                    await self._ask(place, number)
                except NotFound:
                    return True
            elif timeline.turn.status in FINAL:
                return True
        return False

    async def _returned(self, place: int, number: int, child: Child) -> Returned | None:
        agent = child.task.agent
        timeline = await persistently(partial(state_of, self._bus, self._claims, agent, child.turn))
        if timeline is None:
            # Perhaps whoever began it was lost before it had asked.
            refused = await self._ask_all([(place, number)])
            return refused[0] if refused else None
        turn = timeline.turn
        if turn.ended is None:
            return None
        error = turn.ended.error
        status = turn.ended.status
        response = turn.ended.response
        if response is not None and response.tool_calls:
            names = ", ".join(call.tool_name for call in response.tool_calls)
            wrong = AylluError(f"it wants tools that only a client can run: {names}")
            return _failed(place, number, wrong, turn)
        return Returned(
            at=time.time(),
            call=place,
            task=number,
            status=status,
            text=text_of(response),
            error=error,
            spent=turn.spent,
            back=turn.back is not None,
        )

    async def cancel(self, reason: str) -> None:
        """Cancel all turns that run; they may end later than this returns.

        Raises:
            BusError: it cannot be stored.
        """
        parent = self._journal.turn.opening.turn

        async def cancel(child: Child) -> None:
            lane = lane_of(child.task.agent, child.turn)
            command = Cancel(child.turn, reason)
            msg_id = f"cancel {child.task.agent}/{child.turn} {parent}"
            await ask(self._bus, self._claims, lane, command, msg_id, start=self._desk.office.start)

        try:
            async with anyio.create_task_group() as tasks:
                for _, _, child in self._journal.turn.running_children:
                    tasks.start_soon(cancel, child)
        except* AylluError as group:
            raise first_of(group) from None


async def tell_parent(desk: Desk, turn: Turn) -> None:
    """Tell the turn that has started this one, if one did, that it has ended.

    Raises:
        BusError: it cannot be stored; to be done again.
    """
    origin = turn.opening.origin
    if origin is None:
        return
    own, parent = turn.lineage[-1], origin.lineage[-1]
    office = desk.office
    msg_id = f"finished {own.agent_uuid}/{own.turn_id}"
    command = Finished(parent.turn_id, own)
    await ask(office.bus, office.claims, origin.lane, command, msg_id, start=office.start)


def _split(turn: Turn, place: int, now: float) -> JournalRecord:
    step = turn.step
    if step is None:
        raise ValueError("no step runs")
    call = step.calls.wanted[place]
    tool, sub = turn.tool(call.tool_name), turn.sub_agent(call.tool_name)
    problem = problem_with(tool.schema, call.arguments) if tool is not None else "there is no tool"
    if problem is not None:
        return _answered(place, call.tool_name, f"The arguments are wrong: {problem}", "invalid")
    if sub is None:
        return _answered(place, HAND_BACK, "The conversation is handed back.", "ok")
    before = (turn.sub_agent(other.tool_name) for other in step.calls.wanted[:place])
    if hands_off(sub) and any(map(hands_off, before)):
        return _answered(place, call.tool_name, "The conversation is handed over once.", "failed")
    return Split(at=now, call=place, tasks=tasks_of(sub, call.arguments))


def _gathered(turn: Turn, place: int) -> JournalRecord:
    step = turn.step
    if step is None:
        raise ValueError("no step runs")
    call = step.calls.wanted[place]
    sub = turn.sub_agent(call.tool_name)
    if sub is None:
        raise ValueError("it is no call of sub-agents")
    text, outcome = gathered(sub, step.calls.children[place])
    decided = step.calls.decided.get(place)
    if decided is not None and decided.arguments is not None:
        text = f"{changed_note(call)}\n{text}"
    return _answered(place, call.tool_name, text, outcome)


def _answered(place: int, name: str, text: str, outcome: Outcome) -> Answered:
    return Answered(at=time.time(), call=place, response=ToolResponse(name, text), outcome=outcome)


def _failed(place: int, number: int, error: AylluError, turn: Turn | None = None) -> Returned:
    return Returned(
        at=time.time(),
        call=place,
        task=number,
        status=TurnStatus.failed,
        error=error.info,
        spent=turn.spent if turn is not None else Spent(),
    )
