"""The process that a job trains in: a group of its own, heard over a socket, and ended whole."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process, SocketListener, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectSendStream

from ...bus.lifeline import launch_command
from ...schemas import encode
from ...schemas.tasks import background_tasks
from .protocol import (
    BEAT_SECONDS,
    Beat,
    FromChild,
    FromTrainer,
    Hello,
    Kept,
    Log,
    Stop,
    from_child,
)

log = logging.getLogger(__name__)

MAX_MESSAGE = 1 << 20
MAX_OUTPUT = 16 << 10
"""How much of what libraries print becomes one message, in bytes."""
AHEAD = 256
"""How many messages wait to be looked at; a child that says more waits."""
END_SECONDS = 5.0
"""How long the processes of a child that was killed may take to be gone."""


class Child:
    """A child that runs.

    Attributes:
        messages: what it says, to its end; what libraries print comes as `Log`.
    """

    def __init__(self, process: Process, messages: AsyncIterator[FromChild]) -> None:
        self.messages = messages
        self._process = process
        self._connections: set[SocketStream] = set()
        self._silent = anyio.Event()
        self._stopping = False

    @property
    def status(self) -> int | None:
        """The exit status of a child that has ended; negative where a signal ended it."""
        return self._process.returncode

    async def stop(self) -> None:
        """Ask it to stop within an iteration."""
        self._stopping = True
        await self._say(Stop())

    async def keep(self) -> None:
        """Tell it that all that it said is kept: a checkpoint of that may be whole."""
        await self._say(Kept())

    def kill(self) -> None:
        """End all of its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _say(self, message: FromTrainer) -> None:
        line = encode(message) + b"\n"
        for connection in list(self._connections):
            try:
                # A process that does not read (it hangs, or is stopped) must not keep us from the others.
                with anyio.move_on_after(BEAT_SECONDS / 2):
                    await connection.send(line)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._connections.discard(connection)

    async def beat(self) -> None:
        """Tell its processes that we are there, until cancelled."""
        while True:
            await self._say(Beat())
            await anyio.sleep(BEAT_SECONDS)

    async def hear(self, connection: SocketStream, to: MemoryObjectSendStream[FromChild]) -> None:
        """Read what one of its processes says, to the end of its connection."""
        rank = -1
        async with connection:
            self._connections.add(connection)
            try:
                if self._stopping:
                    await self._say(Stop())
                lines = BufferedByteReceiveStream(connection)
                while True:
                    message = from_child.decode(await lines.receive_until(b"\n", MAX_MESSAGE))
                    if isinstance(message, Hello):
                        rank = message.rank
                    elif rank == 0:
                        await to.send(message)
            except (
                anyio.EndOfStream,
                anyio.IncompleteRead,
                anyio.BrokenResourceError,
                anyio.ClosedResourceError,
            ):
                log.debug("a process of rank %d has left", rank)
            except (anyio.DelimiterNotFound, msgspec.DecodeError) as error:
                log.error("a trainer's child talks nonsense, and is ended: %s", error)
                self.kill()
            finally:
                self._connections.discard(connection)
                if not self._connections:
                    self._silent.set()

    async def silence(self) -> None:
        """Wait until no process of it is connected."""
        while self._connections:
            self._silent = anyio.Event()
            await self._silent.wait()


@asynccontextmanager
async def running_child(
    command: Sequence[str], environment_of: Callable[[Path], Mapping[str, str]]
) -> AsyncIterator[Child]:
    """Run a child; at the end of the block nothing of it is left.

    Args:
        command: what to run.
        environment_of: returns its environment, given the socket on which it is heard.
    """
    with tempfile.TemporaryDirectory(prefix="ayllu-train-") as folder:
        path = Path(folder) / "trainer.sock"  # Only this user may enter the folder.
        async with await anyio.create_unix_listener(path) as listener:
            process = await anyio.open_process(
                launch_command(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment_of(path),
                start_new_session=True,
            )
            try:
                async with background_tasks() as tasks:
                    send, receive = anyio.create_memory_object_stream[FromChild](AHEAD)
                    child = Child(process, receive)
                    tasks.start_soon(child.beat)
                    tasks.start_soon(_hear_all, listener, child, send)
                    tasks.start_soon(_end_messages, process, child, send)
                    async with receive:
                        yield child
            finally:
                await _end(process)


async def _hear_all(
    listener: SocketListener, child: Child, send: MemoryObjectSendStream[FromChild]
) -> None:
    await listener.serve(lambda connection: child.hear(connection, send))


async def _end_messages(
    process: Process, child: Child, send: MemoryObjectSendStream[FromChild]
) -> None:
    """Read what the child prints; when it has ended, and all that it said was heard, end its messages."""
    assert process.stdout is not None
    async with send:
        await _read_output(process.stdout, send)
        await process.wait()
        # What it said last may still be in its socket.
        with anyio.move_on_after(END_SECONDS):
            await child.silence()


async def _read_output(stdout: ByteReceiveStream, send: MemoryObjectSendStream[FromChild]) -> None:
    rest = b""
    async for data in stdout:
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_OUTPUT:
            lines, rest = [*lines, rest], b""
        # A progress bar draws its line again and again: what it ended with is what counts.
        texts = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines]
        if said := [text for text in texts if text.strip()]:
            await send.send(Log(said))
    if rest.strip():
        await send.send(Log([rest.decode(errors="replace")]))


async def _end(process: Process) -> None:
    """Kill what is left of a child's group, and wait for it."""
    with anyio.CancelScope(shield=True):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.move_on_after(END_SECONDS):
            await process.wait()
        await process.aclose()
