"""The worker's side: children that run a function, each kept for the next call, and killed where one goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import anyio
from anyio.abc import Process, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ...bus.processes import foreign_environment
from ...schemas import DeadlineExceeded, EngineError

START_SECONDS = 60.0
"""How long a child may take to import a function."""
END_SECONDS = 5.0
"""How long a child that was killed may take to be gone."""


class FunctionChildren:
    """Children that run a function: ``async with children: await children.ask(line)``.

    Args:
        module: what they run, ``python -m MODULE SOCKET_FD PARENT_PID``; see `worker_connection`.
        setup: the line that each gets first of all.
        check_ready: looks at what a child says to that, and raises if it is not ready.
        seconds: how long the function may take for a line.
        at_once: how many children there may be.
        max_line: bytes of what a child may say at once.
    """

    def __init__(
        self,
        module: str,
        setup: bytes,
        check_ready: Callable[[bytes], object],
        *,
        seconds: float,
        at_once: int,
        max_line: int,
    ) -> None:
        self._module = module
        self._setup = setup
        self._check_ready = check_ready
        self._seconds = seconds
        self._max_line = max_line
        self._free = anyio.Semaphore(at_once)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()

    async def __aenter__(self) -> FunctionChildren:
        """Start the first child.

        Raises:
            AylluError: what the child said instead of being ready.
        """
        self._idle.append(await self._start())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End all children."""
        for child in list(self._all):
            await self._end(child)

    async def ask(self, line: bytes) -> bytes:
        """Return what a child says to a line; cancelling it kills the child.

        Raises:
            EngineError: the child ended, or talks nonsense.
            DeadlineExceeded: the function took too long.
        """
        async with self._free:
            child = await self._child()
            try:
                with anyio.fail_after(self._seconds):
                    said = await child.ask(line)
            except BaseException as error:
                await self._end(child)
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded(
                        f"the function took longer than {self._seconds:g} s", retryable=False
                    ) from error
                raise
            self._idle.append(child)
        return said

    async def _child(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            await self._end(child)  # It ended when nothing was asked: that is nobody's error.
        return await self._start()

    async def _start(self) -> _Child:
        child = await _started_child(self._module, self._max_line)
        self._all.add(child)
        try:
            with anyio.fail_after(START_SECONDS):
                self._check_ready(await child.ask(self._setup))
        except BaseException as error:
            await self._end(child)
            if isinstance(error, TimeoutError):
                raise EngineError(f"the function was not there in {START_SECONDS:g} s") from error
            raise
        return child

    async def _end(self, child: _Child) -> None:
        self._all.discard(child)
        await child.end()


def nonsense() -> EngineError:
    """Return the error for what a child says and nobody understands."""
    return EngineError("the function's process talks nonsense")


class _Child:
    """A process that runs a function, and the connection to it."""

    def __init__(self, process: Process, connection: UNIXSocketStream, max_line: int) -> None:
        self._process = process
        self._connection = connection
        self._lines = BufferedByteReceiveStream(connection)
        self._max_line = max_line

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        if self._process.returncode is not None:
            return False
        # The event loop may be the last to know.
        with suppress(ChildProcessError):
            wanted = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, wanted) is None
        return False

    async def ask(self, line: bytes) -> bytes:
        """Return what it says to a line.

        Raises:
            EngineError: it ended instead, or talks nonsense.
        """
        try:
            await self._connection.send(line + b"\n")
            return await self._lines.receive_until(b"\n", self._max_line)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as error:
            raise EngineError("the function ended its process") from error
        except anyio.DelimiterNotFound as error:
            raise nonsense() from error

    async def end(self) -> None:
        """Kill it with all that it started, and wait for it."""
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with anyio.move_on_after(END_SECONDS):
                await self._process.wait()
            await self._connection.aclose()
            await self._process.aclose()


async def _started_child(module: str, max_line: int) -> _Child:
    ours, theirs = socket.socketpair()
    async with AsyncExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            # -P: a module that lies in the current folder by chance is not ours to run.
            command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
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
    return _Child(process, connection, max_line)
