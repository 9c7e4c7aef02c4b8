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


class _Event(msgspec.Struct, frozen=True):
    event_type: str = ""


class _Position(msgspec.Struct, frozen=True):
    epoch: int
    index: int
    event: _Event | None = None
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


class Framing:
    """Frames the events of one stream under their ids.

    Args:
        children: what its reader knows of the turns below.
    """

    def __init__(self, children: str = "") -> None:
        self._children = _below(children)

    def frame(self, event: bytes) -> bytes:
        """Return an event as a server-sent one under its id.

        What tells the state up to a position, and is no event by itself, has the id of the last event before it. What is told
        below a turn is part of the ids until the step that started it has ended.
        """
        try:
            position = decode(event, _Position)
        except AylluError:  # Of an actor that is not ours: it is forwarded as it is.
            return frame(event)
        last = position.index if position.event is not None else position.index - 1
        if last < 0:
            return frame(event)
        if position.child is not None:
            self._children = _below(position.child.children)
        elif position.event is not None and position.event.event_type == "step_end":
            self._children = b""
        return b"id: %d.%d%b\n%b" % (position.epoch, last, self._children, frame(event))


def _below(children: str) -> bytes:
    """Return what an id says of the turns below; nothing where it could not be read again."""
    text = f"/{children}"
    return text.encode() if _ID.fullmatch(f"0.0{text}") else b""
