"""Reward functions that children of the tests import: `support.reward_functions:NAME`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel

from ayllu.schemas import Dialog, InvalidRequest, Message

WORDS = {"good": 1.0, "fair": 0.5, "bad": 0.0}


def by_word(dialog: Dialog, answer: Message, reference: Any) -> float:
    """Score by the first word that is known."""
    for word in str(answer.content).split():
        if word in WORDS:
            return WORDS[word]
    raise InvalidRequest("there is no word that is known")


def length(dialog: Dialog, answer: Message, reference: Any, *, most: int = 100) -> float:
    return len(str(answer.content)) / most


async def slowly(dialog: Dialog, answer: Message, reference: Any) -> float:
    await anyio.lowlevel.checkpoint()
    return by_word(dialog, answer, reference)


def odd(dialog: Dialog, answer: Message, reference: Any) -> Any:
    """Do what the answer says, which is seldom to score it."""
    sys.stdout.write("what a function prints is not what it says\n")
    sys.stdout.flush()
    return ODD[str(answer.content)]()


def _raise(error: BaseException) -> None:
    raise error


def _busy() -> None:
    while True:
        time.monotonic()


ODD: dict[str, Callable[[], Any]] = {
    "hang": lambda: threading.Event().wait(),
    "busy": _busy,
    "raise": lambda: _raise(ValueError("/srv/secret/path")),
    "exit": lambda: _raise(SystemExit(3)),
    "die": lambda: os._exit(1),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "text": lambda: "1.0",
    "nothing": lambda: None,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "outside": lambda: 1.5,
    "true": lambda: True,
    "fine": lambda: 0.5,
}
number = 5


def without_reference(dialog: Dialog, answer: Message) -> float:
    return 1.0
