"""Functions of tools that children of the tests import: `support.tool_functions:NAME`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from ayllu.schemas import Attachment, InvalidRequest

PICTURE = Attachment("data:image/png;base64,aGk=", "image/png")


@dataclass
class Place:
    name: str
    height: float = 0.0


def height(place: Place, unit: Literal["m", "ft"] = "m", times: int | None = None) -> str:
    """Return how high a place
    lies.

    It may be multiplied.

    Args:
        place: Where,
            by its name.
        unit (str): Of the answer.
    """
    return f"{place.name}: {place.height * (times or 1):g} {unit}"


async def slowly(seconds: float) -> dict[str, Any]:
    """Return how long it took."""
    await anyio.sleep(seconds)
    return {"slept": seconds}


def answer(what: str) -> Any:
    """Return something."""
    return {
        "picture": PICTURE,
        "both": ["Look:", PICTURE],
        "list": ["a", "b"],
        "number": 3,
        "nothing": None,
        "pid": os.getpid(),
        "thing": object(),
        "much": "x" * 100_000,
        "more": "x" * (17 << 20),
    }[what]


def does(what: str) -> str:
    """Do what goes wrong."""
    if what == "refuse":
        raise InvalidRequest("there is no such city")
    if what == "raise":
        raise ValueError("the secret is in /etc/secret")
    if what == "exit":
        sys.exit(3)
    if what == "die":
        os.abort()
    if what == "print":
        print("what a function prints is not what it says", flush=True)  # noqa: T201
    if what == "hang":
        time.sleep(1000)
    if what == "eat":
        return str(len(bytearray(1 << 30)))
    return what


def bare(x):  # type: ignore[no-untyped-def]
    """Do nothing."""


def many(*things: int) -> None:
    """Do nothing."""


def thing(x: Place, y: complex) -> None:
    """Do nothing."""


def silent(x: int) -> None:
    return None
