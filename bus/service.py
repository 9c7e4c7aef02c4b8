"""The responder's side: actors that implement Protocols, served on the bus."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from ..schemas import AylluError, Cancelled, EngineDead, Overloaded, Unavailable
from .bundles import Bundles
from .bus import Bus
from .description import describe
from .handling import Handling
from .handover import Handed, share_subject
from .sharer import Sharer
from .slots import Slots
from .transport import Message

log = logging.getLogger(__name__)

MAX_RUNNING = 1000
"""How many requests an actor without `Slots` works on at once; more are answered with `Overloaded`."""
GRACE_SECONDS = 5.0
"""How long running calls may go on after their actor was told to stop, where nothing else is said."""
FLUSH_SECONDS = 1.0


class Drain:
    """How long running calls may go on after their actors were told to stop; the actors of a process share one.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float = GRACE_SECONDS) -> None:
        self.seconds = seconds
        self.cut = anyio.Event()
        """Set it, and they end at once, with a retryable error to their callers."""


class Service:
    """One actor while it is served.

    Args:
        bus: the bus.
        actor: its class inherits from the Protocols that it implements. If it has ``slots`` (`Slots`), no more requests run at
            once than it has, and it shares those that wait with other actors that serve the same.
        drain: how long running calls may go on after `run` was cancelled.
    """

    def __init__(self, bus: Bus, actor: object, drain: Drain | None = None) -> None:
        self.bus = bus
        self.actor = actor
        self.withdrawn = anyio.Event()
        """Set once no new requests come."""
        info, self._operations = describe(actor)
        self.info = replace(info, stats=self.stats)
        self._stats_of_actor = info.stats
        self._calls = self._errors = 0
        self._drain = drain or Drain()
        self._running: dict[str, Handling] = {}
        self._idle = anyio.Event()
        self._stopping = anyio.Event()
        self._ending = anyio.Event()
        self._closed = False
        self._patience = 0.0
        self._death: EngineDead | None = None
        self._tasks: TaskGroup | None = None
        self._next = 0
        self._control = bus.transport.inbox()
        self._bundles = Bundles(bus.transport)
        self._slots: Slots | None = getattr(actor, "slots", None)
        self._sharer: Sharer | None = None
        if self._slots is not None:
            subject = share_subject(self.info.name, self._operations)
            self._sharer = Sharer(bus.transport, self._slots, subject, self)

    @property
    def running_count(self) -> int:
        """How many requests are being worked on, or wait for that."""
        return len(self._running)

    def stats(self) -> dict[str, Any]:
        """Return what the service tells of its work: what the actor tells (``service_stats``), and

        - ``calls``: the requests that ended, and ``errors``: those of them that ended in an error other than their caller's
          own cancellation; what was handed over to another actor counts there;
        - ``running``: the requests that are being worked on;
        - ``waiting``: those that wait for a slot; an actor that knows of more that waits may tell it itself.
        """
        waiting = 0 if self._slots is None else min(self._slots.waiting, len(self._running))
        told: Mapping[str, Any] = {}
        if self._stats_of_actor is not None:
            try:
                told = msgspec.convert(msgspec.to_builtins(self._stats_of_actor()), dict[str, Any])
            except Exception:
                log.exception("%s does not tell what it does", self.info.name)
        return {
            "waiting": waiting,
            **told,
            "calls": self._calls,
            "errors": self._errors,
            "running": len(self._running) - waiting,
        }

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, or until it has been retired; started means ready.

        When cancelled, the actor takes no new requests, and those that it has go on (those that wait: with another actor, if
        one has room) until the drain's time is over; what is left then ends with a retryable error to its caller.

        Raises:
            EngineDead: what the actor stands on died under a request; all requests end with a retryable error, and
                whoever supervises the actor starts it anew.
        """
        async with AsyncExitStack() as stack:
            # The control subject is heard to the very end: calls that are let go on need the credit of their readers.
            await stack.enter_async_context(
                self.bus.transport.subscribe(f"{self._control}.*", self._on_control)
            )
            if self._sharer is not None:
                await stack.enter_async_context(self._sharer.listening())
            owner = await stack.enter_async_context(anyio.create_task_group())
            # What outlives the cancellation of `run` must have begun to be told to end; it begins at once.
            with anyio.CancelScope(shield=True):
                await owner.start(self._host)
            try:
                await self._take_requests(task_status)
                self.withdrawn.set()
                with anyio.move_on_after(self._patience) as patience:
                    await self._wait_idle()
                if patience.cancelled_caught:
                    self._stop_all(Unavailable("the actor has been retired"))
            finally:
                self.withdrawn.set()
                self._stopping.set()
        if self._death is not None:
            raise self._death

    async def _take_requests(self, task_status: TaskStatus[None]) -> None:
        async with self.bus.transport.announce(self.info, self._on_request):
            task_status.started()
            try:
                await self._ending.wait()
            finally:
                if self._sharer is not None:
                    self._sharer.drain()

    def retire(self, patience: float) -> None:
        """Take no new requests, and let those that run go on for up to so many seconds; then `run` returns."""
        self._patience = patience
        self._ending.set()

    async def _wait_idle(self) -> None:
        while self._running or (self._sharer is not None and self._sharer.busy):
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _host(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all requests; they outlive the cancellation of `run` for the grace time."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as sending:
                await sending.start(self._bundles.run)
                if self._sharer is not None:
                    await sending.start(self._sharer.run)
                await self._host_requests(task_status)
                if self._sharer is not None:
                    with anyio.move_on_after(FLUSH_SECONDS):
                        await self._sharer.flush()
                sending.cancel_scope.cancel()

    async def _host_requests(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await self._stopping.wait()
            await self._wait_drained()
            self._closed = True
            self._stop_all(Unavailable("the actor is shutting down"))

    async def _wait_drained(self) -> None:
        async def cut() -> None:
            await self._drain.cut.wait()
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(self._drain.seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut)
                await self._wait_idle()
                tasks.cancel_scope.cancel()

    def _on_request(self, message: Message) -> None:
        self._accept(message, None)

    def take(self, handed: Handed) -> None:
        """Take a request that another actor hands over, or that was handed over in vain."""
        self._accept(handed.message, handed)

    def _accept(self, message: Message, handed: Handed | None) -> None:
        operation = self._operations[message.subject]
        self._next += 1
        name = f"{self._next:x}"
        sharer = self._sharer
        handling = Handling(
            self.bus,
            operation,
            message,
            f"{self._control}.{name}",
            self._bundles,
            handed=handed,
            waits=sharer is not None,
        )
        self._running[name] = handling
        if self._tasks is None or self._closed:
            handling.stop(Unavailable("the actor is shutting down"))
        elif sharer is not None:
            sharer.arrive(name, handed)
        elif len(self._running) > MAX_RUNNING:
            handling.stop(Overloaded(f"the actor works on {MAX_RUNNING} requests already"))
        if self._tasks is not None:
            self._tasks.start_soon(self._handle, name, handling)

    async def _handle(self, name: str, handling: Handling) -> None:
        if self._slots is not None:
            self._slots.work_on(name)
        try:
            error = await handling.run(getattr(self.actor, handling.operation.method))
            if not handling.handed_over:
                self._calls += 1
                self._errors += error is not None and not isinstance(error, Cancelled)
            if isinstance(error, EngineDead) and self._death is None:
                self._death = error
                self._stop_all(EngineDead("the engine died; its actor is being restarted"))
                self._ending.set()
        finally:
            del self._running[name]
            if self._sharer is not None:
                self._sharer.leave(name)
            self.settle()

    def settle(self) -> None:
        """Look again whether nothing is left to do."""
        if not self._running:
            self._idle.set()

    def begin(self, name: str) -> None:
        """Begin with a request that waits."""
        self._running[name].begin()

    def refuse(self, name: str, error: Overloaded) -> None:
        """End a request that waits."""
        self._running[name].stop(error)

    def hand_over(self, name: str) -> Handed:
        """Have no more to do with a request that waits."""
        return self._running[name].hand_over()

    def _stop_all(self, error: AylluError) -> None:
        for handling in self._running.values():
            handling.stop(error)

    def _on_control(self, message: Message) -> None:
        name = message.subject[len(self._control) + 1 :]
        handling = self._running.get(name)
        if handling is not None:
            handling.control(message)
            if self._sharer is not None and handling.stopped:
                self._sharer.withdraw(name)


async def serve(
    bus: Bus,
    *actors: object,
    drain: Drain | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve actors on the bus until cancelled: ``await task_group.start(serve, bus, actor)`` returns when all are ready.

    Each actor's class inherits from the Protocols that it implements; see `Service`.

    Raises:
        TypeError: an actor does not implement what it inherits from.
    """
    services = [Service(bus, actor, drain) for actor in actors]
    async with anyio.create_task_group() as tasks:
        for service in services:
            await tasks.start(service.run)
        task_status.started()
