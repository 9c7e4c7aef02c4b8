"""The caller's side of exchanges on a transport: one inbox for all calls, one timer a call, one task that sends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import quote

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ..schemas import AylluError, BusError, DeadlineExceeded, InvalidRequest, decode
from ..schemas.tasks import background_tasks
from .bundles import BUNDLE, BUNDLES, unbundled
from .context import child_traceparent, current_call, new_traceparent
from .exchange import ACCEPT, CANCEL, HEARTBEAT, Accept, Caller, Claimed, Ended, Failed
from .transport import Message, Transport

log = logging.getLogger(__name__)

EXCHANGE_HEADER = "Ayllu-Exchange"
TIMEOUT_HEADER = "Ayllu-Timeout"
TRACE_HEADER = "traceparent"
CLAIM_HEADER = "Ayllu-Claim"
KEY_HEADER = "Ayllu-Idempotency-Key"
OUTBOX_SIZE = 4096


class ClaimCheck(Protocol):
    """Keeps what is too large for a message (see `ayllu.bus.claims`)."""

    limit: int

    async def store(self, payload: bytes) -> bytes:
        """Store a payload and return the reference that travels instead."""
        ...

    async def load(self, reference: bytes) -> bytes:
        """Return the payload of a reference."""
        ...


class Call:
    """One call. Read it with `take` until it returns nothing, or leave it with `close`.

    Used as ``with closing(await calls.open(...)) as call``; leaving the block cancels what has not ended.
    """

    def __init__(
        self,
        calls: Calls,
        inbox: str,
        machine: Caller,
        explain_absence: Callable[[], Awaitable[AylluError]] | None,
    ) -> None:
        self._calls = calls
        self._inbox = inbox
        self._machine = machine
        self._explain_absence = explain_absence
        self._arrived = asyncio.Event()
        self._result: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._set_timer()

    @property
    def result(self) -> bytes | None:
        """The assembled reply of a stream, once `take` has returned nothing."""
        return self._result

    async def take(self) -> list[bytes]:
        """Return all events that wait, at least one; nothing when the call has ended well.

        Cancel-safe: no event is lost.

        Raises:
            AylluError: the call ended in an error; events that came before it were returned first.
        """
        machine = self._machine
        while not machine.events and machine.outcome is None:
            self._arrived.clear()
            await self._arrived.wait()
        if not machine.events:
            if isinstance(machine.outcome, Failed):
                raise await self._error(machine.outcome)
            if isinstance(machine.outcome, Ended) and machine.outcome.result is not None:
                self._result = await self._calls.load(machine.outcome.result)
            return []
        # Taken only when all are fetched: a reader that is cancelled meanwhile finds them again.
        events = [
            event if isinstance(event, bytes) else await self._calls.load(event)
            for event in list(machine.events)
        ]
        machine.take(len(events))
        self._calls.flush(machine)
        return events

    async def _error(self, outcome: Failed) -> AylluError:
        if outcome.absent and self._explain_absence is not None:
            return await self._explain_absence()
        return outcome.error

    def close(self) -> None:
        """Leave the call; what has not ended is cancelled, down into the engine. Never waits."""
        self._machine.cancel()
        self._after_change()

    def receive(self, kind: str, message: Message, now: float) -> None:
        """Take a frame (called by `Calls`)."""
        if message.no_responders:
            self._machine.absent()
        else:
            self._machine.receive(kind, message.payload, now)
        self._after_change()

    def doubt(self) -> None:
        """Frames may be missing (called by `Calls`)."""
        self._machine.doubt()

    def receive_event(self, event: bytes, now: float) -> None:
        """Take an event that came in a bundle (called by `Calls`)."""
        machine = self._machine
        machine.receive_event(event, now)
        if machine.outcome is None:
            self._arrived.set()
        else:
            self._after_change()

    def _after_change(self) -> None:
        machine = self._machine
        self._calls.flush(machine)
        self._arrived.set()
        if machine.forgotten and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._calls.forget(self._inbox)

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(self._machine.next_tick, loop.time() + 0.001), self._tick)

    def _tick(self) -> None:
        self._machine.tick(asyncio.get_running_loop().time())
        if not self._machine.forgotten:
            self._set_timer()
        self._after_change()


class Calls:
    """All calls of one process on a transport. Use it through `open_calls`."""

    def __init__(
        self,
        transport: Transport,
        claims: ClaimCheck | None,
        outbox: MemoryObjectSendStream[tuple[str, bytes]],
    ) -> None:
        self._transport = transport
        self._claims = claims
        self._outbox = outbox
        self._prefix = transport.inbox()
        self._open: dict[str, Call] = {}
        self._next = 0
        self._reconnects = transport.reconnects

    @property
    def open_count(self) -> int:
        """How many calls the process still hears of."""
        return len(self._open)

    @property
    def subject(self) -> str:
        """The pattern of all inboxes."""
        return f"{self._prefix}.>"

    async def open(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        traceparent: str | None = None,
        explain_absence: Callable[[], Awaitable[AylluError]] | None = None,
        idempotency_key: str | None = None,
    ) -> Call:
        """Publish a request.

        Args:
            subject: the operation's subject.
            payload: the JSON text of its input.
            timeout: seconds until the call's deadline; a call that is being worked on lends its own, if that is nearer.
            traceparent: the trace to join; by default that of the call that is being worked on.
            explain_absence: makes the error when nobody listens on the subject.
            idempotency_key: the same for each try, for the actor to know a call that it has worked on already.

        Raises:
            BusError: the bus is gone, or the payload is too large for a bus without an object store.
            DeadlineExceeded: the deadline has passed already.
        """
        now = asyncio.get_running_loop().time()
        context = current_call.get()
        if context is not None:
            timeout = min(timeout, context.deadline - now)
            traceparent = traceparent or child_traceparent(context.traceparent)
        if timeout <= 0:
            raise DeadlineExceeded("the call did not end within its deadline")
        headers = {
            EXCHANGE_HEADER: BUNDLES,
            TIMEOUT_HEADER: f"{timeout:.3f}",
            TRACE_HEADER: traceparent or new_traceparent(),
        }
        if idempotency_key is not None:
            headers[KEY_HEADER] = quote(idempotency_key)
        if self._claims is not None and len(payload) > self._claims.limit:
            payload = await self._claims.store(payload)
            headers[CLAIM_HEADER] = "1"
        self._next += 1
        name = f"{self._next:x}"
        if self._transport.reconnects != self._reconnects:
            self._doubt()
        machine = Caller(now, deadline=now + timeout)
        call = self._open[name] = Call(self, name, machine, explain_absence)
        try:
            await self._transport.publish(
                subject, payload, reply=f"{self._prefix}.{name}", headers=headers
            )
        except BaseException:
            call.close()
            self.forget(name)
            raise
        return call

    def receive(self, message: Message) -> None:
        """Take a message of the inbox."""
        if self._transport.reconnects != self._reconnects:
            self._doubt()
        name, _, kind = message.subject[len(self._prefix) + 1 :].partition(".")
        now = asyncio.get_running_loop().time()
        if kind == BUNDLE:
            for owner, event in unbundled(message.payload):
                if (one := self._open.get(owner)) is not None:
                    one.receive_event(event, now)
            return
        call = self._open.get(name)
        if call is not None:
            call.receive(kind, message, now)
        elif kind in (ACCEPT, HEARTBEAT):
            self._disown(kind, message)

    def _doubt(self) -> None:
        """Let calls that were open while the bus was lost be sure that nothing is missing before they go on."""
        self._reconnects = self._transport.reconnects
        for call in self._open.values():
            call.doubt()

    def _disown(self, kind: str, message: Message) -> None:
        """Cancel work on a call that was given up before its actor, held up by something, took it."""
        try:
            control = decode(message.payload, Accept).control if kind == ACCEPT else message.reply
        except InvalidRequest:
            return
        if control:
            self.post(control, CANCEL)

    async def load(self, claimed: bytes | Claimed) -> bytes:
        """Return an event, fetched if it was too large for a message."""
        if isinstance(claimed, bytes):
            return claimed
        if self._claims is None:
            raise BusError("an event came by claim check, but this bus has no object store")
        return await self._claims.load(claimed.reference)

    def flush(self, machine: Caller) -> None:
        """Send what a machine wants sent."""
        if machine.outgoing and machine.control is not None:
            for payload in machine.outgoing:
                self.post(machine.control, payload)
            machine.outgoing.clear()

    def post(self, subject: str, payload: bytes) -> None:
        """Publish without waiting; what is posted here may be lost, and the responder then notices by itself."""
        try:
            self._outbox.send_nowait((subject, payload))
        except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
            log.warning("a control message was dropped")

    def forget(self, name: str) -> None:
        """Hear no more of a call."""
        self._open.pop(name, None)

    def close(self) -> None:
        """Cancel all calls."""
        for call in list(self._open.values()):
            call.close()


async def send_all(
    transport: Transport, outbox: MemoryObjectReceiveStream[tuple[str, bytes]]
) -> None:
    """Publish what is posted, until the sending side is closed."""
    async with outbox:
        async for subject, payload in outbox:
            try:
                await transport.publish(subject, payload)
            except BusError as error:
                log.warning("a control message was not sent: %s", error)


@asynccontextmanager
async def open_calls(
    transport: Transport, claims: ClaimCheck | None = None
) -> AsyncIterator[Calls]:
    """Make calls on a transport; at the end those that run are cancelled, and the cancels are sent (for a second)."""
    send, receive = anyio.create_memory_object_stream[tuple[str, bytes]](OUTBOX_SIZE)
    async with background_tasks() as tasks:
        calls = Calls(transport, claims, send)
        sending = anyio.CancelScope(shield=True)

        async def run_sender() -> None:
            with sending:
                await send_all(transport, receive)

        tasks.start_soon(run_sender)
        try:
            async with transport.subscribe(calls.subject, calls.receive):
                yield calls
        finally:
            calls.close()
            send.close()
            sending.deadline = anyio.current_time() + 1
