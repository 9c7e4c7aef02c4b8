"""What a worker and the children that run a tool's function say to each other, a JSON line each."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas import Content, ErrorInfo

MAX_LINE = 16 << 20
"""Bytes of what a child says: an answer with its attachments."""


class Setup(msgspec.Struct, frozen=True):
    """To the child, first of all: the function, ``package.module:name``, and the bytes that it may allocate."""

    function: str
    memory: int


class Described(msgspec.Struct, frozen=True, tag="described"):
    """From the child: the function is there. From then on it gets the arguments of calls, one after the other."""

    description: str
    parameters: dict[str, Any]


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """From the child: what the function returned."""

    content: Content


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """From the child: why there is no answer, or no function."""

    error: ErrorInfo


FromChild = Described | Answered | Failed
from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
