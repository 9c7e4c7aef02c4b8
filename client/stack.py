"""The typed client: the APIs of the specification as Python objects, over a websocket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

import msgspec
from typing_extensions import TypeForm

from ..schemas import (
    OPERATIONS,
    AgenticSystem,
    AgentTurns,
    Datasets,
    Embeddings,
    Groups,
    Improvement,
    Inference,
    MemoryBankDocuments,
    MemoryBanks,
    Model,
    ModelRegistry,
    Operation,
    PostTraining,
    PostTrainingJobs,
    RewardScoring,
    SyntheticDataGeneration,
    SyntheticDataJobs,
    operations_of,
)
from ..schemas.proxy import Carrier, add_methods
from .agents import AgentClient
from .connection import Connection, WebsocketCall, open_connection
from .groups import GroupClient

P = TypeVar("P")


class PostTrainingStack(PostTraining, Protocol):
    """The PostTraining API."""

    job: PostTrainingJobs


class SyntheticDataStack(SyntheticDataGeneration, Protocol):
    """The SyntheticDataGeneration API."""

    job: SyntheticDataJobs


class AgenticSystemStack(AgenticSystem, Protocol):
    """The AgenticSystem API."""

    turn: AgentTurns


class ModelsStack(ModelRegistry, Protocol):
    """The Models API: ``stack.models()`` lists what is served, ``stack.models.register(...)`` adds to it."""

    def __call__(self) -> AsyncIterator[Model]:
        """List the models that live actors serve."""
        ...


class Stack(Inference, Embeddings, Protocol):
    """All APIs of a deployment: operations are called by their names, ``stack.memory_bank.insert(...)``.

    Methods raise `AylluError`s. A streamed method returns an `EventStream`; leaving it cancels the call.
    """

    agentic_system: AgenticSystemStack
    memory_banks: MemoryBanks
    memory_bank: MemoryBankDocuments
    reward_scoring: RewardScoring
    synthetic_data_generation: SyntheticDataStack
    improvement: Improvement
    groups: Groups
    datasets: Datasets
    post_training: PostTrainingStack
    models: ModelsStack

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> WebsocketCall:
        """Start a call with JSON text as its payload: the raw form, for generic tools."""
        ...

    def api(self, protocol: TypeForm[P]) -> P:
        """Return the client of a further API, an own Protocol with `@webmethod`s."""
        ...

    def agent(self, agent_id: str) -> AgentClient:
        """Return an agent, whose turns are followed over broken connections to their end."""
        ...

    def group(self, group_id: str) -> GroupClient:
        """Return a group, whose conversation is followed over broken connections to its end."""
        ...


class _Namespace:
    """Holds the operations, and the namespaces, under one name; which may be an operation itself."""

    _operation: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._operation is None:
            raise TypeError("this is a group of operations, and none itself")
        return self._operation(*args, **kwargs)

    def child(self, name: str) -> _Namespace:
        found = vars(self).get(name)
        if not isinstance(found, _Namespace):
            operation, found = found, _Namespace()
            found._operation = operation
            setattr(self, name, found)
        return found


class _Stack(_Namespace):
    def __init__(self, connection: Connection, timeout: float | None) -> None:
        self._connection = connection
        self._timeout = timeout
        # From the root outwards: a name that is an operation too is one before anything stands below it.
        for operation in sorted(OPERATIONS.values(), key=lambda one: one.name.count(".")):
            space: _Namespace = self
            for name in filter(None, operation.namespace.split(".")):
                space = space.child(name)
            add_methods(space, (operation,), self._carrier)

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> WebsocketCall:
        return await self._connection.call(
            operation.name,
            payload,
            unary=operation.kind == "unary",
            timeout=timeout or self._timeout or operation.timeout,
        )

    def api(self, protocol: type) -> object:
        made = _Namespace()
        add_methods(made, operations_of(protocol), self._carrier)
        return made

    def agent(self, agent_id: str) -> AgentClient:
        return AgentClient(self, agent_id)

    def group(self, group_id: str) -> GroupClient:
        return GroupClient(self, group_id)

    @property
    def _carrier(self) -> Carrier:
        async def carry(operation: Operation, payload: bytes, _: msgspec.Struct) -> WebsocketCall:
            return await self.call(operation, payload)

        return carry


@asynccontextmanager
async def connect(
    url: str, *, token: str | None = None, timeout: float | None = None
) -> AsyncIterator[Stack]:
    """Connect to a gateway.

    The connection reconnects by itself; calls that ran when it broke end in a retryable `BusError`, later ones wait until
    it is back.

    Args:
        url: ``ws://HOST:PORT/ws``; the address that ``ayllu up`` prints works too.
        token: what the gateway lets us in by, if it wants one; use ``wss://`` or ``https://`` then, or loopback.
        timeout: the deadline of each call in seconds; by default each operation's own.

    Raises:
        BusError: no gateway answers.
        InvalidRequest: the address is not one.
        Unauthenticated: the gateway does not take the token.
        PermissionDenied: it takes no clients from here.
    """
    async with open_connection(websocket_url(url), token) as connection:
        yield cast(Stack, _Stack(connection, timeout))


def websocket_url(url: str) -> str:
    """Return the websocket's address for the address of a gateway."""
    if url.startswith(("http://", "https://")):
        return "ws" + url.removeprefix("http").rstrip("/") + "/ws"
    return url
