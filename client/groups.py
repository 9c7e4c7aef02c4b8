"""Groups over the websocket: ``stack.group("id")`` speaks in a conversation, and follows it whatever breaks on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from math import inf
from uuid import uuid4

import anyio

from ..schemas import (
    OPERATIONS,
    AylluError,
    BusError,
    GroupEvent,
    GroupEventKind,
    GroupPostRequest,
    GroupRemark,
    Operation,
    decode,
)
from ..schemas.proxy import RunningCall, single_reply
from ..schemas.webmethod import encode_input
from .turns import FIRST_WAIT, FOLLOW_SECONDS, LONGEST_WAIT, PATIENCE, Caller

EVENTS = OPERATIONS["groups.events"]
POST = OPERATIONS["groups.post"]


class GroupClient:
    """A group of a deployment. Use it through `Stack.group`."""

    def __init__(self, caller: Caller, group_id: str) -> None:
        self.group_id = group_id
        self._caller = caller

    async def post(
        self,
        member: str,
        text: str,
        *,
        message_id: str | None = None,
        patience: float = PATIENCE,
    ) -> GroupRemark:
        """Say something as a human member; it is said once, however often it has to be sent.

        Args:
            member: the member's name.
            text: what it says.
            message_id: the remark's id, by default a new one; under one that exists, it is that remark.
            patience: for how many seconds a connection or server that is away is tried again.

        Raises:
            Conflict: it is not the member's turn, or the conversation has ended.
            AylluError: what else is wrong, or, retryable, what broke for longer than the patience lasted.
        """
        request = GroupPostRequest(self.group_id, member, text, message_id or str(uuid4()))
        tries = _Tries(patience)
        while True:
            try:
                running = await _open(self._caller, POST, encode_input(POST, request), tries)
                try:
                    return decode(await single_reply(running), GroupRemark)
                finally:
                    running.close()
            except AylluError as error:
                await tries.pause(error)

    @asynccontextmanager
    async def events(
        self, index: int = 0, *, patience: float = PATIENCE
    ) -> AsyncIterator[AsyncGenerator[GroupEvent, None]]:
        """Follow the conversation from an event on: the events in order, each once, to its end.

        Iteration raises an `AylluError` where there is no such group, or, retryable, where something broke for longer than
        the patience lasted.

        Args:
            index: the first event that is wanted.
            patience: for how many seconds a connection or server that is away is tried again.
        """
        async with aclosing(self._follow(index, patience)) as events:
            yield events

    async def _follow(self, index: int, patience: float) -> AsyncGenerator[GroupEvent, None]:
        tries = _Tries(patience)
        while True:
            seen = index
            try:
                async with aclosing(self._read(index, tries)) as events:
                    async for event in events:
                        index = event.index + 1
                        yield event
            except AylluError as error:
                # One that waits for people tells nothing for as long as a call lasts.
                if index > seen or anyio.current_time() > tries.opened_at + LONGEST_WAIT:
                    tries = _Tries(patience)
                await tries.pause(error)
            else:
                return

    async def _read(self, index: int, tries: _Tries) -> AsyncGenerator[GroupEvent, None]:
        """Yield the events from one on, as long as one call lasts."""
        fields = {"group_id": self.group_id, "index": index}
        payload = encode_input(EVENTS, EVENTS.input_from((), fields))
        running = await _open(self._caller, EVENTS, payload, tries)
        tries.opened_at = anyio.current_time()
        try:
            while found := await running.take():
                for one in found:
                    event = decode(one, GroupEvent)
                    if event.index != index:
                        raise BusError("events of a group were lost on the way")
                    index += 1
                    yield event
                    if event.kind is GroupEventKind.ended:
                        return
        finally:
            running.close()


class _Tries:
    """How long something is tried again."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.give_up_at = anyio.current_time() + patience
        self.opened_at = inf
        self._wait = FIRST_WAIT

    async def pause(self, error: AylluError) -> None:
        """Wait before the next try.

        Raises:
            AylluError: the error, where another try is of no use, or comes too late.
        """
        if not error.retryable or anyio.current_time() + self._wait > self.give_up_at:
            raise error
        await anyio.sleep(self._wait)
        self._wait = min(LONGEST_WAIT, 2 * self._wait)


async def _open(caller: Caller, operation: Operation, payload: bytes, tries: _Tries) -> RunningCall:
    """Start a call; the wait for the connection is bounded by patience, not by the call's own deadline."""
    with anyio.move_on_after(max(0.01, tries.give_up_at - anyio.current_time())):
        return await caller.call(operation, payload, timeout=FOLLOW_SECONDS)
    raise BusError(f"the gateway was not reached within {tries.patience:g} s")
