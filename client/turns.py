"""A turn of an agent is followed to its end, whatever breaks on the way: connection, gateway, executor or bus."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import inf
from typing import Any, Protocol

import anyio

from ..schemas import (
    OPERATIONS,
    AgenticSystemExecuteRequest,
    AgenticSystemExecuteResponseStreamChunk,
    Approval,
    ApprovalDecision,
    ApproveRequest,
    AylluError,
    BusError,
    Cancelled,
    NotFound,
    Operation,
    Turn,
    TurnEvent,
    TurnStatus,
    decode,
)
from ..schemas.errors import error_from
from ..schemas.proxy import RunningCall, single_reply
from ..schemas.webmethod import encode_input

EXECUTE = OPERATIONS["agentic_system.execute.stream"]
EVENTS = OPERATIONS["agentic_system.turn.events"]
CANCEL = OPERATIONS["agentic_system.turn.cancel"]
APPROVE = OPERATIONS["agentic_system.turn.approve"]

PATIENCE = 60.0
FOLLOW_SECONDS = 600.0
"""The deadline of each call that follows a turn; a turn that takes longer is followed by the next one."""
FIRST_EPOCH = 1
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between tries, doubled from the first to the longest."""
FINAL = frozenset((TurnStatus.completed, TurnStatus.cancelled, TurnStatus.failed))


class Caller(Protocol):
    """What agents need of a connection: `Stack.call`."""

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> RunningCall:
        """Start a call with JSON text as its payload; waits while the connection is being made again."""
        ...


