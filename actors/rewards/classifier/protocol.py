"""What a classifier engine and the process that its model runs in say to each other: lines of JSON on a socket.

The engine says first what is to be loaded, and is told `Ready` or `Failed`. Then answers come, many calls at once, and each is
told a score or why it has none.
"""

from __future__ import annotations

import msgspec

from ....schemas.errors import ErrorInfo
from ...training.protocol import BaseModel


class Load(msgspec.Struct, frozen=True, tag="load"):
    """What to load: the first message.

    Attributes:
        weights: a folder in Hugging Face's format, or that of an adapter.
        base: what an adapter was trained on.
        device: ``cpu``, or ``cuda``.
        batch_size: answers that go through the model at once, at most.
        max_length: tokens of the longest dialog with its answer; 0 is the model's context.
    """

    weights: str
    base: BaseModel | None
    device: str
    batch_size: int
    max_length: int


class Said(msgspec.Struct, frozen=True):
    """A message as a chat template takes it."""

    role: str
    content: str


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """A dialog that ends in the answer to be scored; ``index`` is its place in the call."""

    call: int
    index: int
    messages: list[Said]


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Nobody waits for the rest of a call any more."""

    call: int


ToChild = Load | Wanted | Forget


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """It is loaded; ``context`` is the longest dialog with its answer, in tokens, and 0 where there is no limit."""

    context: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It cannot be loaded; the last message."""

    error: ErrorInfo


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """The score of an answer."""

    call: int
    index: int
    score: float


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why an answer has no score."""

    call: int
    index: int
    error: ErrorInfo


FromChild = Ready | Failed | Scored | Refused

to_child: msgspec.json.Decoder[ToChild] = msgspec.json.Decoder(ToChild)
from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
