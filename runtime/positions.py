"""Positions in server-sent events: an event's ``id``, and the header ``Last-Event-ID`` by which a client goes on after it.

Browsers send that header by themselves when they connect again. An operation has positions if it can be followed from one:
``epoch`` and ``index`` are among its parameters, and fields of its events. Of nothing else are events decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from ..schemas import AylluError, InvalidRequest, Operation
from ..schemas.wire import decode

LAST_EVENT_ID = "last-event-id"
_NAMES = frozenset(("epoch", "index"))
_ID = re.compile(r"([0-9]{1,15})\.([0-9]{1,15})(?:/([0-9a-f:.,-]+))?", re.ASCII)


class _Child(msgspec.Struct, frozen=True):
    children: str = ""


class _Position(msgspec.Struct, frozen=True):
    epoch: int
    index: int
    event: msgspec.Raw = msgspec.Raw()
    child: _Child | None = None


def has_positions(operation: Operation) -> bool:
    """Tell whether an operation can be followed from a position."""
    return (
        operation.sse
        and {parameter.name for parameter in operation.parameters} >= _NAMES
        and set(getattr(operation.output, "__struct_fields__", ())) >= _NAMES
    )


def position_after(headers: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters that follow on the event which a request names as its last; none if it names none.

    Raises:
        InvalidRequest: what it names is no id of ours.
    """
    text = headers.get(LAST_EVENT_ID)
    if not text:  # Which is what a client sends that had no id yet.
        return {}
    found = _ID.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            "the header Last-Event-ID is the id of an event: <epoch>.<index>[/<children>]"
        )
    position: dict[str, object] = {"epoch": int(found[1]), "index": int(found[2]) + 1}
    return position | ({"children": found[3]} if found[3] else {})


def frame(event: bytes) -> bytes:
    """Return an event as a server-sent one."""
    return b"data: %b\n\n" % event


def frame_with_id(event: bytes) -> bytes:
    """Return an event as a server-sent one under its id.

    What tells the state up to a position, and is no event by itself, has the id of the last event before it.
    """
    try:
        position = decode(event, _Position)
    except AylluError:  # Of an actor that is not ours: it is forwarded as it is.
        return frame(event)
    last = position.index if bytes(position.event) not in (b"", b"null") else position.index - 1
    if last < 0:
        return frame(event)
    children = position.child.children.encode() if position.child is not None else b""
    if children and _ID.fullmatch(f"0.0/{children.decode()}") is None:
        return frame(event)
    below = b"/" + children if children else b""
    return b"id: %d.%d%b\n%b" % (position.epoch, last, below, frame(event))
