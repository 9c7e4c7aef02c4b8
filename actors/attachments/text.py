"""Content with attachments as what a language model reads: text, and images where it takes them."""

from __future__ import annotations

from ...schemas import Attachment, Content, InvalidRequest, Unsupported
from ..documents import HTML, decoded, is_text, markdown, media_type
from ..engines.engine import Image
from ..untrusted import without_control_tokens
from .data_urls import data_url, parameters_of, size_of
from .images import image_url, is_image

MAX_TYPE = 100
"""Characters of a media type that are told."""


def text_of(content: Content, *, model: str, where: str) -> str:
    """Return content as text; the text of attachments stands in it under a line that names its type.

    Pages become Markdown. What looks like a control token in an attachment is written such that it is none.

    Args:
        content: what a client sent.
        model: the name of the model that shall read it, for messages.
        where: the path of the content in the request, for messages.

    Raises:
        Unsupported: an attachment is not text, or lies at an address that would have to be fetched.
        InvalidRequest: a ``data:`` URL is malformed.
    """
    return text_and_images(content, model=model, where=where, images=False)[0]


def text_and_images(
    content: Content, *, model: str, where: str, images: bool
) -> tuple[str, list[Image]]:
    """Return content as text, and the images in it, for a model that takes them; see `text_of`.

    Raises:
        TooLarge: an image is over the limit.
        Unsupported, InvalidRequest: as `text_of`.
    """
    if isinstance(content, str):
        return content, []
    pieces, length = list[str](), 0
    found = list[Image]()
    whole = isinstance(content, Attachment)
    for number, part in enumerate([content] if isinstance(content, Attachment) else content):
        place = where if whole else f"{where}[{number}]"
        if isinstance(part, Attachment) and images and is_image(part.mime_type):
            found.append(Image(image_url(part, place), length))
            continue
        piece = part if isinstance(part, str) else _attached(part, model, place)
        length += len(piece) + (1 if pieces else 0)
        pieces.append(piece)
    return "\n".join(pieces), found


def readable(content: Content) -> str:
    """Return what of content is text, for whoever must not stumble over the rest: other attachments are only named."""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(part if isinstance(part, str) else _readable(part) for part in parts)


def answer_text(content: Content) -> str:
    """Return what a tool answered as text. What of it is no text is named: a picture must not fail the turn of who wanted it.

    It is not fit for a prompt before it is written as `untrusted` does.
    """
    parts = content if isinstance(content, list) else [content]
    return "\n".join(part if isinstance(part, str) else _answered(part) for part in parts)


def _readable(attachment: Attachment) -> str:
    try:
        return _attached(attachment, "", "content")
    except (Unsupported, InvalidRequest):
        return f"[attachment of type {attachment.mime_type[:MAX_TYPE]}]"


def _answered(attachment: Attachment) -> str:
    try:
        return _framed(attachment, _text(attachment, "", "content"))
    except (Unsupported, InvalidRequest):
        size = f", {_size(attachment.url)}" if attachment.url.startswith("data:") else ""
        essence = media_type(attachment.mime_type)[0][:MAX_TYPE]
        return f"[attachment of type {essence}{size}: shown to the user, not to you]"


def _size(url: str) -> str:
    size = size_of(url)
    return f"{size} bytes" if size < 1024 else f"{round(size / 1024)} KiB"


def _attached(attachment: Attachment, model: str, where: str) -> str:
    return _framed(attachment, without_control_tokens(_text(attachment, model, where)))


def _framed(attachment: Attachment, text: str) -> str:
    essence = media_type(attachment.mime_type)[0]
    return f"[attachment of type {essence}]\n{text}\n[end of attachment]"


def _text(attachment: Attachment, model: str, where: str) -> str:
    essence, parameters = media_type(attachment.mime_type)
    if not is_text(essence):
        raise Unsupported(
            f"{where}: the model {model} reads text only here, no attachment of type {essence[:MAX_TYPE]}"
        )
    scheme = attachment.url.partition(":")[0]
    if scheme != "data":
        raise Unsupported(
            f"{where}: attachments at {scheme}: addresses are not fetched here; send the content as a data: URL"
        )
    charset = parameters_of(attachment.url).get("charset") or parameters.get("charset")
    data = data_url(attachment.url, where)
    try:
        text = decoded(data, charset)
        return markdown(text) if essence in HTML else text
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from error
