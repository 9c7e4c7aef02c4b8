"""What a shield is to its actor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ...schemas import Message, SafetyViolation, ShieldRequest, encode
from ..attachments import readable


class Shield(Protocol):
    """A shield.

    Attributes:
        name: what a `ShieldConfig` calls it.
        description: what it does, and how far it can be trusted.
        parameters: the JSON schema of its params, an object; they are checked when an agent is created, and before it looks.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    async def check(self, request: ShieldRequest) -> SafetyViolation | None:
        """Look at the last message; None where there is nothing to object to.

        Raises:
            AylluError: it cannot tell. Whoever asked must take that for a violation.
        """
        ...


def strings_of(message: Message) -> Iterator[str]:
    """Yield each text in a message by itself: those in the arguments of calls as they are, and not as JSON."""
    yield readable(message.content)
    for call in message.tool_calls:
        waiting: list[Any] = [call.arguments]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                waiting += [*reversed(value.values()), *reversed(value)]
            elif isinstance(value, list):
                waiting += reversed(value)
    for response in message.tool_responses:
        yield readable(response.content)


def text_to_check(message: Message) -> str:
    """Return all that stands in a message as text: what was said, the calls in it, and the answers of tools."""
    parts = [readable(message.content)]
    parts += [encode(call.arguments).decode() for call in message.tool_calls]
    parts += [readable(response.content) for response in message.tool_responses]
    return "\n".join(part for part in parts if part)
