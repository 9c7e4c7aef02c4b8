"""What tools of MCP servers answer, as content."""

from __future__ import annotations

import base64
import binascii
import re

import mcp_types as mcp
import msgspec

from ....schemas import Attachment, Content, EngineError

_MIME_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,100}", re.IGNORECASE)


def content_of(result: mcp.CallToolResult) -> Content:
    """Return what a tool answered: texts, attachments, and its structured result where there is no text.

    Raises:
        EngineError: it failed, with the text that it says about that; or what it answers cannot be read.
    """
    parts = [_part(block) for block in result.content]
    if result.is_error:
        texts = [part for part in parts if isinstance(part, str)]
        raise EngineError("\n".join(texts) or "the MCP server says nothing about why")
    told = any(isinstance(part, str) and part for part in parts)
    if not told and result.structured_content is not None:
        parts.insert(0, msgspec.json.encode(result.structured_content).decode())
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, str) for part in parts):
        return "\n".join(str(part) for part in parts)
    return parts


def _part(block: mcp.ContentBlock) -> str | Attachment:
    match block:
        case mcp.TextContent():
            return block.text
        case mcp.ImageContent() | mcp.AudioContent():
            return _attachment(block.data, block.mime_type)
        case mcp.ResourceLink():
            # Only named: what lies there is not fetched on a server's word.
            return f"{block.name}: {block.uri}"
        case mcp.EmbeddedResource(resource=mcp.TextResourceContents() as resource):
            return resource.text
        case mcp.EmbeddedResource(resource=mcp.BlobResourceContents() as resource):
            return _attachment(resource.blob, resource.mime_type or "application/octet-stream")
    raise EngineError("the MCP server answers with a kind of content that is not known")


def _attachment(data: str, mime_type: str) -> Attachment:
    kind = mime_type.partition(";")[0].strip()
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EngineError("the MCP server answers with data that is no base64") from error
    if not _MIME_TYPE.fullmatch(kind):
        raise EngineError("the MCP server answers with data of no known type")
    return Attachment(f"data:{kind.lower()};base64,{data}", kind.lower())
