"""The responder's side: actors that implement Protocols, served on the bus."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..schemas import (
    AylluError,
    EngineDead,
    Operation,
    Overloaded,
    Unavailable,
    encode,
    operations_of,
    tool_offers,
)
from .bundles import Bundles
from .bus import Bus
from .client import TOOLS
from .handling import Handling
from .subjects import encode_token
from .transport import Endpoint, Message, ServiceInfo

log = logging.getLogger(__name__)

MAX_RUNNING = 1000
"""How many requests one actor works on at once; more are answered with `Overloaded`."""
GRACE_SECONDS = 5.0
"""How long running calls may go on after the actor was told to stop."""


def implemented_operations(actor: object) -> tuple[Operation, ...]:
    """Return the operations of all Protocols that an actor's class inherits from.

    Raises:
        TypeError: it inherits from none, or leaves out a method.
    """
    operations: list[Operation] = []
    for protocol in type(actor).__mro__:
        if any(hasattr(function, "__webmethod__") for function in vars(protocol).values()):
            operations += operations_of(protocol)
    for operation in operations:
        if getattr(type(actor), operation.method) is getattr(operation.protocol, operation.method):
            raise TypeError(f"{type(actor).__name__} does not implement {operation.method}")
    if not operations:
        raise TypeError(f"{type(actor).__name__} inherits from no Protocol with @webmethod")
    return tuple(operations)


def describe(actor: object) -> tuple[ServiceInfo, Mapping[str, Operation]]:
    """Return an actor as a service, and its operations by subject.

    An actor may have ``service_name``, ``service_metadata``, a method ``service_stats`` (see `ServiceInfo.stats`) and, where
    operations are routed by model, ``models``.
    """
    name: str = getattr(actor, "service_name", type(actor).__name__)
    subjects: dict[str, Operation] = {}
    for operation in implemented_operations(actor):
        if operation.routed_by is None:
            subjects[operation.subject] = operation
        else:
            for model in sorted(getattr(actor, "models", ())):
                subjects[f"{operation.subject}.{encode_token(model)}"] = operation
    endpoints = [
        Endpoint(f"{operation.name.replace('.', '_')}-{number}", subject, name)
        for number, (subject, operation) in enumerate(subjects.items())
    ]
    metadata: dict[str, str] = dict(getattr(actor, "service_metadata", {}))
    offers = tool_offers(subjects.values())
    if offers:
        metadata[TOOLS] = encode(offers).decode()
    info = ServiceInfo(
        name=name,
        version="0.1.0",
        description=(type(actor).__doc__ or "").partition("\n")[0],
        metadata=metadata,
        endpoints=endpoints,
        stats=getattr(actor, "service_stats", None),
    )
    return info, subjects


class Service:
    """One actor while it is served."""

    def __init__(self, bus: Bus, actor: object) -> None:
        self.bus = bus
        self.actor = actor
        self.withdrawn = anyio.Event()
        """Set once no new requests come."""
        self.info, self._operations = describe(actor)
        self._running: dict[str, Handling] = {}
        self._idle = anyio.Event()
        self._stopping = anyio.Event()
        self._ending = anyio.Event()
        self._patience = 0.0
        self._death: EngineDead | None = None
        self._tasks: TaskGroup | None = None
        self._next = 0
        self._control = bus.transport.inbox()
        self._bundles = Bundles(bus.transport)

    @property
    def running_count(self) -> int:
        """How many requests are being worked on."""
        return len(self._running)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, or until it has been retired; started means ready.

        When cancelled, the actor takes no new requests and those that run have a grace time to end; what is left then
        ends with a retryable error to its caller.

        Raises:
            EngineDead: what the actor stands on died under a request; all requests end with a retryable error, and
                whoever supervises the actor starts it anew.
        """
        # The control subject is heard to the very end: calls that are let go on need the credit of their readers.
        async with (
            self.bus.transport.subscribe(f"{self._control}.*", self._on_control),
            anyio.create_task_group() as owner,
        ):
            await owner.start(self._host)
            try:
                async with self.bus.transport.announce(self.info, self._on_request):
                    task_status.started()
                    await self._ending.wait()
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

    def retire(self, patience: float) -> None:
        """Take no new requests, and let those that run go on for up to so many seconds; then `run` returns."""
        self._patience = patience
        self._ending.set()

    async def _wait_idle(self) -> None:
        while self._running:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _host(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all requests; they outlive the cancellation of `run` for the grace time."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as sending:
                await sending.start(self._bundles.run)
                await self._host_requests(task_status)
                sending.cancel_scope.cancel()

    async def _host_requests(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await self._stopping.wait()
            with anyio.move_on_after(GRACE_SECONDS):
                await self._wait_idle()
            self._stop_all(Unavailable("the actor is shutting down"))

    def _on_request(self, message: Message) -> None:
        operation = self._operations[message.subject]
        self._next += 1
        name = f"{self._next:x}"
        handling = Handling(self.bus, operation, message, f"{self._control}.{name}", self._bundles)
        if self._tasks is None or self._stopping.is_set():
            handling.stop(Unavailable("the actor is shutting down"))
        elif len(self._running) >= MAX_RUNNING:
            handling.stop(Overloaded(f"the actor works on {MAX_RUNNING} requests already"))
        self._running[name] = handling
        if self._tasks is not None:
            self._tasks.start_soon(self._handle, name, handling)

    async def _handle(self, name: str, handling: Handling) -> None:
        try:
            error = await handling.run(getattr(self.actor, handling.operation.method))
            if isinstance(error, EngineDead) and self._death is None:
                self._death = error
                self._stop_all(EngineDead("the engine died; its actor is being restarted"))
                self._ending.set()
        finally:
            del self._running[name]
            if not self._running:
                self._idle.set()

    def _stop_all(self, error: AylluError) -> None:
        for handling in self._running.values():
            handling.stop(error)

    def _on_control(self, message: Message) -> None:
        handling = self._running.get(message.subject[len(self._control) + 1 :])
        if handling is not None:
            handling.control(message)


async def serve(
    bus: Bus, *actors: object, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve actors on the bus until cancelled: ``await task_group.start(serve, bus, actor)`` returns when all are ready.

    Each actor's class inherits from the Protocols that it implements.

    Raises:
        TypeError: an actor does not implement what it inherits from.
    """
    services = [Service(bus, actor) for actor in actors]
    async with anyio.create_task_group() as tasks:
        for service in services:
            await tasks.start(service.run)
        task_status.started()
