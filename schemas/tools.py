"""Operations as tools of agents: what an actor says of those that it offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .webmethod import Operation
from .wire import Reply


class ToolOffer(Reply, frozen=True):
    """An operation that agents may call as a tool.

    Attributes:
        name: the operation's; that of the tool, too.
        description: what it does, for the model.
        subject: where its requests go.
        parameters: the JSON schema of its arguments.
        idempotent: whether a call whose outcome is unknown may be made again.
    """

    name: str
    description: str
    subject: str
    parameters: dict[str, Any]
    idempotent: bool = False


def tool_offers(operations: Iterable[Operation]) -> list[ToolOffer]:
    """Return the offers of those operations that are marked as tools."""
    return [
        ToolOffer(
            operation.name,
            operation.summary,
            operation.subject,
            arguments_schema(operation),
            operation.idempotent,
        )
        for operation in operations
        if operation.tool
    ]


def arguments_schema(operation: Operation) -> dict[str, Any]:
    """Return the JSON schema of an operation's arguments, an object that refers to nothing outside of it."""
    (reference,), components = msgspec.json.schema_components(
        [operation.input], ref_template="#/$defs/{name}"
    )
    own = dict(components.pop(str(reference["$ref"]).rpartition("/")[2]))
    own.pop("title", None)
    return {**own, "$defs": components} if components else own
