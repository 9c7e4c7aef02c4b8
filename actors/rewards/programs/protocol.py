"""What a worker and the children that run functions say to each other, a JSON line each."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas import ErrorInfo

MAX_LINE = 64 << 10
"""Bytes of what a child says."""


class Setup(msgspec.Struct, frozen=True):
    """To the child, first of all: the function, ``package.module:name``, and what it gets beside answers by name."""

    function: str
    params: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """From the child: the function is there. From then on it gets `ScoreAnswerRequest`s, one after the other."""


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """From the child: the score of the answer; null where a number is none in JSON."""

    score: float | None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """From the child: why there is no score, or no function."""

    error: ErrorInfo


FromChild = Ready | Scored | Failed
from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
