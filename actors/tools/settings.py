"""What tools a deployment has beside the operations of its actors: ``[tools]`` in its configuration."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, field

from ...schemas import BuiltinTool, InvalidRequest, Wire
from .functions.settings import FunctionSettings
from .mcp.settings import McpSettings, check_mcp

Seconds = Annotated[float, Meta(gt=0, le=600)]
AtOnce = Annotated[int, Meta(ge=1, le=256)]
SEARCH_SECONDS = 20.0
IMAGE_SECONDS = 180.0
SPARE_SECONDS = 5.0
"""What tools get beyond the time of the servers that they ask, so that the message about that arrives."""
Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class CodeInterpreterSettings(Wire, frozen=True):
    """What the code of ``code_interpreter`` may use; ``[tools.code_interpreter]``.

    Attributes:
        seconds: by the clock, and on a processor; the cells that are run again for their state count.
        memory_mib: of all of its processes together, in MiB.
        disk_mib: what it may write, in MiB; it is memory too.
        output_kib: what it may print, and write to standard error, each, in KiB.
        at_once: how many calls run at once in a worker; others wait.
    """

    seconds: Seconds = 30.0
    memory_mib: Annotated[int, Meta(ge=64, le=1 << 20)] = 512
    disk_mib: Annotated[int, Meta(ge=1, le=1 << 14)] = 64
    output_kib: Annotated[int, Meta(ge=1, le=1024)] = 16
    at_once: AtOnce = 4


class WebSearchSettings(Wire, frozen=True):
    """Whom ``web_search`` asks; ``[tools.web_search]``.

    Attributes:
        provider: whose API it is: ``brave``, ``tavily`` or ``searxng``.
        url: where the API is; ``brave`` and ``tavily`` have a default, ``searxng`` is where your own instance is.
        key_variable: the environment variable that holds the key; ``searxng`` needs none.
        results: how many results the model gets.
        seconds: how long a search may take, all tries together.
        at_once: how many searches run at once in a worker; others wait.
    """

    provider: Literal["brave", "tavily", "searxng"]
    url: str | None = None
    key_variable: Variable | None = None
    results: Annotated[int, Meta(ge=1, le=20)] = 5
    seconds: Seconds = SEARCH_SECONDS
    at_once: AtOnce = 8


class ImageGenSettings(Wire, frozen=True):
    """Whom ``image_gen`` asks; ``[tools.image_gen]``.

    Attributes:
        url: of an API like OpenAI's, for example ``https://api.openai.com/v1``; requests go to its ``/images/generations``.
        model: what the server calls the model.
        key_variable: the environment variable that holds the key, if the server wants one.
        size: of the image, as the server writes it; empty for what the server likes.
        seconds: how long an image may take.
        at_once: how many are made at once in a worker; others wait.
        private_hosts: ``HOST:PORT`` of servers on an intranet from which an image may be fetched, where the server answers with
            its address instead of the image.
    """

    url: str
    model: Annotated[str, Meta(min_length=1, max_length=200)]
    key_variable: Variable | None = None
    size: Annotated[str, Meta(max_length=40)] = "1024x1024"
    seconds: Seconds = IMAGE_SECONDS
    at_once: AtOnce = 2
    private_hosts: list[str] = []


class ToolsConfig(Wire, frozen=True):
    """The tools of a deployment.

    Attributes:
        builtin: which of the built-in tools are offered; all of them by default.
        code_interpreter: what code may use.
        web_search: whom searches go to; without it, the tool says what to configure.
        image_gen: who makes images; without it, the tool says what to configure.
        functions: Python functions that are tools.
        mcp: MCP servers whose tools are offered.
    """

    builtin: list[BuiltinTool] = field(default_factory=lambda: list(BuiltinTool))
    code_interpreter: CodeInterpreterSettings = CodeInterpreterSettings()
    web_search: WebSearchSettings | None = None
    image_gen: ImageGenSettings | None = None
    functions: list[FunctionSettings] = []
    mcp: list[McpSettings] = []


def check_tools(config: ToolsConfig) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: something is wrong; the message names the entry.
    """
    _check_builtin(config)
    _check_own(config)


def _check_builtin(config: ToolsConfig) -> None:
    if len(set(config.builtin)) < len(config.builtin):
        raise InvalidRequest("tools.builtin: a tool is named twice")
    search, images = config.web_search, config.image_gen
    if search is not None:
        if search.url is not None:
            _check_address("tools.web_search.url", search.url)
        elif search.provider == "searxng":
            raise InvalidRequest("tools.web_search.url: say where your SearXNG is")
        if search.key_variable is None and search.provider != "searxng":
            raise InvalidRequest(
                f"tools.web_search.key_variable: {search.provider} wants a key; name the environment variable that holds it"
            )
    if images is not None:
        _check_address("tools.image_gen.url", images.url)


def _check_own(config: ToolsConfig) -> None:
    names = [function.tool_name for function in config.functions]
    taken = {tool.value for tool in BuiltinTool}
    for name in names:
        if name in taken:
            raise InvalidRequest(
                f"tools.functions: the name {name!r} is taken; give another `name`"
            )
        taken.add(name)
    servers = [server.name for server in config.mcp]
    if len(set(servers)) < len(servers):
        raise InvalidRequest("tools.mcp: two servers have the same name")
    for server in config.mcp:
        check_mcp(server)
        if server.url is not None:
            _check_address(f"tools.mcp {server.name!r}: url", server.url)


def _check_address(entry: str, url: str) -> None:
    """Refuse what is no address of an API."""
    if not _is_address(url):
        raise InvalidRequest(
            f"{entry}: an address of an API is http(s)://HOST[:PORT][/PATH], without query and fragment; a key does not stand "
            "in it: name a `key_variable`"
        )


def _is_address(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or {" ", "?", "#", "@", "\\"} & set(url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
