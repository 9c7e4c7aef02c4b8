"""``ayllu tools``: the tools of a deployment, and a way to try them."""

from __future__ import annotations

import argparse
import base64
import binascii
import mimetypes
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from ..bus import connect as connect_to_bus
from ..client import Stack, connect
from ..schemas import (
    OPERATIONS,
    Attachment,
    AylluError,
    Content,
    InvalidRequest,
    NotFound,
    OwnOperation,
    ToolList,
    ToolOffer,
    ToolRequest,
    ToolResponse,
    Unavailable,
    decode,
    encode,
    operation_from,
)
from ..schemas.proxy import single_reply
from .call import read_payload

SHOWN = 80
"""Characters of a description that the table shows."""
CLOSE_SECONDS = 5.0
"""What a tool gets beyond its own time, so that its own word about that arrives."""


async def run_tools(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu tools`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    async with connect(url, token=token) as stack:
        offers = [offer async for offer in stack.api(ToolList).list()]
        if options.action in (None, "list"):
            _list(offers, as_json=options.json)
            return
        offer = _offer_of(offers, options.name)
        if options.action == "show":
            _show(offer, as_json=options.json)
            return
        arguments = arguments_of(options.arguments, offer.parameters.get("properties", {}))
        content = await _called(stack, offer, arguments, options.bus)
    if options.json:
        sys.stdout.write(encode(ToolResponse(offer.name, content)).decode() + "\n")
    await anyio.to_thread.run_sync(_write, content, options.out, not options.json)


def arguments_of(given: Sequence[str], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the command line gives: an object as a whole, or pairs.

    Args:
        given: what stands there.
        properties: the schemas of the arguments: what shall be a text is taken as it stands.

    Raises:
        InvalidRequest: they are neither.
    """
    if len(given) == 1 and (given[0][:1] in ("{", "@") or given[0] == "-"):
        return decode(read_payload(given[0]), dict[str, Any])
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{pair!r} is neither a JSON object nor NAME=VALUE")
        found[name] = _value(text, properties.get(name))
    return found


def _value(text: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _offer_of(offers: Sequence[ToolOffer], name: str) -> ToolOffer:
    for offer in offers:
        if offer.name == name:
            return offer
    names = ", ".join(offer.name for offer in offers) or "none"
    raise NotFound(f"no live actor offers the tool {name!r}; offered are: {names}")


def _list(offers: Sequence[ToolOffer], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(encode(offers).decode() + "\n")
        return
    for offer in offers:
        again = "idempotent" if offer.idempotent else "-"
        kind = "tool" if offer.takes == "request" else "operation"
        what = _one_line(offer.description)
        sys.stdout.write(f"{offer.name}\t{kind}\t{again}\t{offer.seconds:g} s\t{what}\n")


def _one_line(text: str) -> str:
    # Descriptions come from servers: nothing in them may steer a terminal.
    line = "".join(one if one.isprintable() else " " for one in " ".join(text.split()))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _show(offer: ToolOffer, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(encode(offer).decode() + "\n")
        return
    schema = msgspec.json.format(encode(offer.parameters), indent=2).decode()
    again = "may" if offer.idempotent else "may not"
    sys.stdout.write(
        f"{offer.name}: {_printable(offer.description)}\n"
        f"A call may take {offer.seconds:g} s and answer {offer.max_output} bytes of text; "
        f"after a failure it {again} be made again.\n{schema}\n"
    )


def _printable(text: str) -> str:
    """Return a text that steers no terminal."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


async def _called(
    stack: Stack, offer: ToolOffer, arguments: dict[str, Any], bus_url: str | None
) -> Content:
    """Return what a tool answers.

    Raises:
        AylluError: what the call ended in.
    """
    whole = offer.takes == "request"
    payload = encode(ToolRequest(offer.name, arguments) if whole else arguments)
    timeout = offer.seconds + CLOSE_SECONDS
    if bus_url is not None:
        async with connect_to_bus(bus_url, name="ayllu tools") as bus:
            call = await bus.calls.open(
                offer.subject, payload, timeout=timeout, explain_absence=_absence
            )
            try:
                reply = await single_reply(call)
            finally:
                call.close()
    else:
        operation = OPERATIONS.get("tools.call" if whole else offer.name)
        if operation is None:
            operation = operation_from(OwnOperation(offer.name, "Own", "unary"))
        running = await stack.call(operation, payload, timeout=timeout)
        try:
            reply = await single_reply(running)
        finally:
            running.close()
    if whole:
        return decode(reply, ToolResponse).content
    value = msgspec.json.decode(reply)
    return value if isinstance(value, str) else reply.decode()


async def _absence() -> AylluError:
    return Unavailable("nobody runs it at the moment")


def _write(content: Content, folder: Path | None, show: bool) -> None:
    """Print the texts of an answer, and save its attachments."""
    parts = content if isinstance(content, list) else [content]
    attachments = 0
    for part in parts:
        if isinstance(part, str):
            if show:
                sys.stdout.write(_printable(part) + "\n")
            continue
        attachments += 1
        saved = None if folder is None else _saved(part, folder, attachments)
        if saved is not None:
            sys.stderr.write(f"saved: {saved}\n")
        elif show:
            where = "use --out DIR to save it" if part.url.startswith("data:") else part.url
            sys.stdout.write(f"attachment {attachments}: {part.mime_type} ({_printable(where)})\n")


def _saved(attachment: Attachment, folder: Path, number: int) -> Path | None:
    """Save an attachment under a name that is ours; None for one that is only an address.

    Raises:
        InvalidRequest: it cannot be written, or has no data.
    """
    head, comma, data = attachment.url.partition(",")
    if not head.startswith("data:"):
        return None
    if not comma or not head.endswith(";base64"):
        raise InvalidRequest(f"attachment {number} has no base64 data")
    kind = attachment.mime_type.lower()
    suffix = mimetypes.guess_extension(kind) or ".bin"
    if not re.fullmatch(r"\.[a-z0-9]{1,10}", suffix):
        suffix = ".bin"
    try:
        content = base64.b64decode(data, validate=True)
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / f"attachment-{number}{suffix}"
            try:
                with path.open("xb") as file:  # What is there is nobody's to overwrite.
                    file.write(content)
                return path
            except FileExistsError:
                number += 1
    except binascii.Error as error:
        raise InvalidRequest(f"attachment {number} has no base64 data") from error
    except OSError as error:
        raise InvalidRequest(f"{folder} cannot be written: {error.strerror}") from error
