"""Which MCP servers there are: ``[[tools.mcp]]`` in the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ....schemas import InvalidRequest, Wire

Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Meta(pattern=r"^[^\x00]*$", max_length=4096)]
ToolName = Annotated[str, Meta(min_length=1, max_length=128)]


class McpSettings(Wire, frozen=True):
    """An MCP server whose tools are offered; ``[[tools.mcp]]``.

    Attributes:
        name: what stands before the names of its tools, ``NAME.TOOL``.
        command: what starts it, where it talks over its standard input and output: a program and its arguments, no shell.
        cwd: the folder in which it is started; by default ours.
        env: which of our environment variables it gets, beside those that every program needs (``PATH``, ``HOME`` and such).
        env_from: variables that it gets from one of ours with another name.
        set_env: variables that it gets with a value that is no secret.
        url: where it is, where it talks over HTTP ("streamable HTTP").
        key_variable: the environment variable that holds the bearer token that lets us in.
        tools: which of its tools are offered, by its own names; all of them by default.
        idempotent: which of them may be called again after a call that failed, or whose outcome is unknown. What the server
            says of that does not count.
        seconds: how long a call may take.
        max_output: how many bytes of text a call may answer.
        start_seconds: how long it may take to be ready.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    command: Annotated[list[Text], Meta(min_length=1)] | None = None
    cwd: Text | None = None
    env: list[Variable] = []
    env_from: dict[Variable, Variable] = {}
    set_env: dict[Variable, Text] = {}
    url: str | None = None
    key_variable: Variable | None = None
    tools: list[ToolName] | None = None
    idempotent: list[ToolName] = []
    seconds: Annotated[float, Meta(gt=0, le=600)] = 60.0
    max_output: Annotated[int, Meta(ge=1, le=1 << 20)] = 64 << 10
    start_seconds: Annotated[float, Meta(gt=0, le=600)] = 60.0


def check_mcp(settings: McpSettings) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: something is wrong; the message names the entry.
    """
    entry = f"tools.mcp {settings.name!r}"
    if (settings.command is None) == (settings.url is None):
        raise InvalidRequest(f"{entry}: give either a `command` or a `url`")
    if settings.command is None:
        own = settings.cwd or settings.env or settings.env_from or settings.set_env
        if own:
            raise InvalidRequest(
                f"{entry}: `cwd`, `env`, `env_from` and `set_env` are for a `command`"
            )
    else:
        if not settings.command[0]:
            raise InvalidRequest(f"{entry}: the first part of `command` is a program")
        if settings.key_variable is not None:
            raise InvalidRequest(
                f"{entry}: `key_variable` is for a `url`; a command has `env_from`"
            )
        given = [*settings.env, *settings.env_from, *settings.set_env]
        if len(set(given)) < len(given):
            raise InvalidRequest(f"{entry}: an environment variable is given twice")
    left_out = set(settings.idempotent) - set(settings.tools or settings.idempotent)
    if left_out:
        names = ", ".join(sorted(left_out))
        raise InvalidRequest(f"{entry}: `idempotent` names what `tools` leaves out: {names}")
