"""One request in the hands of an actor: read it, run the method, send what comes of it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote

import anyio
import msgspec
from msgspec.structs import replace

from ..schemas import (
    AylluError,
    BusError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Operation,
    encode,
)
from ..schemas.tasks import first_of
from .bundles import BUNDLES, Bundles, Inbox
from .bus import Bus
from .calls import CLAIM_HEADER, EXCHANGE_HEADER, KEY_HEADER, TIMEOUT_HEADER, TRACE_HEADER
from .context import CallContext, current_call, new_traceparent
from .exchange import (
    ACCEPT,
    CLAIM,
    DATA,
    END,
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    Accept,
    Claimed,
    Responder,
)
from .handover import Handed
from .transport import Message

log = logging.getLogger(__name__)

END_SECONDS = 10.0
"""How long the terminal frame may take; a large result is stored first."""


@runtime_checkable
class WithResult(Protocol):
    """A stream of events that brings the assembled reply along, as JSON text, once it has ended."""

    result: bytes | None

    async def aclose(self) -> None:
        """Stop."""
        ...


class Handling:
    """A request that is being worked on.

    With the exchange header it is answered by frames; without it plainly, a reply (or each event) as one message on the
    reply subject, so that any NATS client can ask.

    Args:
        bus: the bus.
        operation: what is asked for.
        message: the request.
        control: the subject on which its caller is heard.
        bundles: what sends data frames.
        handed: the request as another actor handed it over, if one did.
        waits: whether it waits for `begin`.
    """

    def __init__(
        self,
        bus: Bus,
        operation: Operation,
        message: Message,
        control: str,
        bundles: Bundles,
        *,
        handed: Handed | None = None,
        waits: bool = False,
    ) -> None:
        self.operation = operation
        self._bus = bus
        self._message = message
        self._headers = message.headers or {}
        self._exchange = EXCHANGE_HEADER in self._headers and message.reply is not None
        self._inbox = Inbox(message.reply or "")
        self._bundles = (
            bundles if self._exchange and self._headers[EXCHANGE_HEADER] == BUNDLES else None
        )
        self._control = control
        self._hops = 0 if handed is None else handed.hops
        self._waited = 0.0 if handed is None else handed.waited
        self._since = asyncio.get_running_loop().time()
        self._begun = asyncio.Event() if waits else None
        self._handed_over = False
        self._machine = Responder()
        # Made by `run`: some of anyio, where the package sniffio is installed, cannot be made outside of tasks.
        self._scope: anyio.CancelScope | None = None
        self._stopped = False
        self._credit = anyio.Event()
        self._stop_error: AylluError | None = None

    def stop(self, error: AylluError) -> None:
        """End the work with an error to the caller."""
        self._stop_error = self._stop_error or error
        self._cancel()

    def _cancel(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    @property
    def stopped(self) -> bool:
        """Whether the work was told to end."""
        return self._stopped

    @property
    def handed_over(self) -> bool:
        """Whether another actor has it now."""
        return self._handed_over

    def begin(self) -> None:
        """Begin with the work; until then the caller only hears that the request was taken."""
        if self._begun is not None:
            self._begun.set()

    def hand_over(self) -> Handed:
        """End here without a word to the caller, and return the request for another actor, with the time that is left."""
        self._handed_over = True
        self._cancel()
        message = self._message
        waited = asyncio.get_running_loop().time() - self._since
        with suppress(InvalidRequest):  # Then it is as wrong with the other actor.
            left = f"{max(self._timeout() - waited, 0.001):.3f}"
            message = replace(message, headers={**self._headers, TIMEOUT_HEADER: left})
        return Handed(message, self._hops + 1, self._waited + waited)

    def control(self, message: Message) -> None:
        """Take what came on the control subject."""
        if message.no_responders:
            self._machine.caller_gone()
        else:
            self._machine.control(message.payload)
        self._after_control()

    def _after_control(self) -> None:
        if self._machine.cancelled is not None:
            self.stop(self._machine.cancelled)
        self._credit.set()

    async def run(self, method: Callable[..., Any]) -> AylluError | None:
        """Work on the request to its end, and return its error; the caller learns every outcome."""
        error: AylluError | None = None
        result: bytes | None = None
        try:
            async with anyio.create_task_group() as tasks:
                if self._exchange and not self._handed_over:
                    await self._send(ACCEPT, encode(Accept(self._control, self._hops)))
                    tasks.start_soon(self._beat)
                with anyio.CancelScope() as self._scope:
                    if self._stopped:
                        self._scope.cancel()
                    result = await self._work(method)
                tasks.cancel_scope.cancel()
        except* AylluError as group:
            error = first_of(group)
        except* Exception as group:
            # The traceback stays here; callers get a sentence.
            log.error("%s failed", self.operation.name, exc_info=first_of(group))
            error = InternalError(f"{self.operation.name} failed in the actor; its log says why")
        if self._handed_over:
            return None
        error = self._stop_error or error
        with anyio.move_on_after(END_SECONDS, shield=True):
            try:
                await self._end(error, result)
            except AylluError as lost:
                log.warning("the end of a call was not sent: %s", lost)
                with suppress(AylluError):  # Perhaps only the result could not be stored.
                    await self._end(error or lost, None)
        return error

    async def _work(self, method: Callable[..., Any]) -> bytes | None:
        if self._stop_error is not None:
            raise self._stop_error
        timeout = self._timeout()
        trace = self._headers.get(TRACE_HEADER, "") or new_traceparent()
        token = current_call.set(
            CallContext(
                anyio.current_time() + timeout,
                trace,
                self.operation.name,
                unquote(self._headers.get(KEY_HEADER, "")),
            )
        )
        try:
            with anyio.move_on_after(timeout):
                if self._begun is not None and not self._begun.is_set():
                    await self._begun.wait()
                return await self._run(method)
            raise DeadlineExceeded("the call did not end within its deadline")
        finally:
            current_call.reset(token)

    def _timeout(self) -> float:
        text = self._headers.get(TIMEOUT_HEADER)
        if text is None:
            return self.operation.timeout
        try:
            timeout = float(text)
        except ValueError:
            timeout = math.nan
        if not 0 < timeout < math.inf:
            raise InvalidRequest(f"the header {TIMEOUT_HEADER} is not a number of seconds")
        return timeout

    async def _run(self, method: Callable[..., Any]) -> bytes | None:
        payload = self._message.payload
        if CLAIM_HEADER in self._headers:
            if self._bus.claims is None:
                raise InvalidRequest("the request came by claim check; this bus has no store")
            payload = await self._bus.claims.load(payload)
        value = self.operation.read(payload)
        answer = method(**self.operation.arguments(value))
        if self.operation.kind == "unary":
            await self._data(encode(await answer))
            return None
        return await self._stream(answer)

    async def _stream(self, events: AsyncIterator[Any]) -> bytes | None:
        assemble = self.operation.assemble
        kept: list[Any] = []
        keeps = assemble is not None and not isinstance(events, WithResult)
        encode_event = msgspec.json.Encoder().encode
        try:
            async for event in events:
                payload = encode_event(event)
                if not self._bundled(payload):
                    await self._data(payload)
                if keeps:
                    kept.append(event)
        finally:
            # A generator is closed when its reader stops; an iterator of another kind may not need it.
            if isinstance(events, AsyncGenerator | WithResult):
                await events.aclose()
        if isinstance(events, WithResult):
            return events.result
        return None if assemble is None else encode(assemble(kept))

    def _bundled(self, payload: bytes) -> bool:
        """Send an event with others of this turn where nothing stands in its way; the usual case, without a coroutine."""
        machine, bundles = self._machine, self._bundles
        if bundles is None or not machine.may_send or not bundles.put(self._inbox, payload):
            return False
        machine.sent()
        return True

    async def _data(self, payload: bytes) -> None:
        machine = self._machine
        while self._exchange and not machine.may_send:
            self._credit = anyio.Event()
            await self._credit.wait()
        claims = self._bus.claims
        kind = DATA
        if claims is not None and len(payload) > claims.limit and self._exchange:
            kind, payload = CLAIM, await claims.store(payload)
        machine.sent()  # Before it is: its credit may come while the bus still holds us up.
        if self._bundles is not None and kind == DATA:
            await self._bundles.add(self._inbox, payload)
        else:
            await self._send(kind, payload)

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_SECONDS)
            # Asked for as a request, so that the bus says when the caller's inbox is gone.
            try:
                # What is sent between the count and the heartbeat would hide as many lost frames: little waits now.
                await self._flush()
                payload = self._machine.heartbeat(anyio.current_time())
                self._after_control()
                await self._flush()
                await self._bus.transport.publish(
                    f"{self._message.reply}.{HEARTBEAT}", payload, reply=self._control
                )
            except BusError as error:
                log.warning("a heartbeat was not sent: %s", error)

    async def _flush(self) -> None:
        if self._bundles is not None:
            await self._bundles.flush()

    async def _send(self, kind: str, payload: bytes) -> None:
        reply = self._message.reply
        if reply is not None:
            await self._flush()
            subject = f"{reply}.{kind}" if self._exchange else reply
            await self._bus.transport.publish(subject, payload)

    async def _end(self, error: AylluError | None, result: bytes | None) -> None:
        if self._exchange:
            claims = self._bus.claims
            kept: bytes | Claimed | None = result
            if claims is not None and result is not None and len(result) > claims.limit:
                kept = Claimed(await claims.store(result))
            await self._send(END, self._machine.end(error, kept))
            return
        reply = self._message.reply
        if reply is None:
            return
        if error is not None:
            # The headers of the NATS services convention (ADR-32), so that the usual tools show the error.
            headers = {
                "Nats-Service-Error-Code": str(error.http_status),
                "Nats-Service-Error": error.code,
            }
            await self._bus.transport.publish(reply, encode({"error": error.info}), headers=headers)
        elif self.operation.kind != "unary":
            await self._bus.transport.publish(reply, b"", headers={"Ayllu-End": "1"})
