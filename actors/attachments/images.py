"""Images of messages, for models that take them."""

from __future__ import annotations

from ...schemas import Attachment, InvalidRequest, TooLarge
from ..documents import media_type
from .data_urls import BASE64, bytes_of, size_of, split, url_of

ANY = "image/*"
"""The type of an image whose sender does not know it."""
TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""What models with images take."""
BEGIN = 64
"""Characters of base64 that tell the type; a multiple of four."""
MAX_BYTES = 20 << 20
"""Of one image; what servers of models take is mostly less."""


def is_image(mime_type: str) -> bool:
    """Tell whether an attachment of a type is an image that a model may take."""
    essence, _ = media_type(mime_type)
    return essence == ANY or essence in TYPES


def type_of(data: bytes) -> str | None:
    """Return the type of an image by how it begins, None where it is none of `TYPES`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def image_url(attachment: Attachment, where: str) -> str:
    """Return the ``data:`` URL of an image. Its type is checked by how it begins; whether all of it is well, who shows it knows.

    Raises:
        InvalidRequest: it was not fetched, is malformed, or is not of the type that it says.
        TooLarge: it is over the limit.
    """
    if not attachment.url.startswith("data:"):
        raise InvalidRequest(
            f"{where}: this image was not fetched; send its content as a data: URL"
        )
    try:
        header, data = split(attachment.url)
        if not header.lower().endswith(BASE64) or "%" in data:
            header, data = split(url_of("", bytes_of(attachment.url)))
        if size_of(attachment.url) > MAX_BYTES:
            raise TooLarge(f"an image has at most {MAX_BYTES} bytes")
        # It is not read whole: that would take its time for each message that shows it again.
        begin = bytes_of(f"data:{BASE64},{data[:BEGIN]}")
        return f"data:{checked_type(begin, attachment.mime_type)}{BASE64},{data}"
    except InvalidRequest as error:
        raise type(error)(f"{where}: {error.message}") from error


def checked_type(data: bytes, mime_type: str) -> str:
    """Return the type of an image.

    Args:
        data: how it begins.
        mime_type: what its sender calls it.

    Raises:
        InvalidRequest: it is another one, or no image that models take.
    """
    said, found = media_type(mime_type)[0], type_of(data)
    if found is None or said not in (ANY, found):
        known = ", ".join(TYPES)
        raise InvalidRequest(f"it is said to be {said}, but is {found or f'none of {known}'}")
    return found
