"""One turn in the hands of an executor: what the plan says is done, what came of it is written, until the turn has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

import anyio

from ...bus.deadletters import bury
from ...bus.durable import Entry
from ...schemas import (
    AylluError,
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    ErrorInfo,
    ExecutionStepType,
    HistoryUse,
    InternalError,
    ToolCall,
    TurnStatus,
    decode,
)
from ...schemas.tasks import background_tasks
from ..patience import persistently
from .beginning import beginning
from .desk import Desk
from .entries import Fenced, packed, unpacked
from .history import (
    SUMMARY_TOKENS,
    shorter,
    summary_dialog,
)
from .inference import Inference, summarised
from .journal import Journal
from .plan import (
    MAX_ATTEMPTS,
    Action,
    BeginStep,
    End,
    Infer,
    Retrieve,
    RunTools,
    Summarise,
    closing_records,
    next_action,
)
from .records import (
    AGENTS,
    Answered,
    Cancel,
    Command,
    Delete,
    Ended,
    Execute,
    HistoryCut,
    HistoryTurn,
    Resumed,
    StepBegan,
    history_subject,
)
from .retrieval import retrieved
from .tools import run_tool, unknown_outcome

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
"""How long the end of a cancelled turn may take to be written."""


async def run_turn(desk: Desk, entry: Entry, command: Execute) -> bool:
    """Take a turn to its end; false if another executor has taken it over.

    Raises:
        BusError: the bus is away for long.
    """
    # A dead letter that is sent again is a new turn: its old one has ended.
    turn = (
        f"{command.turn}~{entry.sequence}" if entry.msg_id.startswith("replay:") else command.turn
    )
    journal = Journal(desk, turn)
    running = _Running(desk, entry, command, journal)
    try:
        new = await running.begin(turn)
        if not new and journal.turn.ended is None:
            await running.take_over()
        if journal.turn.ended is None:
            await running.drive()
        await running.leave_behind(sure=new)
    except Fenced as fenced:
        log.info("the turn %r of %r has another executor: %s", turn, desk.agent, fenced)
        return False
    finally:
        desk.office.hub.let_go(desk.agent, turn)
    return True


class _Running:
    def __init__(self, desk: Desk, entry: Entry, command: Execute, journal: Journal) -> None:
        self._desk = desk
        self._entry = entry
        self._command = command
        self._journal = journal
        self._inference: Inference | None = None
        self._cancelled: AylluError | None = None

    # How it begins.

    async def begin(self, name: str) -> bool:
        """Write that the turn begins; false where it had begun before."""
        later, _ = await self._desk.later(self._entry.sequence)
        error = self._cancel_among(later)
        if self._entry.expired:
            error = error or DeadlineExceeded("the turn expired before it could begin")
        began, exceeded = await beginning(self._desk, self._command, later, name)
        try:
            await self._journal.write(began)
        except Fenced:
            # It has begun already: an executor was lost over it, or the command came twice.
            await self._journal.load()
            self._desk.look.set()  # It may have been cancelled meanwhile.
            return False
        stopped = error or exceeded
        if stopped is not None:
            await self._stop(stopped)
        return True

    async def take_over(self) -> None:
        """Claim a turn whose executor is lost, and find out what it told last."""
        texts = await self._journal.claim(self._desk.office.name, time.time())
        step = self._journal.turn.step
        if texts and step is not None and step.kind is ExecutionStepType.model_inference:
            text, cuts = step.text, list(step.cuts)
            for piece in texts:
                text += piece
                cuts.append(len(text))
            await self._journal.write(Resumed(at=time.time(), text=text, cuts=cuts))

    # How it goes on.

    async def drive(self) -> None:
        """Do what there is to do until the turn has ended, or is cancelled."""
        with anyio.CancelScope() as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, scope)
                await self._go_on()
        if self._cancelled is not None and self._journal.turn.ended is None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._stop(self._cancelled)

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Look for commands that end this turn, whenever there may be a new one."""
        seen = self._entry.sequence
        while True:
            await self._desk.look.wait()
            self._desk.look = anyio.Event()
            commands, seen = await persistently(partial(self._desk.later, seen))
            error = self._cancel_among(commands)
            if error is not None:
                self._cancelled = error
                scope.cancel()
                return

    def _cancel_among(self, commands: Sequence[Command]) -> AylluError | None:
        for command in commands:
            match command:
                case Cancel() if command.turn == self._command.turn:
                    return Cancelled(command.reason or "the turn was cancelled")
                case Execute() if command.interrupt and command.turn != self._command.turn:
                    return Cancelled("another turn took the place of this one")
                case Delete():
                    return Cancelled("the agent was deleted")
        return None

    async def _go_on(self) -> None:
        while (action := next_action(self._journal.turn)) is not None:
            try:
                await self._do(action)
            except Fenced:
                raise
            except ContextLengthExceeded as error:
                use = shorter(self._journal.turn.use)
                if use is None:
                    await self._stop(error)
                else:
                    await self._journal.write(HistoryCut(at=time.time(), use=use))
            except AylluError as error:
                await self._stop(error)
            except Exception:
                log.exception("a turn of %r failed", self._desk.agent)
                await self._stop(InternalError("the executor failed; its log says why"))

    async def _do(self, action: Action) -> None:
        if not isinstance(action, BeginStep | End):
            # Whatever has an effect, or is seen, follows from what is written.
            await self._journal.write()
        match action:
            case BeginStep():
                calls = list(action.calls)
                self._journal.note(StepBegan(at=time.time(), kind=action.kind, calls=calls))
            case Retrieve():
                await self._retrieve()
            case Summarise():
                await self._summarise(action)
            case Infer():
                await self._infer()
            case RunTools():
                await self._run_tools(action)
            case End():
                await self._end(action)

    async def _infer(self) -> None:
        self._inference = Inference(self._journal.turn, self._journal.post)
        said = await self._inference.run(self._desk.office.bus)
        self._inference = None
        self._journal.note(said)

    async def _summarise(self, action: Summarise) -> None:
        turn = self._journal.turn
        dialog = summary_dialog(action.turns, turn.opening.agent.context)
        summary = await persistently(
            lambda: summarised(self._desk.office.bus, turn, dialog, SUMMARY_TOKENS)
        )
        use = HistoryUse(
            policy=turn.use.policy,
            turns=turn.use.turns,
            left_out=turn.use.left_out,
            summary=summary,
        )
        await self._journal.write(HistoryCut(at=time.time(), use=use))

    async def _retrieve(self) -> None:
        self._journal.note(await retrieved(self._desk.office.bus, self._journal.turn))

    async def _run_tools(self, action: RunTools) -> None:
        """Run the calls of a step at once; each answer is written as it comes, one at a time."""
        writing = anyio.Lock()

        async def run(number: int, call: ToolCall) -> None:
            turn = self._journal.turn
            tool = turn.tool(call.tool_name)
            step = turn.step
            key = f"{turn.opening.turn}/{step.uuid if step else ''}/{number}"
            if action.in_flight and tool is not None and not tool.idempotent:
                answer = unknown_outcome(call)
            else:
                answer = await run_tool(self._desk.office.bus, tool, call, key)
            async with writing:
                await self._journal.write(
                    Answered(
                        at=time.time(),
                        call=number,
                        response=answer.response,
                        outcome=answer.outcome,
                    )
                )

        try:
            async with anyio.create_task_group() as tasks:
                for number, call in action.calls:
                    tasks.start_soon(run, number, call)
        except* (Fenced, AylluError) as group:
            raise group.exceptions[0] from None

    # How it ends.

    async def _stop(self, error: AylluError) -> None:
        """End the turn before its time: what runs is closed, what was done is kept."""
        turn = self._journal.turn
        said = self._inference.said() if self._inference is not None else None
        self._inference = None
        self._journal.note(*closing_records(turn, time.time(), said))
        status = TurnStatus.cancelled if isinstance(error, Cancelled) else TurnStatus.failed
        await self._journal.write(Ended(at=time.time(), status=status, error=error.info))

    async def _end(self, action: End) -> None:
        if action.lost:
            await bury(
                self._desk.office.bus.storage,
                self._entry,
                reason=f"{MAX_ATTEMPTS} executors were lost over it",
                attempts=MAX_ATTEMPTS,
            )
            if action.error is not None:
                await self._stop(action.error)
            return
        error: ErrorInfo | None = action.error.info if action.error else None
        await self._journal.write(
            Ended(at=time.time(), status=action.status, response=action.response, error=error)
        )

    async def leave_behind(self, *, sure: bool) -> None:
        """Add what later turns shall see to the agent's history, once.

        Args:
            sure: whether nobody can have done so before.
        """
        turn = self._journal.turn
        messages = turn.left_behind()
        if not messages:
            return
        name = turn.opening.turn
        subject = history_subject(self._desk.agent)
        streams = self._desk.office.bus.storage.streams
        last = None if sure else await streams.last(AGENTS.name, subject)
        if last is not None:
            payload = await unpacked(self._desk.office.claims, last.payload)
            if decode(payload, HistoryTurn).turn == name:
                return  # Whoever was lost after the turn's end had come so far.
        left = await packed(self._desk.office.claims, HistoryTurn(name, messages))
        await streams.append(subject, left, msg_id=f"{subject}:{name}")
