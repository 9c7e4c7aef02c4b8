"""Which functions are tools: ``[[tools.functions]]`` in the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ....schemas import Wire

TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"


class FunctionSettings(Wire, frozen=True):
    """A function that is a tool; ``[[tools.functions]]``.

    Attributes:
        function: ``package.module:name``; Python must find the module.
        name: what models call it; by default the function's name.
        description: what it does, for the model; by default the first paragraph of its docstring.
        seconds: how long a call may take; then its process is killed.
        max_output: how many bytes of text it may answer.
        idempotent: whether a call that failed, or whose outcome is unknown, may be made again.
        at_once: how many processes run it, each for one call at a time; further calls wait.
        memory_mib: how much each process may allocate, in MiB (Linux only).
    """

    function: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300)]
    name: Annotated[str, Meta(pattern=TOOL_NAME)] | None = None
    description: Annotated[str, Meta(min_length=1, max_length=4000)] | None = None
    seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    max_output: Annotated[int, Meta(ge=1, le=1 << 20)] = 64 << 10
    idempotent: bool = False
    at_once: Annotated[int, Meta(ge=1, le=64)] = 2
    memory_mib: Annotated[int, Meta(ge=64, le=1 << 20)] = 1024

    @property
    def tool_name(self) -> str:
        """What models call it."""
        return self.name or self.function.rpartition(":")[2]
