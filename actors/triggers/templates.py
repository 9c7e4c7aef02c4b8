"""What an agent is told of an event: a template with the event's fields, or the event in words; no I/O."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from ...schemas import (
    DocumentsChanged,
    InvalidRequest,
    JobEnded,
    ScheduleDue,
    TurnEnded,
    TurnStatus,
    encode,
)
from .reading import Event

MAX_MESSAGE = 128 << 10
"""Characters of what an agent is told: as JSON it must fit into a message of the bus."""
OWN = ("subject", "event")
"""Placeholders that are no fields."""


class _Template(string.Template):
    """Placeholders with dots in braces."""

    flags = re.NOFLAG
    idpattern = r"(?a:[_A-Za-z][_A-Za-z0-9]*)"
    braceidpattern = r"(?a:[_A-Za-z][_A-Za-z0-9-]*(?:\.[_A-Za-z0-9-]+)*)"


def template_problems(template: str, type_: type[msgspec.Struct] | None) -> list[str]:
    """Return what is wrong with a template.

    Args:
        template: the template.
        type_: what the events are, where that is known.
    """
    made = _Template(template)
    problems = [
        f"template: character {match.start() + 1}: a `$` that begins no placeholder is written `$$`"
        for match in made.pattern.finditer(template)
        if match["invalid"] is not None
    ]
    if problems:
        return problems[:1]
    return [
        f"template: {type_.__name__} has no field {name!r}; it has {', '.join(type_.__struct_fields__)}"
        for name in made.get_identifiers()
        if type_ is not None and name not in OWN and not has_path(type_, name)
    ]


def has_path(type_: Any, path: str) -> bool:
    """Tell whether values of a type may have something under a path."""
    name, _, rest = path.partition(".")
    hints = get_type_hints(type_)
    if name not in hints:
        return False
    return not rest or any(
        has_path(inner, rest) if _is_struct(inner) else True for inner in _objects(hints[name])
    )


def _objects(hint: Any) -> Iterator[Any]:
    """Yield what of a type has fields: structs, and objects of any fields."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        for inner in get_args(hint):
            yield from _objects(inner)
    elif origin is dict or _is_struct(hint):
        yield hint


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def rendered(template: str | None, event: Event) -> str:
    """Return what the agent is told.

    Raises:
        InvalidRequest: a field is not there, or it would be nothing, or too long.
    """
    if template is None:
        text = in_words(event)
    else:
        text = _Template(template).substitute(_Values(event, MAX_MESSAGE - len(template)))
    if not text.strip():
        raise InvalidRequest("the message is empty")
    if len(text) > MAX_MESSAGE:
        raise InvalidRequest(f"the message has more than {MAX_MESSAGE} characters")
    return text


class _Values(dict[str, str]):
    """The fields of an event by their paths, until they are too much."""

    def __init__(self, event: Event, room: int) -> None:
        super().__init__()
        self._event = event
        self._room = room

    def __missing__(self, path: str) -> str:
        text = self._text(path)
        self._room -= len(text)
        if self._room < 0:
            raise InvalidRequest(f"the message has more than {MAX_MESSAGE} characters")
        return text  # And not kept: it counts each time.

    def _text(self, path: str) -> str:
        event = self._event
        if path in OWN:
            return event.subject if path == "subject" else event.text
        value: Any = event.fields
        for name in path.split("."):
            if value is None:
                return ""
            if not isinstance(value, dict) or name not in value:
                raise InvalidRequest(f"template: the event has no field {path!r}")
            value = value[name]
        return as_text(value)


def as_text(value: object) -> str:
    """Return a field as it stands in a message."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return encode(value).decode()


def in_words(event: Event) -> str:
    """Return an event as people would tell it."""
    match event.known:
        case TurnEnded(agent_uuid=agent, turn_id=turn, status=TurnStatus.completed, text=text):
            return f"The agent {agent} has completed its turn {turn}:\n\n{text}"
        case TurnEnded(agent_uuid=agent, turn_id=turn, status=status, error=error):
            why = f"{error.code}: {error.message}" if error else "for no reason that is known"
            return f"The turn {turn} of the agent {agent} has {_was(status)}: {why}"
        case JobEnded(job=job, kind=kind, status=status, error=why):
            return f"The job {job} ({kind}) has {_was(status)}{f': {why}' if why else '.'}"
        case DocumentsChanged(bank=bank, change=change, documents=documents):
            return f"Documents of the memory bank {bank} were {change}: {', '.join(documents)}"
        case ScheduleDue(at=at):
            return f"It is {at:%Y-%m-%d %H:%M:%S} UTC: this is due."
        case _:
            return f"On {event.subject}:\n\n{event.text}"


def _was(status: str) -> str:
    return "been cancelled" if status == "cancelled" else status
