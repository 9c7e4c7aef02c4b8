"""The Tools API, and operations as tools: what actors say of the tools that they offer to agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from .content import ToolResponse
from .webmethod import Operation, webmethod
from .wire import Reply, Wire

TOOL_SECONDS = 120.0
"""How long a tool may take where it says nothing."""
MAX_TOOL_SECONDS = 3600.0
MAX_OUTPUT = 64 << 10
"""Bytes of text that a tool may answer where it says nothing; more is told to the model instead of being cut."""


class ToolRequest(Wire, frozen=True):
    """Run a tool."""

    tool_name: Annotated[str, Meta(min_length=1, max_length=160)]
    arguments: dict[str, Any] = {}
    earlier: Annotated[
        list[dict[str, Any]],
        Meta(
            description="The arguments of earlier calls of this tool in the same turn that succeeded, oldest first, for "
            "tools that go on from them."
        ),
    ] = []


class ToolOffer(Reply, frozen=True):
    """A tool that agents may call: an operation of an actor, or a tool behind `tools.call`."""

    name: Annotated[str, Meta(description="The tool's; an operation's own name.")]
    description: Annotated[str, Meta(description="What it does, for the model.")]
    subject: Annotated[str, Meta(description="Where its requests go on the bus.")]
    parameters: Annotated[dict[str, Any], Meta(description="The JSON schema of its arguments.")]
    idempotent: Annotated[
        bool,
        Meta(
            description="Whether a call that failed, or whose outcome is unknown, may be made again."
        ),
    ] = False
    seconds: Annotated[float, Meta(description="How long a call may take.")] = TOOL_SECONDS
    max_output: Annotated[int, Meta(description="How many bytes of text it may answer.")] = (
        MAX_OUTPUT
    )
    takes: Annotated[
        Literal["arguments", "request"],
        Meta(
            description="What its requests on the bus are: the arguments alone (an operation), or a whole `ToolRequest`."
        ),
    ] = "arguments"


class Tools(Protocol):
    """Run tools."""

    @webmethod(route="/tools/call", routed_by="tool_name", timeout=MAX_TOOL_SECONDS)
    async def call(self, request: ToolRequest) -> ToolResponse:
        """Run a tool (extension)."""
        ...


class ToolList(Protocol):
    """Look at what tools there are."""

    @webmethod(route="/tools/list", method="GET", api="Tools")
    def list(self) -> AsyncIterator[ToolOffer]:
        """List the tools that live actors offer to agents (extension)."""
        ...


def tool_offers(operations: Iterable[Operation]) -> list[ToolOffer]:
    """Return the offers of those operations that are marked as tools."""
    return [
        ToolOffer(
            operation.name,
            operation.summary,
            operation.subject,
            arguments_schema(operation),
            operation.idempotent,
            min(operation.timeout, TOOL_SECONDS),
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
