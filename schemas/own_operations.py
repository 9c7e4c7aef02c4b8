"""What own actors say of their operations, so that a gateway that does not know their Protocols can serve them.

It stands in the metadata of their service on the bus (`OWN_OPERATIONS`). Anybody on the bus may announce some, so a reader
believes little: the route and the subject follow from the name, and no name may stand where one of ayllu's own could.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta

from .operations import OPERATIONS
from .tools import arguments_schema
from .webmethod import DEFAULT_TIMEOUT, STREAM_SUFFIX, Kind, Operation, Verb
from .wire import Reply, encode

OWN_OPERATIONS: Final = "operations"
"""The key of a service's metadata under which its operations stand, as the JSON text of a list of `OwnOperation`s."""
MOST_SCHEMA_BYTES = 16 << 10
"""How long a schema may be; a longer one is left out."""
MOST_DESCRIPTION_BYTES = 256 << 10
"""How long the operations of one actor may be; the schemas of a longer one are left out. A message on the bus has 1 MiB."""
LONGEST_TIMEOUT = 86_400.0
RESERVED: Final = frozenset({"v1", "ws", "metrics", "livez", "readyz", "openapi", "asyncapi"})
"""What the gateway has besides operations."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z", max_length=160)]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=100)]


class OwnOperation(Reply, frozen=True):
    """An operation of an own actor, as far as a gateway must know it."""

    name: Annotated[Name, Meta(description="The route with dots; the bus subject follows from it.")]
    api: Annotated[Identifier, Meta(description="Its Protocol; callers need this scope.")]
    kind: Annotated[Kind, Meta(description="Whether it has one reply, or yields events or items.")]
    verb: Annotated[Verb, Meta(description="The HTTP verb; `POST` works too.")] = "POST"
    summary: Annotated[str, Meta(max_length=400, description="One line for people.")] = ""
    timeout: Annotated[
        float, Meta(gt=0, le=LONGEST_TIMEOUT, description="The default deadline in seconds.")
    ] = DEFAULT_TIMEOUT
    body: Annotated[
        str,
        Meta(
            max_length=100,
            description="The parameter that is the whole HTTP body; without one, the body is an object of all parameters.",
        ),
    ] = ""
    query: Annotated[
        dict[Annotated[str, Meta(max_length=100)], Annotated[str, Meta(max_length=10)]],
        Meta(
            max_length=100,
            description="The parameters that may stand in the query string over HTTP: `text`, or `json` (numbers, booleans).",
        ),
    ] = {}


class DescribedOperation(OwnOperation, frozen=True):
    """The same, with schemas for people and other programs."""

    parameters: Annotated[
        dict[str, Any] | None, Meta(description="The JSON schema of the parameters, an object.")
    ] = None
    reply: Annotated[
        dict[str, Any] | None,
        Meta(description="The JSON schema of the reply, or of each event or item."),
    ] = None


class OwnParameters(msgspec.Struct, frozen=True):
    """The payload of an own operation to a gateway: an object, which the actor will look into."""

    stream: Any = False


@dataclass(frozen=True, slots=True)
class Taken:
    """What no own operation may have: the first parts of its name, and its API."""

    firsts: frozenset[str]
    apis: frozenset[str]


def taken_by(ours: Mapping[str, Operation]) -> Taken:
    """Return what is taken by the operations of a table, and by what the gateway has besides."""
    firsts = {name.partition(".")[0] for name in ours}
    return Taken(RESERVED | firsts, frozenset(operation.api for operation in ours.values()))


TAKEN: Final = taken_by(OPERATIONS)


def problem_with(name: str, api: str, taken: Taken = TAKEN) -> str:
    """Tell why an own operation may not be called so, or have this API; empty when it may.

    The first part of a name says whose it is: what begins like one of ours may be one of ours later, or be a subject on which
    one of ours is heard already.
    """
    try:
        msgspec.convert((name, api), tuple[Name, Identifier])
    except msgspec.ValidationError:
        return f"{name!r} of {api!r} is no name that a route on the gateway can have"
    first = name.partition(".")[0]
    if first in taken.firsts:
        return f"the route of {name} begins with /{first}, which is ayllu's own"
    if api in taken.apis:
        return f"the API of {name} is called {api}, as one of ayllu's own"
    return ""


def own_operations(operations: Iterable[Operation]) -> list[DescribedOperation]:
    """Return what an actor says of those of its operations that a gateway can serve by that alone.

    Operations of ours are known, and what is routed by a model has other subjects.
    """
    found = [
        _describe(operation)
        for operation in operations
        if operation.name not in OPERATIONS
        and operation.routed_by is None
        and not problem_with(operation.name, operation.api)
    ]
    if len(encode(found)) > MOST_DESCRIPTION_BYTES:
        found = [msgspec.structs.replace(one, parameters=None, reply=None) for one in found]
    return found


def _describe(operation: Operation) -> DescribedOperation:
    composite = [one.name for one in operation.parameters if not one.in_query]
    return DescribedOperation(
        operation.name,
        operation.api,
        operation.kind,
        operation.verb,
        operation.summary[:400],
        min(operation.timeout, LONGEST_TIMEOUT),
        composite[0] if composite else "",
        {
            one.name: "text" if _takes_text(one.type) else "json"
            for one in operation.parameters
            if one.in_query
        },
        _bounded(lambda: arguments_schema(operation)),
        _bounded(lambda: msgspec.json.schema(operation.output)),
    )


def _takes_text(type_: Any) -> bool:
    options = get_args(type_)
    if options:
        return any(_takes_text(option) for option in options)
    return isinstance(type_, type) and issubclass(type_, str)


def _bounded(make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return a schema, unless it is too long, or a type has none."""
    try:
        schema = make()
    except (TypeError, NotImplementedError):
        return None
    return schema if len(encode(schema)) <= MOST_SCHEMA_BYTES else None


def operation_from(own: OwnOperation) -> Operation:
    """Return an operation as a gateway serves it: its parameters are an object, and their types are known to its actor only."""
    base = own.name.removesuffix(STREAM_SUFFIX)
    return Operation(
        name=own.name,
        api=own.api,
        protocol=object,
        method=base.rpartition(".")[2],
        verb=own.verb,
        route="/" + base.replace(".", "/"),
        operation_id=own.name.replace(".", "_"),
        summary=own.summary,
        kind=own.kind,
        sse=own.kind == "stream",
        parameters=(),
        input=OwnParameters,
        output=Any,
        assemble=None,
        routed_by=None,
        timeout=own.timeout,
    )
