"""Python functions as programs: run in children, so that one that hangs or dies takes nothing with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import msgspec
from anyio.abc import Process, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ....bus.processes import foreign_environment
from ....schemas import (
    DeadlineExceeded,
    EngineError,
    ScoreAnswerRequest,
    encode,
    error_from,
)
from ..engine import Answer
from .protocol import MAX_LINE, Failed, FromChild, Ready, Scored, Setup, from_child

CHILD = "ayllu.actors.rewards.programs.child"
START_SECONDS = 60.0
"""How long a child may take to import a function."""
END_SECONDS = 5.0
"""How long a child that was killed may take to be gone."""


class FunctionProgram:
    """A `Program` that is a Python function ``(dialog, answer, reference, **params) -> float``, plain or async.

    Args:
        function: ``package.module:name``; Python finds the module, and runs it in the children only.
        params: what the function gets beside answers.
        timeout: how long it may take for an answer, in seconds.
        at_once: how many children there may be; each is kept for the next answer.
    """

    def __init__(
        self, function: str, params: Mapping[str, Any], *, timeout: float, at_once: int
    ) -> None:
        self.at_once = at_once
        self._setup = Setup(function, dict(params))
        self._timeout = timeout
        self._free = anyio.Semaphore(at_once)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()

    async def __aenter__(self) -> FunctionProgram:
        """Start the first child.

        Raises:
            InvalidRequest: there is no such function, or it takes other arguments.
        """
        self._idle.append(await self._start())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End all children."""
        for child in list(self._all):
            await self._end(child)

    async def score(self, answer: Answer) -> float:
        """Return the score of an answer.

        Raises:
            AylluError: what the function raised; `EngineError` for what is none of ours.
            DeadlineExceeded: it took too long.
        """
        line = encode(ScoreAnswerRequest(answer.dialog, answer.message, answer.reference))
        async with self._free:
            child = await self._child()
            try:
                with anyio.fail_after(self._timeout):
                    said = await child.ask(line)
            except BaseException as error:
                await self._end(child)
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded(
                        f"the function took longer than {self._timeout:g} s", retryable=False
                    ) from error
                raise
            self._idle.append(child)
        if isinstance(said, Scored):
            return float("nan") if said.score is None else said.score
        raise _error_of(said)

    async def _child(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            await self._end(child)  # It ended when nothing was asked: that is nobody's error.
        return await self._start()

    async def _start(self) -> _Child:
        child = await _started_child()
        self._all.add(child)
        try:
            with anyio.fail_after(START_SECONDS):
                said = await child.ask(encode(self._setup))
            if not isinstance(said, Ready):
                raise _error_of(said)
        except BaseException as error:
            await self._end(child)
            if isinstance(error, TimeoutError):
                raise EngineError(f"the function was not there in {START_SECONDS:g} s") from error
            raise
        return child

    async def _end(self, child: _Child) -> None:
        self._all.discard(child)
        await child.end()


def _error_of(said: FromChild) -> Exception:
    if isinstance(said, Failed):
        return error_from(said.error)
    return EngineError("the function's process talks nonsense")


class _Child:
    """A process that runs a function, and the connection to it."""

    def __init__(self, process: Process, connection: UNIXSocketStream) -> None:
        self._process = process
        self._connection = connection
        self._lines = BufferedByteReceiveStream(connection)

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self._process.returncode is None

    async def ask(self, line: bytes) -> FromChild:
        """Return what it says to a line.

        Raises:
            EngineError: it ended instead, or talks nonsense.
        """
        try:
            await self._connection.send(line + b"\n")
            return from_child.decode(await self._lines.receive_until(b"\n", MAX_LINE))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as error:
            raise EngineError("the function ended its process") from error
        except (anyio.DelimiterNotFound, msgspec.DecodeError) as error:
            raise EngineError("the function's process talks nonsense") from error

    async def end(self) -> None:
        """Kill it with all that it started, and wait for it."""
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with anyio.move_on_after(END_SECONDS):
                await self._process.wait()
            await self._connection.aclose()
            await self._process.aclose()


async def _started_child() -> _Child:
    ours, theirs = socket.socketpair()
    async with AsyncExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            # -P: a module that lies in the current folder by chance is not ours to run.
            command = [sys.executable, "-P", "-m", CHILD, str(theirs.fileno()), str(os.getpid())]
            process = await anyio.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None,
                env=foreign_environment(),
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        connection = await UNIXSocketStream.from_socket(ours)
        undo.pop_all()
    return _Child(process, connection)
