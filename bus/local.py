"""The bus within one process: for tests, and for programs that embed ayllu without a server."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from ..schemas import BusError
from .subjects import matches
from .transport import Handler, Message, ServiceInfo, ServiceStats

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Subscription:
    pattern: str
    handler: Handler
    queue: str | None


class LocalTransport:
    """A `Transport` in memory. Messages are delivered by the event loop, in the order of publishing."""

    def __init__(self, *, max_payload: int = 1 << 20) -> None:
        self._max_payload = max_payload
        self._subscriptions: list[_Subscription] = []
        self._services: dict[str, ServiceInfo] = {}
        self._names = itertools.count(1)
        self._published: deque[Message] = deque()
        self._delivery: asyncio.Task[None] | None = None

    @property
    def max_payload(self) -> int:
        """The largest payload of one message, in bytes."""
        return self._max_payload

    @property
    def connected(self) -> bool:
        """Always."""
        return True

    @property
    def reconnects(self) -> int:
        """Never."""
        return 0

    @property
    def subscription_count(self) -> int:
        """How many subscriptions are live (for tests that look for leaks)."""
        return len(self._subscriptions)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a message; see `Transport.publish`."""
        if len(payload) > self._max_payload:
            raise BusError(f"a payload of {len(payload)} bytes is too large", retryable=False)
        self._published.append(Message(subject, payload, reply, headers))
        if self._delivery is None or self._delivery.done():
            # A task, not a callback of the loop: where the package sniffio is installed, much of anyio works in tasks only.
            self._delivery = asyncio.create_task(self._deliver_all())

    async def _deliver_all(self) -> None:
        while self._published:
            self._deliver(self._published.popleft())

    def _deliver(self, message: Message) -> None:
        groups: dict[str, list[_Subscription]] = {}
        takers: list[_Subscription] = []
        for subscription in self._subscriptions:
            if matches(subscription.pattern, message.subject):
                if subscription.queue is None:
                    takers.append(subscription)
                else:
                    groups.setdefault(subscription.queue, []).append(subscription)
        takers += [random.choice(members) for members in groups.values()]  # noqa: S311
        for taker in takers:
            try:
                taker.handler(message)
            except Exception:
                log.exception("a handler of %s failed", taker.pattern)
        if not takers and message.reply is not None and not message.no_responders:
            self._deliver(Message(message.reply, b"", no_responders=True))

    @asynccontextmanager
    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str | None = None
    ) -> AsyncIterator[None]:
        """Hand messages to a handler; see `Transport.subscribe`."""
        subscription = _Subscription(subject, handler, queue)
        self._subscriptions.append(subscription)
        try:
            yield
        finally:
            self._subscriptions.remove(subscription)

    @asynccontextmanager
    async def announce(self, service: ServiceInfo, handler: Handler) -> AsyncIterator[ServiceInfo]:
        """Serve the endpoints of a service; see `Transport.announce`."""
        known = replace(service, id=f"local-{next(self._names):06}")
        async with AsyncExitStack() as stack:
            for endpoint in service.endpoints:
                await stack.enter_async_context(
                    self.subscribe(endpoint.subject, handler, queue=endpoint.queue)
                )
            self._services[known.id] = known
            try:
                yield known
            finally:
                del self._services[known.id]

    async def discover(self, name: str, *, wait: float = 0.25) -> list[ServiceInfo]:  # noqa: ARG002
        """Return the live instances of a service; see `Transport.discover`."""
        return [info for _, info in sorted(self._services.items()) if name in ("", info.name)]

    async def stats(self, name: str, *, wait: float = 0.25) -> list[ServiceStats]:  # noqa: ARG002
        """Return what the live instances of a service tell of their work; see `Transport.stats`."""
        return [
            ServiceStats(info.name, info.id, info.stats())
            for _, info in sorted(self._services.items())
            if name in ("", info.name) and info.endpoints and info.stats is not None
        ]

    def inbox(self) -> str:
        """Return a new subject."""
        return f"_INBOX.local{next(self._names)}"
