"""What a tool is to its actor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ...schemas import Content, ToolRequest


class Tool(Protocol):
    """A tool that agents may call.

    Attributes:
        name: what models call it.
        description: what it does, for the model.
        parameters: the JSON schema of its arguments, an object; they are checked before it runs.
        idempotent: whether a call that failed, or whose outcome is unknown, may be made again.
        seconds: how long a call may take.
        max_output: how many bytes of text it may answer; attachments do not count.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    idempotent: bool
    seconds: float
    max_output: int

    async def run(self, request: ToolRequest) -> Content:
        """Run it. Cancelling it ends what it does.

        Raises:
            AylluError: it failed; the model reads the message.
        """
        ...
