"""The bus over NATS.

nats-py calls back into this module from its own tasks; nothing that is called so raises, because that would end the
task. Subscriptions live on after a lost connection; what is published meanwhile waits in a bounded buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import Request
from nats.micro.service import EndpointStats, Service, ServiceConfig

from ..schemas import BusError
from .connection import CLEAN_UP_SECONDS, bounded, excess, open_connection
from .jetstream import JetStreamStorage
from .transport import Endpoint, Handler, Message, ServiceInfo, ServiceStats

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 10.0


class _EndpointInfo(msgspec.Struct):
    name: str
    subject: str
    queue_group: str = ""


class _ServiceInfo(msgspec.Struct):
    """An answer to ``$SRV.INFO``; any program may give one."""

    id: str
    name: str
    version: str
    description: str | None = None
    metadata: dict[str, str] | None = None
    endpoints: list[_EndpointInfo] | None = None


class _EndpointStats(msgspec.Struct):
    data: dict[str, Any] | None = None


class _ServiceStats(msgspec.Struct):
    """An answer to ``$SRV.STATS``; any program may give one."""

    id: str
    name: str
    endpoints: list[_EndpointStats] | None = None


_read_info = msgspec.json.Decoder(_ServiceInfo).decode
_read_stats = msgspec.json.Decoder(_ServiceStats).decode


def _stats_of(stats: Callable[[], Mapping[str, Any]]) -> Callable[[EndpointStats], Any]:
    return lambda _: dict(stats())


class NatsTransport:
    """A `Transport` over one NATS connection; see `connect_nats`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._storage = JetStreamStorage(client)

    @property
    def storage(self) -> JetStreamStorage:
        """What is durable on this bus."""
        return self._storage

    @property
    def max_payload(self) -> int:
        """The largest payload of one message, in bytes, as the server says."""
        return self._client.max_payload

    @property
    def connected(self) -> bool:
        """Whether the bus is there at this moment."""
        return self._client.is_connected

    @property
    def reconnects(self) -> int:
        """How often the bus was lost and found again."""
        return self._client.stats["reconnects"]

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a message; see `Transport.publish`.

        It is in the send buffer when this returns. During an outage the buffer takes 2 MiB.
        """
        problem = excess(self._client, subject, payload, headers, reply)
        if problem is not None:
            raise BusError(f"the message cannot be sent: {problem}", retryable=False)
        try:
            await self._client.publish(
                subject, payload, reply or "", None if headers is None else dict(headers)
            )
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            raise BusError(f"the message cannot be sent: {error}", retryable=False) from error
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"the bus is gone: {error or type(error).__name__}") from error

    @asynccontextmanager
    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str | None = None
    ) -> AsyncIterator[None]:
        """Hand messages to a handler; see `Transport.subscribe`.

        Raises:
            BusError: the bus did not confirm the subscription within ten seconds.
        """
        problem = excess(self._client, subject, b"", reply=queue)
        if problem is not None:
            raise BusError(f"cannot subscribe: {problem}", retryable=False)
        await self._synchronise()
        try:
            subscription = await self._client.subscribe(
                subject, queue=queue or "", cb=_deliver_to(handler, subject)
            )
        except nats.errors.Error as error:
            raise BusError(f"cannot subscribe to {subject!r}: {error}", retryable=False) from error
        subscription._pending_queue = _Straight(subscription, handler, subject)
        try:
            await self._synchronise()
            yield
        finally:
            await bounded(subscription.unsubscribe)

    @asynccontextmanager
    async def announce(self, service: ServiceInfo, handler: Handler) -> AsyncIterator[ServiceInfo]:
        """Serve the endpoints of a service; see `Transport.announce`.

        Raises:
            BusError: the description of the service breaks a rule of NATS, or the bus did not confirm it in time.
        """
        await self._synchronise()
        async with AsyncExitStack() as stack:
            try:
                config = ServiceConfig(
                    name=service.name,
                    version=service.version,
                    description=service.description,
                    metadata=dict(service.metadata),
                    stats_handler=None if service.stats is None else _stats_of(service.stats),
                )
                micro = Service(self._client, config)
                stack.push_async_callback(bounded, partial(self._leave, micro))
                await micro.start()
                for endpoint in service.endpoints:
                    deliver = _deliver_to(handler, endpoint.subject)
                    await micro.add_endpoint(
                        name=endpoint.name,
                        subject=endpoint.subject,
                        queue_group=endpoint.queue,
                        handler=_serve_with(deliver),
                    )
            except (nats.errors.Error, ValueError) as error:
                text = f"cannot announce {service.name!r}: {error}"
                raise BusError(
                    text, retryable=isinstance(error, nats.errors.TimeoutError)
                ) from error
            await self._synchronise()
            yield replace(service, id=micro.id)

    async def _leave(self, service: Service) -> None:
        """Stop a service; what the server has sent it already is still handled, where nats.micro's own way drops it."""
        found = [endpoint._subscription for endpoint in service._endpoints]
        subscriptions = [one for one in found if one is not None]
        # On a lost bus nothing comes any more; what is left of the time is for the stop itself.
        with suppress(BusError), anyio.move_on_after(CLEAN_UP_SECONDS / 2):
            for subscription in subscriptions:
                await self._client._send_unsubscribe(subscription._id)
            await self._synchronise()
            for subscription in subscriptions:
                await subscription._pending_queue.join()
        await service.stop()

    async def discover(self, name: str, *, wait: float = 0.25) -> list[ServiceInfo]:
        """Return the live instances of a service; see `Transport.discover`."""
        found: dict[str, ServiceInfo] = {}
        for info in await self._ask("INFO", name, _read_info, wait):
            endpoints = tuple(
                Endpoint(one.name, one.subject, one.queue_group) for one in info.endpoints or ()
            )
            found[info.id] = ServiceInfo(
                name=info.name,
                version=info.version,
                description=info.description or "",
                metadata=info.metadata or {},
                endpoints=endpoints,
                id=info.id,
            )
        return [found[id_] for id_ in sorted(found)]

    async def stats(self, name: str, *, wait: float = 0.25) -> list[ServiceStats]:
        """Return what the live instances of a service tell of their work; see `Transport.stats`."""
        found: dict[str, ServiceStats] = {}
        for stats in await self._ask("STATS", name, _read_stats, wait):
            # The protocol has a place for an endpoint's data only: ours stands with each of them.
            data = next((one.data for one in stats.endpoints or () if one.data), None)
            if data is not None:
                found[stats.id] = ServiceStats(stats.name, stats.id, data)
        return [found[id_] for id_ in sorted(found)]

    async def _ask(self, verb: str, name: str, read: Callable[[bytes], T], wait: float) -> list[T]:
        """Ask all instances of a service, and return what comes within the time."""
        answers: list[T] = []
        nobody = anyio.Event()

        def note(message: Message) -> None:
            if message.no_responders:
                nobody.set()
                return
            try:
                answers.append(read(message.payload))
            except msgspec.DecodeError:
                log.warning("a service gave an unreadable %s of itself on %s", verb, name)

        inbox = self.inbox()
        async with self.subscribe(inbox, note):
            await self.publish(f"$SRV.{verb}.{name}".rstrip("."), b"", reply=inbox)
            with anyio.move_on_after(wait):
                await nobody.wait()
        return answers

    def inbox(self) -> str:
        """Return a new subject."""
        return self._client.new_inbox()

    async def _synchronise(self) -> None:
        """Wait until the server has seen all that was sent before, through reconnects if need be."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0 and not self._client.is_closed:
            try:
                if self._client.is_connected:
                    # nats-py's ping overtakes what waits in its buffer. When the first is answered, the buffer has been
                    # written; the second comes after it. A ping that a lost connection swallowed is not answered
                    # any more: ask again soon.
                    for _ in range(2):
                        await self._client.flush(min(1.0, left))  # type: ignore[arg-type]  # takes fractions
                    return
            except (nats.errors.Error, OSError):
                continue
            await anyio.sleep(0.02)  # nats-py has no event for the reconnected state
        raise BusError(f"the bus did not answer for {PATIENCE:.0f} seconds")


def _hand(msg: Msg, handler: Handler, subject: str) -> None:
    headers = msg.headers
    silence = headers is not None and not msg.data and headers.get("Status") == "503"
    try:
        if silence:
            handler(Message(msg.subject, b"", no_responders=True))
        else:
            handler(Message(msg.subject, msg.data, msg.reply or None, headers))
    except Exception:
        log.exception("a handler of %s failed", subject)


class _Straight(asyncio.Queue[Msg]):
    """Stands where nats-py queues messages for a subscription's own task, and hands them to the handler at once.

    Handlers return at once, so queue and task give nothing, and cost about a sixth of what a token costs a
    gateway (docs/performance.md). A nats-py that kept its queue elsewhere would go on to use the subscription's callback.
    """

    def __init__(self, subscription: Subscription, handler: Handler, subject: str) -> None:
        super().__init__()
        self._subscription = subscription
        self._handler = handler
        self._subject = subject

    def put_nowait(self, item: Msg) -> None:
        """Hand a message over."""
        self._subscription._pending_size -= len(item.data)
        _hand(item, self._handler, self._subject)


def _deliver_to(handler: Handler, subject: str) -> Callable[[Msg], Awaitable[None]]:
    async def deliver(msg: Msg) -> None:
        _hand(msg, handler, subject)

    return deliver


def _serve_with(
    deliver: Callable[[Msg], Awaitable[None]],
) -> Callable[[Request], Awaitable[None]]:
    async def serve(request: Request) -> None:
        # The request has no public reply subject, and its own ways to respond want to be awaited.
        await deliver(request._msg)

    return serve


@asynccontextmanager
async def connect_nats(
    url: str, *, name: str = "ayllu", patience: float = PATIENCE
) -> AsyncIterator[NatsTransport]:
    """Connect to a NATS server; inside, the connection is kept, whatever happens to the server.

    Args:
        url: the address, with credentials if the server wants some; several ones are separated by commas.
        name: who connects, for the server's monitoring pages.
        patience: for how many seconds the first connection is tried.

    Raises:
        BusError: there was no connection in time, the credentials were refused, or (from the body of the ``async with``,
            which is cancelled) the server closed the connection for good, because of a defect of this program.
    """
    async with open_connection(url, name=name, patience=patience) as client:
        yield NatsTransport(client)
