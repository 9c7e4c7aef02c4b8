"""The child's end of the trainer's socket: what it tells, and the beats without which it ends.

A thread reads what the trainer says. It is also the one that ends the process: at once where the trainer is gone, and
where it was asked to stop as soon as no checkpoint is being made whole. Nothing is lost by that: what is not a whole
checkpoint is thrown away by the next attempt, and what is one was flushed.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ....schemas import AylluError, encode
from ..protocol import (
    PATIENCE_SECONDS,
    Completed,
    Failed,
    FromChild,
    Hello,
    Kept,
    Log,
    Phase,
    Sealing,
    Stop,
    Stopped,
    from_trainer,
)

STORAGE = "storage"
LOST = 3
"""The exit status of a process that lost its trainer."""


class StorageFailed(AylluError):  # noqa: N818  (as the errors of the tree)
    """A disk is full or broken."""

    code = STORAGE


class Session:
    """The socket, of which all processes have one; what only rank 0 may say is dropped in the others."""

    def __init__(self, path: str, rank: int) -> None:
        self._leading = rank == 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A trainer that does not read for so long is as gone as one that does not speak.
        self._socket.settimeout(PATIENCE_SECONDS)
        self._writing = threading.Lock()
        self._whole = threading.RLock()
        self._kept = threading.Event()
        self._stopping = False
        try:
            self._socket.connect(path)
        except OSError as error:
            _lost(f"the trainer's socket cannot be reached: {error}")
        self._send(Hello(rank, os.getpid()))
        threading.Thread(target=self._listen, name="trainer", daemon=True).start()

    @property
    def leading(self) -> bool:
        """Whether this process is the one that tells."""
        return self._leading

    def tell(self, message: FromChild) -> None:
        """Send a message to the trainer, if this process is the one that tells."""
        if self._leading:
            self._send(message)

    def log(self, *lines: str) -> None:
        """Tell lines for people."""
        self.tell(Log(list(lines)))

    def phase(self, phase: str) -> None:
        """Tell what is done now."""
        self.tell(Phase(phase))

    def wait_until_kept(self, iters: int) -> None:
        """Wait until the trainer has kept all that it was told: only then may a checkpoint of it be whole."""
        if self._leading:
            self._kept.clear()
            self._send(Sealing(iters))
            # However long the bus is away: a trainer that is gone ends this process from the other thread.
            self._kept.wait()

    @contextmanager
    def making_whole(self) -> Iterator[None]:
        """Do what a stop must not come between: make a checkpoint whole, and tell of it."""
        with self._whole:
            yield

    def complete(self) -> None:
        """Tell that all is done."""
        # Whoever asked for a stop meanwhile is told one end only.
        with self._whole:
            self.tell(Completed())

    def fail(self, error: AylluError) -> None:
        """Tell that it cannot be done, unless it was to be stopped anyway."""
        with self._whole:
            self.tell(Stopped() if self._stopping else Failed(error.code, error.message))

    @property
    def stopping(self) -> bool:
        """Whether the trainer asked for an end: what goes wrong from then on is no news."""
        return self._stopping

    def _send(self, message: FromChild) -> None:
        try:
            with self._writing:
                self._socket.sendall(encode(message) + b"\n")
        except OSError as error:
            _lost(f"the trainer does not listen: {error}")

    def _listen(self) -> None:
        unread = b""
        while True:
            try:
                block = self._socket.recv(1 << 16)
            except OSError as error:
                _lost(f"the trainer is silent: {error}")
            if not block:
                _lost("the trainer is gone")
            *lines, unread = (unread + block).split(b"\n")
            for line in lines:
                message = from_trainer.decode(line)
                if isinstance(message, Stop):
                    self._stop()
                elif isinstance(message, Kept):
                    self._kept.set()

    def _stop(self) -> None:
        self._stopping = True
        # The others end with rank 0: alone they could leave it in the midst of something that is done together.
        if self._leading:
            with self._whole:
                self._send(Stopped())
                os._exit(0)


def _lost(why: str) -> NoReturn:
    print(why, file=sys.stderr, flush=True)  # noqa: T201  (the trainer's raw log)
    os._exit(LOST)
