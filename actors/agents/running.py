"""One turn in the hands of an executor: what the plan says is done, what came of it is written, until the turn has ended."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

import anyio

from ...bus.deadletters import bury
from ...bus.durable import Entry
from ...schemas import (
    AylluError,
    BusError,
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    ErrorInfo,
    ExecutionStepType,
    HistoryUse,
    InternalError,
    InvalidRequest,
    TurnStatus,
    decode,
)
from ...schemas.tasks import background_tasks
from ..attachments import fetched_messages
from ..patience import persistently
from .approvals import deny_expired, needing_approval
from .beginning import beginning
from .calling import Calling
from .children import Children, tell_parent
from .desk import Desk
from .ending import answer, refuse, tell_end
from .entries import Fenced, packed, turn_of, unpacked
from .history import (
    SUMMARY_TOKENS,
    shorter,
    summary_dialog,
)
from .inference import Inference, summarised
from .journal import Journal
from .listening import Listening
from .plan import (
    MAX_ATTEMPTS,
    Action,
    Attach,
    BeginCheck,
    BeginStep,
    Delegate,
    End,
    Infer,
    Retrieve,
    RunShields,
    RunTools,
    Summarise,
    Wait,
    closing_record,
    next_action,
)
from .records import (
    Attached,
    CheckBegan,
    Ended,
    Execute,
    HistoryCut,
    HistoryTurn,
    Resumed,
    StepBegan,
)
from .retrieval import retrieved
from .shielding import looked
from .streams import AGENTS, history_subject

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
"""How long the end of a cancelled turn may take to be written."""
KEEP_SECONDS = 2.0
"""How long a turn that waits for others keeps its slot, where there are enough."""
LOOK_SECONDS = 60.0
"""After how long somebody looks after the turns that one waits for, at the latest."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A turn that waits for people: nothing is to be done until they decide, or until a time, in seconds since the epoch."""

    until: float


class Untakeable(Exception):  # noqa: N818 - it says what it is
    """No turn can be made of a command and the journal that there is."""


async def run_turn(
    desk: Desk, entry: Entry, command: Execute
) -> Literal["done", "fenced"] | Parked:
    """Take a turn to its end, or as far as it goes without people, or until another executor has taken it over.

    Raises:
        BusError: the bus is away for long.
    """
    turn = turn_of(entry, command)
    journal = Journal(desk, turn)
    running = _Running(desk, entry, command, journal)
    try:
        new = await running.begin(turn)
        if not new and journal.turn.ended is None:
            parked = await running.parked()
            if parked is not None:
                return parked
            await running.take_over()
        if journal.turn.ended is None:
            parked = await running.drive()
            if parked is not None:
                return parked
        if journal.turn.opening.entry in (0, entry.sequence):
            await tell_parent(desk, journal.turn)
            await running.leave_behind(sure=new)
            await tell_end(desk.office.bus, journal.turn)
        # Else all this was done for the command that came first: here it is only asked for the answer again.
        await answer(desk.office.bus, journal.turn, command)
    except Untakeable as error:
        log.warning("the turn %r of %r is not taken: %s", turn, desk.agent, error)
        await bury(desk.office.bus.storage, entry, reason=str(error), attempts=1)
        await refuse(desk.office.bus, entry, InvalidRequest(str(error)))
    except Fenced as fenced:
        log.info("the turn %r of %r has another executor: %s", turn, desk.agent, fenced)
        return "fenced"
    finally:
        desk.office.hub.let_go(desk.agent, turn)
    return "done"


