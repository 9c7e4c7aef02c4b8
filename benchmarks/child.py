"""Child processes of a benchmark, and the line protocol that those of ours speak.

A helper prints ``ready``, then answers each line of JSON on its stdin by a line of JSON on its stdout, and ends with its
stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from ayllu.bus.processes import stop_process

T = TypeVar("T")

AYLLU = str(Path(sys.executable).with_name("ayllu"))
START_SECONDS = 120.0
ANSWER_SECONDS = 300.0
STOP_SECONDS = 15.0
LONGEST_LINE = 1 << 24
TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """A process that was started and is ready.

    Attributes:
        ready: the line by which it said so.
    """

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.process = process
        self.ready = ""
        self._lines = BufferedByteReceiveStream(process.stdout)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def cpu_seconds(self) -> float:
        """The processor time that it has used, without its children."""
        return cpu_seconds(self.pid)

    async def line(self, seconds: float) -> str:
        """Return the next line that it prints."""
        with anyio.fail_after(seconds):
            return (await self._lines.receive_until(b"\n", LONGEST_LINE)).decode().strip()

    async def ask(self, question: object, type_: type[T]) -> T:
        """Put a question to a helper, and return its answer."""
        assert self.process.stdin is not None
        await self.process.stdin.send(msgspec.json.encode(question) + b"\n")
        return msgspec.json.decode(await self.line(ANSWER_SECONDS), type=type_)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in user and in system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@asynccontextmanager
async def running(
    command: Sequence[str],
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    keep_fds: Sequence[int] = (),
) -> AsyncIterator[Child]:
    """Run a process until the end of the block; inside, it has said that it is ready.

    Raises:
        RuntimeError: it ended before; the message has its last words.
    """
    with log.open("ab") as words:
        process = await anyio.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={**os.environ, **(environment or {})},
            pass_fds=keep_fds,
        )
    child = Child(process)
    try:
        await _wait_until_ready(child, command, log)
        yield child
    finally:
        await stop_process(process, patience=STOP_SECONDS)


async def _wait_until_ready(child: Child, command: Sequence[str], log: Path) -> None:
    try:
        line = await child.line(START_SECONDS)
    except (anyio.EndOfStream, anyio.IncompleteRead):
        line = ""
    if not line.startswith("ready"):
        words = await anyio.Path(log).read_text(errors="replace")
        said = " | ".join(words.splitlines()[-3:])
        raise RuntimeError(f"{' '.join(command)} is not ready; its last words: {said}")
    child.ready = line


def helper(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package."""
    return [sys.executable, "-m", f"{__package__}.{module}", *arguments]


async def answer_lines(answer: Callable[[bytes], Awaitable[object]]) -> None:
    """Answer the questions on stdin to its end."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    async for line in anyio.wrap_file(sys.stdin):
        sys.stdout.buffer.write(msgspec.json.encode(await answer(line.encode())) + b"\n")
        sys.stdout.buffer.flush()


def run(main: Callable[..., Awaitable[Any]], *arguments: object) -> None:
    """Run the main function of a helper, on uvloop as ayllu's own processes."""
    try:
        anyio.run(main, *arguments, backend_options={"use_uvloop": True})
    except KeyboardInterrupt:
        sys.exit(130)
