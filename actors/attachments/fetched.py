"""Attachments fetched from where they are, once, so that whoever reads a message later reads the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from msgspec.structs import replace

from ...schemas import (
    Attachment,
    AylluError,
    Content,
    Dialog,
    InvalidRequest,
    Message,
    Role,
    TooLarge,
    Unavailable,
    error_from,
)
from ..documents import HTML, decoded, is_text, markdown, media_type
from ..rooted_files import RootedFiles
from .data_urls import bytes_of, parameters_of, url_of
from .images import ANY, TYPES, checked_type, is_image
from .settings import AttachmentsConfig
from .text import MAX_TYPE

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE = 4
"""How many attachments of a request are fetched at once."""
BLOCK = 1 << 18
PDF = frozenset({"application/pdf", "application/x-pdf"})
_VAGUE = frozenset(("", "application/octet-stream", "binary/octet-stream", "application/binary"))
"""Media types of servers that do not know what they have."""


async def fetched_messages(
    messages: Sequence[Message],
    limits: AttachmentsConfig,
    *,
    where: str = "messages",
    images: bool = True,
) -> list[Message]:
    """Return messages whose attachments are ``data:`` URLs, and whose pages and PDF documents are text.

    What cannot be attached stays as it is: whoever reads it refuses it. So does what tools answered: their addresses are
    not the user's. Cancelling it ends what it fetches.

    Args:
        messages: what a client sent.
        limits: what the attachments of all of them may cost.
        where: the path of the messages in the request, for errors.
        images: whether images are fetched.

    Raises:
        AylluError: an attachment cannot be had, for one of the reasons of `fetching.fetching` or `RootedFiles`; the message
            begins with its path. `TooLarge` and `Unavailable` are about limits.
    """
    numbered = [(f"{where}[{number}]", message) for number, message in enumerate(messages)]
    return await _fetched_at(numbered, limits, images=images)


async def fetched_dialogs(
    dialogs: Sequence[tuple[str, Dialog]], limits: AttachmentsConfig, *, images: bool
) -> list[Dialog]:
    """Return dialogs of one request, each with its path in it, as `fetched_messages` does with their messages."""
    messages: list[tuple[str, Message]] = []
    for where, dialog in dialogs:
        history = dialog.message_history or ()
        messages += [(f"{where}.message_history[{n}]", one) for n, one in enumerate(history)]
        messages.append((f"{where}.message", dialog.message))
    found = iter(await _fetched_at(messages, limits, images=images))
    return [
        Dialog(
            message_history=[next(found) for _ in dialog.message_history or ()] or None,
            message=next(found),
        )
        for _, dialog in dialogs
    ]


async def fetched_contents(
    contents: Sequence[tuple[str, Content]], limits: AttachmentsConfig, *, images: bool
) -> list[Content]:
    """Return contents, each with its path in the request, as `fetched_messages` does."""
    wanted: dict[Attachment, str] = {}
    for where, content in contents:
        for place, attachment in _attachments(content, where):
            if _is_wanted(attachment, images=images):
                wanted.setdefault(attachment, place)
    if not wanted:
        return [content for _, content in contents]
    dear = [place for attachment, place in wanted.items() if not _is_cheap(attachment)]
    if len(dear) > limits.max_count:
        raise TooLarge(
            f"{dear[limits.max_count]}: at most {limits.max_count} attachments of a request are fetched"
        )
    found = await _Fetching(limits).all(wanted)
    return [_replaced(content, found) for _, content in contents]


async def _fetched_at(
    messages: Sequence[tuple[str, Message]], limits: AttachmentsConfig, *, images: bool
) -> list[Message]:
    contents = [
        (f"{where}.content", "" if message.role is Role.tool else message.content)
        for where, message in messages
    ]
    found = await fetched_contents(contents, limits, images=images)
    return [
        message if new is old else replace(message, content=new)
        for (_, message), (_, old), new in zip(messages, contents, found, strict=True)
    ]


def _attachments(content: Content, where: str) -> Iterator[tuple[str, Attachment]]:
    if isinstance(content, Attachment):
        yield where, content
    elif not isinstance(content, str):
        for number, part in enumerate(content):
            if isinstance(part, Attachment):
                yield f"{where}[{number}]", part


def _is_wanted(attachment: Attachment, *, images: bool) -> bool:
    essence, _ = media_type(attachment.mime_type)
    if _is_data(attachment):
        return essence in HTML or essence in PDF
    return is_text(essence) or essence in PDF or (images and is_image(essence))


def _is_data(attachment: Attachment) -> bool:
    return attachment.url.startswith("data:")


def _is_cheap(attachment: Attachment) -> bool:
    return _is_data(attachment) and media_type(attachment.mime_type)[0] not in PDF


def _replaced(content: Content, found: Mapping[Attachment, Attachment]) -> Content:
    if isinstance(content, str):
        return content
    if isinstance(content, Attachment):
        return found.get(content, content)
    return [part if isinstance(part, str) else found.get(part, part) for part in content]


class _Fetching:
    """The attachments of one request, on their way."""

    def __init__(self, limits: AttachmentsConfig) -> None:
        self._limits = limits
        self._left = limits.max_total_bytes
        self._until = anyio.current_time() + limits.seconds
        self._free = anyio.CapacityLimiter(AT_ONCE)
        self._threads = anyio.CapacityLimiter(AT_ONCE)
        self._found: dict[Attachment, Attachment] = {}
        self._error: AylluError | None = None

    async def all(self, wanted: Mapping[Attachment, str]) -> Mapping[Attachment, Attachment]:
        """Fetch attachments; the first one that fails ends the others.

        Raises:
            AylluError: why; the message begins with its path.
        """
        async with anyio.create_task_group() as tasks:
            for attachment, where in wanted.items():
                tasks.start_soon(self._one, attachment, where, tasks.cancel_scope)
        if self._error is not None:
            raise self._error
        return self._found

    async def _one(self, attachment: Attachment, where: str, others: anyio.CancelScope) -> None:
        try:
            async with self._free:
                self._found[attachment] = await self._fetched(attachment)
        except AylluError as error:
            if self._error is None:
                info = replace(error.info, message=f"{where}: {error.message}")
                self._error = error_from(info)
                self._error.__cause__ = error
            others.cancel()

    async def _fetched(self, attachment: Attachment) -> Attachment:
        essence, parameters = media_type(attachment.mime_type)
        charset = parameters.get("charset")
        scheme = attachment.url.partition(":")[0]
        if scheme == "data":
            data = await self._in_thread(bytes_of, attachment.url)
            charset = parameters_of(attachment.url).get("charset") or charset
        elif scheme == "file":
            data = await self._in_thread(_read, attachment.url, self._limits)
            self._take(len(data))
        else:
            data, essence, told = await self._downloaded(attachment.url, essence)
            charset = charset or told
        if essence in PDF:
            # Only who reads them needs the sandbox.
            from .pdf import pdf_text

            text = await pdf_text(data, self._time_left())
            return await self._in_thread(_document, text, "text/plain")
        return await self._in_thread(_made, data, essence, charset)

    async def _downloaded(self, url: str, said: str) -> tuple[bytes, str, str]:
        """Return what a server has, as what it is read, and the charset that the server tells."""
        from ..fetching import Limits, fetching

        limits = Limits(self._limits.max_bytes, self._time_left(), self._limits.private_hosts)
        data = bytearray()
        async with fetching(url, limits) as fetched:
            essence = _agreed(said, fetched.media_type)
            async for block in fetched.body:
                self._take(len(block))
                data += block
        return bytes(data), essence, fetched.charset

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            most = self._limits.max_total_bytes
            raise TooLarge(f"the attachments of one request have more than {most} bytes together")

    def _time_left(self) -> float:
        left = self._until - anyio.current_time()
        if left <= 0:
            raise Unavailable(f"the attachments were not fetched within {self._limits.seconds:g} s")
        return left

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await anyio.to_thread.run_sync(
            partial(function, *args, **kwargs), limiter=self._threads
        )


def _agreed(said: str, told: str) -> str:
    """Return as what something is read: as its sender says, unless its server says that it is something else.

    Raises:
        InvalidRequest: it does: a page, say, where a table is wanted.
    """
    if told == said or told in _VAGUE or {said, told} <= PDF:
        return said
    if said == ANY and told in TYPES:
        return told
    # Many servers call all that can be read plain text; but a page that is read as plain text is no text of anybody's.
    if is_text(said) and (told == "text/plain" or (is_text(told) and told not in HTML)):
        return said
    raise InvalidRequest(
        f"it is said to be {said[:MAX_TYPE]}, but its server calls it {told[:MAX_TYPE]}"
    )


def _read(url: str, limits: AttachmentsConfig) -> bytes:
    data = bytearray()
    files = RootedFiles(limits.roots, "[attachments] roots")
    with files.open(url, limits.max_bytes) as source:
        while block := source.read(BLOCK):
            anyio.from_thread.check_cancelled()
            data += block
            if len(data) > limits.max_bytes:
                raise TooLarge(f"the content has more than {limits.max_bytes} bytes, the limit")
    return bytes(data)


def _made(data: bytes, essence: str, charset: str | None) -> Attachment:
    if essence in HTML:
        return _document(markdown(decoded(data, charset)), "text/markdown")
    if is_image(essence):
        essence = checked_type(data, essence)
        return Attachment(url_of(essence, data), essence)
    text = decoded(data, charset)
    return _document(text, essence)


def _document(text: str, essence: str) -> Attachment:
    data = text.encode(errors="replace")
    return Attachment(url_of(f"{essence};charset=utf-8", data), essence)
