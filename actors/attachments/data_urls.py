"""``data:`` URLs (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from ...schemas import InvalidRequest
from ..documents import media_type

BASE64 = ";base64"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def data_url(url: str, where: str) -> bytes:
    """Return what a ``data:`` URL holds.

    Raises:
        InvalidRequest: it is malformed; ``where`` is the path of the field, for the message.
    """
    try:
        return bytes_of(url)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from error


def bytes_of(url: str) -> bytes:
    """Return what a ``data:`` URL holds.

    Raises:
        InvalidRequest: it is malformed.
    """
    header, data = split(url)
    raw = data.encode()
    if _BROKEN_ESCAPE.search(raw):
        raise InvalidRequest("the data: URL has a broken % escape")
    plain = unquote_to_bytes(raw)
    if not header.lower().endswith(BASE64):
        return plain
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"the data: URL is not valid base64: {error}") from error


def split(url: str) -> tuple[str, str]:
    """Return what stands before the comma of a ``data:`` URL, and what stands behind it.

    Raises:
        InvalidRequest: there is none.
    """
    header, comma, data = url.removeprefix("data:").partition(",")
    if not comma:
        raise InvalidRequest("the data: URL has no comma before its data")
    return header, data


def parameters_of(url: str) -> Mapping[str, str]:
    """Return the parameters of a ``data:`` URL's media type, such as ``charset``."""
    header = url.removeprefix("data:").partition(",")[0]
    return media_type(header.removesuffix(BASE64))[1]


def size_of(url: str) -> int:
    """Return about how many bytes a ``data:`` URL holds, without reading them."""
    header, _, data = url.partition(",")
    return len(data) * 3 // 4 if header.lower().endswith(BASE64) else len(data)


def url_of(mime_type: str, data: bytes) -> str:
    """Return the ``data:`` URL that holds something."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
