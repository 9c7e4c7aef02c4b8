"""Which tools of an MCP server are offered: what it says of them is bounded, and what cannot be used is left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import mcp_types as mcp
import msgspec

from ....schemas import InvalidRequest
from ..checking import check_schema
from .settings import McpSettings

log = logging.getLogger(__name__)

MAX_TOOLS = 200
MAX_DESCRIPTION = 2000
"""Characters of a description; what is longer is cut."""
MAX_SCHEMA = 32 << 10
"""Bytes of a schema."""
MAX_ALL = 256 << 10
"""Bytes of all that is told of a server's tools: it travels in one message."""
MAX_NODES = 5000
"""Parts of a schema once all that it refers to stands in it: so much is looked at for each call."""
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,100}")
MAX_DEPTH = 64
"""How deep these stand in each other."""
_UNSAFE = ("pattern", "patternProperties", "$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor")
"""What a server could stop us with: expressions that take for ever (it may check them itself), and names that would let
references go where nobody looked."""


class Listed(msgspec.Struct, frozen=True):
    """A tool that can be offered: its own name, and what is told of it."""

    name: str
    description: str
    parameters: dict[str, Any]


def usable_tools(tools: Iterable[mcp.Tool], settings: McpSettings) -> list[Listed]:
    """Return the tools that can be offered, by name; the log says why others are not."""
    found: dict[str, Listed] = {}
    size = 0
    for tool in tools:
        if settings.tools is not None and tool.name not in settings.tools:
            continue
        try:
            listed = _listed(tool)
        except (InvalidRequest, RecursionError) as error:
            _left_out(settings, tool.name, str(error))
            continue
        size += len(msgspec.json.encode(listed))
        if tool.name in found or len(found) == MAX_TOOLS or size > MAX_ALL:
            _left_out(settings, tool.name, "there are too many, or two of this name")
            continue
        found[tool.name] = listed
    for name in sorted(set(settings.tools or ()) - set(found)):
        log.warning("MCP server %s has no usable tool %s", settings.name, ascii(name))
    return [found[name] for name in sorted(found)]


def _left_out(settings: McpSettings, tool: str, why: str) -> None:
    log.warning(
        "the tool %s of MCP server %s is left out: %s", ascii(tool[:100]), settings.name, why[:300]
    )


def _listed(tool: mcp.Tool) -> Listed:
    if not _NAME.fullmatch(tool.name):
        raise InvalidRequest("no model could call it by that name")
    if len(msgspec.json.encode(tool.input_schema)) > MAX_SCHEMA:
        raise InvalidRequest(f"its schema has more than {MAX_SCHEMA} bytes")
    schema = _harmless(tool.input_schema)
    check_schema(schema, tool.name)
    if schema.get("type", "object") != "object":
        raise InvalidRequest("its arguments are no object")
    if _nodes(schema, schema, ("#",)) > MAX_NODES:
        raise InvalidRequest("its schema is too large with all that it refers to")
    description = (tool.description or tool.title or tool.name).strip()
    if len(description) > MAX_DESCRIPTION:
        description = f"{description[:MAX_DESCRIPTION]}..."
    return Listed(tool.name, description, schema)


def _harmless(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without what costs more than reading it; properties may have any name."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _UNSAFE:
            continue
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            found[key] = {name: _harmless_value(one) for name, one in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            found[key] = value
        else:
            found[key] = _harmless_value(value)
    return found


def _harmless_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _harmless(value)
    return [_harmless_value(one) for one in value] if isinstance(value, list) else value


def _nodes(root: Mapping[str, Any], value: Any, within: tuple[str, ...], depth: int = 0) -> int:
    """Return how many parts a schema has with all that it refers to, up to one more than it may have.

    Raises:
        InvalidRequest: it cannot be told, since it refers to itself or to something else.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequest("its schema is nested too deep")
    count = 1
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(value.get("$dynamicRef"), str):
            raise InvalidRequest("its schema has dynamic references")
        if isinstance(reference, str):
            if reference in within:
                raise InvalidRequest("its schema refers to itself")
            target = _target(root, reference)
            count += _nodes(root, target, (*within, reference), depth + 1)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if count <= MAX_NODES:
            count += _nodes(root, part, within, depth + 1)
    return count


def _target(root: Mapping[str, Any], reference: str) -> Any:
    """Return what a reference within a schema means.

    Raises:
        InvalidRequest: nothing in this schema.
    """
    found: Any = root
    first, *names = reference.split("/")
    for name in names:
        key = name.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    if first != "#" or not isinstance(found, dict):
        raise InvalidRequest("its schema refers to what is not in it")
    return found
