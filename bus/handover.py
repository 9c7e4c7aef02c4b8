"""What actors that serve the same say to each other; `ayllu.bus.sharer` says when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from .subjects import ROOT, encode_token
from .transport import Message

SUBJECT_HEADER = "Ayllu-Subject"
REPLY_HEADER = "Ayllu-Reply"
HOPS_HEADER = "Ayllu-Hops"
WAITED_HEADER = "Ayllu-Waited"
"""What a request that is handed over brings along: where it was published, where its caller hears, how often it was handed over,
and how long it has waited, in seconds."""


class Waits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests wait with an actor that has this inbox; ``draining`` when it wants to be rid of them."""

    peer: str
    draining: bool = False


class Asks(msgspec.Struct, frozen=True):
    """An actor that has this inbox can run so many requests."""

    peer: str
    count: int


class Came(msgspec.Struct, frozen=True):
    """So many requests were handed over for a question."""

    count: int


@dataclass(frozen=True, slots=True)
class Handed:
    """A request that is handed over, or was.

    Attributes:
        message: as it came from its caller, but for the time that is left of it.
        hops: how often it was handed over.
        waited: for how long it has waited, in seconds.
    """

    message: Message
    hops: int
    waited: float


def share_subject(service: str, endpoints: Iterable[str]) -> str:
    """Return where actors that serve the same hear of each other."""
    digest = hashlib.sha256("\n".join(sorted(endpoints)).encode()).hexdigest()[:16]
    return f"{ROOT}.share.{encode_token(service)}.{digest}"