class _Running:
    def __init__(self, desk: Desk, entry: Entry, command: Execute, journal: Journal) -> None:
        self._desk = desk
        self._entry = entry
        self._command = command
        self._journal = journal
        self._listening = Listening(desk, entry, command)
        self._inference: Inference | None = None
        self._children = Children(desk, journal)

    # How it begins.

    async def begin(self, name: str) -> bool:
        """Write that the turn begins; false where it had begun before."""
        later, _ = await self._desk.later(self._entry.sequence)
        error = self._listening.cancel_among(later)
        if self._entry.expired or 0 < self._command.expires <= time.time():
            error = error or DeadlineExceeded("the turn expired before it could begin")
        began, exceeded = await beginning(
            self._desk, self._command, later, turn=name, entry=self._entry.sequence
        )
        try:
            await self._journal.write(began)
        except Fenced:
            # It has begun already: an executor was lost over it, or the command came twice.
            try:
                await self._journal.load()
            except InvalidRequest as error:
                # It is too old, and its beginning is gone.
                raise Untakeable(f"its journal cannot be read: {error.message}") from error
            if self._journal.turn.opening.detached is not self._command.detached:
                raise Untakeable(
                    "another turn of the agent has its id, beside the others"
                ) from None
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
        await self._children.collect()

    # How it goes on.

    async def parked(self) -> Parked | None:
        """Return that there is nothing to do yet, if so: then nothing is claimed, and nothing written."""
        action = next_action(self._journal.turn)
        if not isinstance(action, Wait):
            return None
        await self._listening.look()
        moved = self._listening.has_news(self._journal.turn) or time.time() >= self._until(action)
        # What was told of its children's ends may be lost with an executor: now and then somebody looks.
        moved = moved or await self._children.any_ended()
        return None if moved else self._parked(action)

    def _until(self, action: Wait) -> float:
        return min(action.until, self._journal.turn.deadline)

    def _parked(self, action: Wait) -> Parked:
        until = self._until(action)
        if self._journal.turn.running_children:
            until = min(until, time.time() + LOOK_SECONDS)
        return Parked(until)

    async def drive(self) -> Parked | None:
        """Do what there is to do until the turn has ended, is cancelled, or waits for people."""
        parked: Parked | None = None
        with anyio.move_on_after(self._journal.turn.deadline - time.time()) as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(self._listening.watch, scope)
                parked = await self._go_on()
        cancelled = self._listening.cancelled
        if cancelled is None and scope.cancelled_caught:
            opening = self._journal.turn.opening
            seconds = self._journal.turn.deadline - opening.at
            cancelled = DeadlineExceeded(f"the turn did not end within its {seconds:g} s")
        if cancelled is not None and self._journal.turn.ended is None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True) as closing:
                await self._stop(cancelled)
            if closing.cancelled_caught:
                raise BusError("the end of a turn could not be written")
            return None
        return parked

    async def _go_on(self) -> Parked | None:
        while (action := next_action(self._journal.turn)) is not None:
            if isinstance(action, Wait) and not await self._waited(action):
                return self._parked(action)
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
        return None

    async def _waited(self, action: Wait) -> bool:
        """Write what was decided about calls that wait, or what came of turns that were started; false if nothing was."""
        await self._journal.write()
        listening = self._listening
        listening.heard = anyio.Event()
        await listening.look()
        if await listening.decisions.write(self._journal) or await self._collected():
            return True
        if listening.cancelled is not None:
            return False
        if time.time() < action.until:
            if not (self._journal.turn.running_children and self._desk.office.is_roomy()):
                return False
            with anyio.move_on_after(KEEP_SECONDS):
                await listening.heard.wait()
            return listening.heard.is_set()
        await deny_expired(self._journal, action.until)
        return True

    async def _collected(self) -> bool:
        ended, self._listening.ended = self._listening.ended, set()
        return bool(ended) and await self._children.collect(ended)

    async def _do(self, action: Action) -> None:
        if not isinstance(action, BeginStep | BeginCheck | End):
            # Whatever has an effect, or is seen, follows from what is written.
            await self._journal.write()
        match action:
            case BeginStep():
                self._begin_step(action)
            case Attach():
                await self._attach()
            case BeginCheck():
                self._journal.note(CheckBegan(at=time.time(), stage=action.stage))
            case RunShields():
                bus, turn = self._desk.office.bus, self._journal.turn
                self._journal.note(await looked(bus, turn, action.stage))
            case Retrieve():
                await self._retrieve()
            case Summarise():
                await self._summarise(action)
            case Infer():
                await self._infer()
            case Delegate():
                await self._children.progress()
            case RunTools():
                await self._run_tools(action)
            case End():
                await self._end(action)

    async def _run_tools(self, action: RunTools) -> None:
        """Run tools, and take meanwhile what comes of turns that were started."""
        calling = Calling(self._desk.office.bus, self._journal, self._listening.decisions)

        async def mind() -> None:
            while True:
                await self._listening.heard.wait()
                self._listening.heard = anyio.Event()
                async with calling.writing:
                    await self._collected()

        async with background_tasks() as tasks:
            tasks.start_soon(mind)
            await calling.run(action)
            async with calling.writing:
                tasks.cancel_scope.cancel()  # Not in the middle of what it writes.

    def _begin_step(self, action: BeginStep) -> None:
        turn, calls = self._journal.turn, list(action.calls)
        # That the conversation may be handed over was decided in the turn that did it.
        decided = calls == turn.opening.calls and not turn.inferences
        approvals = [] if decided else needing_approval(turn, calls)
        self._journal.note(
            StepBegan(at=time.time(), kind=action.kind, calls=calls, approvals=approvals)
        )

    async def _attach(self) -> None:
        messages = self._journal.turn.opening.messages
        fetched = await fetched_messages(messages, self._desk.office.attachments)
        await self._journal.write(Attached(at=time.time(), messages=fetched))

    async def _infer(self) -> None:
        turn = self._journal.turn
        # What shields have not seen, nobody sees.
        self._inference = Inference(turn, _untold if turn.withholds else self._journal.post)
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

    # How it ends.

    async def _stop(self, error: AylluError) -> None:
        """End the turn before its time: what runs is closed, what was done is kept."""
        turn = self._journal.turn
        await self._children.cancel(error.message)
        said = self._inference.said() if self._inference is not None else None
        self._inference = None
        while (record := closing_record(turn, time.time(), said)) is not None:
            self._journal.note(record)
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
        messages = [] if turn.opening.detached else turn.left_behind()
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
        left = await packed(self._desk.office.claims, HistoryTurn(name, messages, turn.holder))
        await streams.append(subject, left, msg_id=f"{subject}:{name}")


async def _untold(_index: int, _texts: list[str]) -> None:
    """Tell nobody."""