class FollowedTurn:
    """The events of a turn, in order, each once: iterate it; it resumes by itself.

    Where the server has lost events that were told already (``recovered`` of the event is false), its ``turn`` is the state
    of the turn, and the events that follow go on from there. At the end, iteration raises what the turn ended in if it
    was cancelled or failed; ``result`` is there all the same.

    Attributes:
        turn_id: the turn's id.
        epoch: with ``index``, the position: what a later `AgentClient.follow` goes on from.
        index: the index of the next event.
        children: what was seen of the turns that this one has started; part of the position.
        resumed: how often the turn was followed anew after something broke.
    """

    def __init__(
        self,
        caller: Caller,
        agent_id: str,
        turn_id: str,
        request: AgenticSystemExecuteRequest | None,
        patience: float,
    ) -> None:
        self.turn_id = turn_id
        self.epoch = 0
        self.index = 0
        self.children = ""
        self.resumed = 0
        self._caller = caller
        self._agent = agent_id
        self._request = request
        self._patience = patience
        self._result: Turn | None = None
        self._opened_at = inf
        self._events = self._follow()

    @property
    def result(self) -> Turn:
        """The whole turn, once it has ended.

        Raises:
            RuntimeError: it has not, or has not been followed to its end.
        """
        if self._result is None:
            raise RuntimeError("the turn has not been followed to its end")
        return self._result

    def __aiter__(self) -> FollowedTurn:
        return self

    async def __anext__(self) -> TurnEvent:
        """Return the next event.

        Raises:
            AylluError: what the turn ended in, why it was not accepted, or, retryable, what broke for longer than the
                patience lasted.
        """
        return await anext(self._events)

    async def wait(self) -> Turn:
        """Follow the turn to its end, and return it.

        Raises:
            AylluError: as iteration does.
        """
        async for _ in self:
            pass
        return self.result

    async def cancel(self, reason: str = "") -> Turn:
        """Cancel the turn, and return it as it has ended (or ``queued``, if it has not begun); what it did is kept.

        Raises:
            NotFound: the turn has not been accepted yet.
            AylluError: it is not known whether the cancel arrived; it may be sent again.
        """
        fields = {"agent_id": self._agent, "turn_id": self.turn_id, "reason": reason}
        running = await self._caller.call(
            CANCEL, encode_input(CANCEL, CANCEL.input_from((), fields))
        )
        try:
            return decode(await single_reply(running), Turn)
        finally:
            running.close()

    async def approve(self, call_id: str, *, arguments: dict[str, Any] | None = None) -> Approval:
        """Let a call that waits for approval run (``event.event.approval`` names it).

        Args:
            call_id: the call.
            arguments: what it runs with, in place of the model's.

        Raises:
            Conflict: it was decided otherwise, or the turn has ended.
            AylluError: it is not known whether the decision arrived; it may be sent again.
        """
        return await self._decide(
            ApproveRequest(self._agent, self.turn_id, call_id, arguments=arguments)
        )

    async def deny(self, call_id: str, reason: str = "") -> Approval:
        """Do not let a call that waits for approval run; the model reads the reason. See `approve`."""
        deny = ApprovalDecision.deny
        return await self._decide(ApproveRequest(self._agent, self.turn_id, call_id, deny, reason))

    async def _decide(self, request: ApproveRequest) -> Approval:
        running = await self._caller.call(APPROVE, encode_input(APPROVE, request))
        try:
            return decode(await single_reply(running), Approval)
        finally:
            running.close()

    async def aclose(self) -> None:
        """Stop to follow the turn, which goes on."""
        await self._events.aclose()

    async def _follow(self) -> AsyncGenerator[TurnEvent, None]:
        """Yield the events; what is retryable is tried again until nothing has come for as long as patience lasts."""
        wait, give_up_at = FIRST_WAIT, anyio.current_time() + self._patience
        tried = known = self._request is None
        while self._result is None:
            self._opened_at, seen = inf, (self.index, self.children)
            asks, tried = not tried, True
            try:
                source = self._begin(give_up_at) if asks else self._read(give_up_at)
                async with aclosing(source) as events:
                    async for event in events:
                        known = True
                        yield event
                known = True
            except NotFound:
                if known or asks:
                    raise
                tried = False  # It broke before the turn was accepted: once more.
            except AylluError as error:
                if not error.retryable:
                    raise
                now = anyio.current_time()
                # A turn that waits tells nothing for as long as a call lasts; the wait for a connection is no sign of life.
                moved = (self.index, self.children) != seen
                if moved or now > self._opened_at + LONGEST_WAIT:
                    wait, give_up_at = FIRST_WAIT, now + self._patience
                elif now + wait > give_up_at:
                    raise
                self.resumed += 1
                await anyio.sleep(wait)
                wait = min(LONGEST_WAIT, 2 * wait)
        if self._result.status is not TurnStatus.completed:
            why = self._result.error
            raise error_from(why) if why else Cancelled("the turn was cancelled")

    async def _begin(self, give_up_at: float) -> AsyncGenerator[TurnEvent, None]:
        """Ask for the turn, and yield its events from the first on; in the end the whole turn is still to be read.

        Nothing has a shorter way than these events. They do not tell their positions, but they are all there are, from the
        first epoch on: where events were lost, the call fails.
        """
        if self._request is None:
            return
        running = await self._open(EXECUTE, encode_input(EXECUTE, self._request), give_up_at)
        try:
            while found := await running.take():
                for one in found:
                    chunk = decode(one, AgenticSystemExecuteResponseStreamChunk)
                    self.epoch = FIRST_EPOCH
                    if chunk.child is not None:
                        self.children = chunk.child.children
                        yield TurnEvent(FIRST_EPOCH, self.index, child=chunk.child)
                        continue
                    event = TurnEvent(FIRST_EPOCH, self.index, chunk)
                    self.index += 1
                    yield event
        except AylluError as error:
            if "turn_id" not in error.details:
                raise  # Else it is what the turn ended in.
        finally:
            running.close()

    async def _read(self, give_up_at: float) -> AsyncGenerator[TurnEvent, None]:
        """Yield the events from the position on, as long as one call lasts, and move the position."""
        fields: dict[str, Any] = {"agent_id": self._agent, "turn_id": self.turn_id}
        fields |= {"epoch": self.epoch, "index": self.index, "children": self.children}
        payload = encode_input(EVENTS, EVENTS.input_from((), fields))
        running = await self._open(EVENTS, payload, give_up_at)
        try:
            while found := await running.take():
                for one in found:
                    event = decode(one, TurnEvent)
                    if event.event is not None and event.index != self.index:
                        raise BusError("events of a turn were lost on the way")
                    self.epoch = event.epoch
                    self.index = event.index + (event.event is not None)
                    if event.child is not None:
                        self.children = event.child.children
                    if event.turn is not None and event.recovered:
                        if event.turn.status in FINAL:
                            self._result = event.turn
                        continue
                    yield event
            if self._result is None:
                raise BusError("the stream of a turn ended before the turn did")
        finally:
            running.close()

    async def _open(self, operation: Operation, payload: bytes, give_up_at: float) -> RunningCall:
        """Start a call; the wait for the connection is bounded by patience, not by the call's own deadline."""
        with anyio.move_on_after(max(0.01, give_up_at - anyio.current_time())):
            running = await self._caller.call(operation, payload, timeout=FOLLOW_SECONDS)
            self._opened_at = anyio.current_time()
            return running
        raise BusError(f"the gateway was not reached within {self._patience:g} s")
