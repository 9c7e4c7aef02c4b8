"""Content with attachments as the plain text that a language model reads."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from ...schemas import Attachment, Content, InvalidRequest, Unsupported

_TEXT_TYPES = frozenset(
    f"application/{name}"
    for name in ("json", "xml", "yaml", "x-yaml", "toml", "javascript", "sql", "x-ndjson", "jsonl")
)
# What text is written in. Not every codec of Python: some, such as punycode, take time that grows with the square.
_CHARSETS = frozenset(
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "us-ascii"),
        *(f"iso8859-{part}" for part in range(1, 17) if part != 12),
        *(f"cp{page}" for page in range(1250, 1259)),
        *("koi8-r", "koi8-u", "gb18030", "gbk", "big5", "shift_jis", "euc_jp", "euc_kr"),
    )
)

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def text_of(content: Content, *, model: str, where: str) -> str:
    """Return content as text; the text of attachments stands in it under a line that names its type.

    Args:
        content: what a client sent.
        model: the name of the model that shall read it, for messages.
        where: the path of the content in the request, for messages.

    Raises:
        Unsupported: an attachment is not text, or lies at an address that would have to be fetched.
        InvalidRequest: a ``data:`` URL is malformed.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Attachment):
        return _attached(content, model, where)
    return "\n".join(
        part if isinstance(part, str) else _attached(part, model, f"{where}[{number}]")
        for number, part in enumerate(content)
    )


def readable(content: Content) -> str:
    """Return what of content is text, for whoever must not stumble over the rest: other attachments are only named."""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(part if isinstance(part, str) else _readable(part) for part in parts)


def _readable(attachment: Attachment) -> str:
    try:
        return _attached(attachment, "", "content")
    except (Unsupported, InvalidRequest):
        return f"[attachment of type {attachment.mime_type}]"


def _attached(attachment: Attachment, model: str, where: str) -> str:
    mime_type, parameters = _media_type(attachment.mime_type)
    if not _is_text(mime_type):
        raise Unsupported(
            f"{where}: the model {model} reads text only, no attachment of type {mime_type}"
        )
    scheme, _, rest = attachment.url.partition(":")
    if scheme != "data":
        raise Unsupported(
            f"{where}: attachments at {scheme}: addresses are not fetched; send the content as a data: URL"
        )
    header = rest.partition(",")[0]
    _, own_parameters = _media_type(header.removesuffix(";base64"))
    charset = own_parameters.get("charset") or parameters.get("charset") or "utf-8"
    text = _decoded(data_url(attachment.url, where), charset, where)
    return f"[attachment of type {mime_type}]\n{text}\n[end of attachment]"


def data_url(url: str, where: str) -> bytes:
    """Return what a ``data:`` URL holds (RFC 2397).

    Raises:
        InvalidRequest: it is malformed; ``where`` is the path of the field, for the message.
    """
    header, comma, data = url.removeprefix("data:").partition(",")
    if not comma:
        raise InvalidRequest(f"{where}: the data: URL has no comma before its data")
    return _bytes_of(data, header.lower().endswith(";base64"), where)


def _media_type(text: str) -> tuple[str, Mapping[str, str]]:
    """Split ``text/plain; charset=utf-8`` into the lower-case type and its parameters (RFC 2045)."""
    essence, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    return essence.strip().lower(), parameters


def _is_text(mime_type: str) -> bool:
    return (
        mime_type.startswith("text/")
        or mime_type in _TEXT_TYPES
        or mime_type.endswith(("+json", "+xml", "+yaml"))
    )


def _bytes_of(data: str, is_base64: bool, where: str) -> bytes:
    """Return the bytes of a ``data:`` URL (RFC 2397)."""
    raw = data.encode()
    if _BROKEN_ESCAPE.search(raw):
        raise InvalidRequest(f"{where}: the data: URL has a broken % escape")
    plain = unquote_to_bytes(raw)
    if not is_base64:
        return plain
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{where}: the data: URL is not valid base64: {error}") from error


def _decoded(data: bytes, charset: str, where: str) -> str:
    try:
        codec = codecs.lookup(charset[:40]).name
    except (LookupError, ValueError):
        codec = ""
    if codec not in _CHARSETS:
        raise InvalidRequest(f"{where}: the charset {charset[:40]!r} is not known")
    try:
        return data.decode(codec)
    except ValueError as error:
        raise InvalidRequest(f"{where}: the data is not text in the charset {codec}") from error
