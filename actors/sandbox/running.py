"""The run of a piece of code in a sandbox of its own, from its start until nothing of it is left."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

import anyio
import anyio.to_thread

from ...schemas import InternalError, InvalidRequest
from . import inside
from .launching import Launched, Sandbox, launched
from .outcome import How, Limits, Outcome
from .probing import find_sandbox
from .records import Report, check_files, max_report, read_report, request

log = logging.getLogger(__name__)

DEFAULT = Limits()
START_SECONDS = 30.0
"""How long a sandbox may take to start, on a machine that has much else to do."""
END_SECONDS = 10.0
"""How long the processes of a sandbox that were killed may take to be gone."""
CHUNK = 64 << 10


async def run_python(
    code: str,
    *,
    files: Mapping[str, bytes] = {},
    stdin: bytes = b"",
    limits: Limits = DEFAULT,
) -> Outcome:
    """Run Python code that is not trusted, in a sandbox of its own.

    It sees a Python with its standard library and the system's programs, but no packages; no network, not even its own;
    no file of the host, no environment, no process but its own. It runs as ``main.py`` in a folder that it may write to.
    When it ends, the processes that it started end too.

    Cancelling it ends the code at once; nothing of it is left then.

    Args:
        code: what is run.
        files: what lies in its folder besides: contents by path.
        stdin: what it can read from standard input.
        limits: what it may use.

    Raises:
        Unsupported: no sandbox can be had here, see `require_sandbox`.
        InvalidRequest: a path among the files leads out of the folder, or is ``main.py``.
        TooLarge: the files do not fit into the sandbox.
        InternalError: the sandbox did not start, for want of something; it may be tried again.
    """
    if inside.CODE in files:
        raise InvalidRequest(f"{inside.CODE!r} is the code itself")
    files = {inside.CODE: _encoded(code), **files}
    check_files(files, limits)
    sandbox = await anyio.to_thread.run_sync(find_sandbox)
    run = _Run(limits)
    async with _started(sandbox, limits) as box:
        await run.follow(box, request(files) + stdin)
    return run.outcome()


def _encoded(code: str) -> bytes:
    try:
        return code.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the code is no text: {error}") from None


@asynccontextmanager
async def _started(sandbox: Sandbox, limits: Limits) -> AsyncIterator[Launched]:
    """Start a sandbox; at the end of the block no process of it is left."""
    with ExitStack() as stack:
        try:
            box = stack.enter_context(launched(sandbox, limits))
        except (OSError, subprocess.SubprocessError) as error:
            raise _not_started(str(error)) from error
        first: int | None = None
        try:
            for fd in (box.stdin.fileno(), box.stdout, box.stderr, box.info, box.report):
                os.set_blocking(fd, False)
            with anyio.CancelScope(shield=True):
                # Only with it can the sandbox be ended whole. It takes a few milliseconds.
                first = await _first_process(box.info)
            yield box
        finally:
            await _end(box, first)


def _not_started(why: str) -> InternalError:
    return InternalError(f"the sandbox did not start: {why}", retryable=True)


async def _first_process(info: int) -> int | None:
    """Return a handle of the first process in the sandbox, or None where there is none."""
    told = _Output(CHUNK)
    with anyio.move_on_after(START_SECONDS):
        await told.read(info)
    with suppress(ValueError, OSError):
        return os.pidfd_open(json.loads(told.data)["child-pid"])
    return None


async def _end(box: Launched, first: int | None) -> None:
    """End all processes of a sandbox, and wait until they are gone."""
    if first is None:
        box.process.kill()
    else:
        # All others in its namespace end before it does, and bubblewrap after it.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        os.close(first)
    with anyio.CancelScope(shield=True), anyio.move_on_after(END_SECONDS):
        await anyio.wait_readable(box.handle)
    if not select.select([box.handle], [], [], 0)[0]:
        log.error("the processes of a sandbox do not end; bubblewrap is %d", box.process.pid)
        box.process.kill()
        return
    box.process.wait()


@dataclass(slots=True)
class _Output:
    """What came through a pipe, up to a bound."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    cut: bool = False

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    async def read(self, fd: int) -> None:
        """Read a pipe to its end, or until there is no room for more."""
        while not self.cut:
            await anyio.wait_readable(fd)
            with suppress(BlockingIOError):
                chunk = os.read(fd, CHUNK)
                if not chunk:
                    return
                room = self.limit - len(self.data)
                self.data += chunk[:room]
                self.cut = len(chunk) > room


async def _write(pipe: IO[bytes], data: bytes) -> None:
    """Write into a pipe, and close it; whoever is at its other end need not read it all."""
    rest = memoryview(data)
    with suppress(BrokenPipeError):
        while rest:
            await anyio.wait_writable(pipe)
            with suppress(BlockingIOError):
                rest = rest[os.write(pipe.fileno(), rest[:CHUNK]) :]
    pipe.close()


class _Run:
    """What becomes known of the code while it runs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._stdout = _Output(limits.output_bytes)
        self._stderr = _Output(limits.output_bytes)
        self._report = _Output(max_report(limits))
        self._started: float | None = None
        self._seconds = 0.0
        self._late = False

    async def follow(self, box: Launched, said: bytes) -> None:
        """Tell a sandbox what it is to run, and hear it to its end, or until it is over a limit."""
        with anyio.move_on_after(START_SECONDS) as watch:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hear, box.stdout, self._stdout, watch)
                tasks.start_soon(self._hear, box.stderr, self._stderr, watch)
                await anyio.wait_readable(box.report)
                if os.read(box.report, 1) == inside.READY:
                    self._started = time.monotonic()
                    watch.deadline = anyio.current_time() + self._limits.seconds
                    # Not before: from here on the kernel ends the sandbox with us, and code never runs unwatched.
                    tasks.start_soon(_write, box.stdin, said)
                    await self._hear(box.report, self._report, watch)
        if self._started is not None:
            self._seconds = time.monotonic() - self._started
        self._late = watch.cancelled_caught and not (self._stdout.cut or self._stderr.cut)

    async def _hear(self, fd: int, output: _Output, watch: anyio.CancelScope) -> None:
        await output.read(fd)
        if output.cut:
            watch.cancel()

    def outcome(self) -> Outcome:
        """Return what became of the code.

        Raises:
            InternalError: it was not started.
        """
        if self._started is None:
            raise _not_started(self._stderr.text.strip() or "it says nothing")
        report = None if self._report.cut else read_report(bytes(self._report.data))
        how, status = self._end(report)
        ended = report if report and how in ("exited", "killed", "cpu") else Report("exited", 0)
        return Outcome(
            how=how,
            status=status,
            stdout=self._stdout.text,
            stderr=self._stderr.text,
            cut=self._stdout.cut or self._stderr.cut,
            seconds=self._seconds,
            limits=self._limits,
            files=ended.files,
            left_out=ended.left_out,
            left_out_count=ended.left_out_count,
        )

    def _end(self, report: Report | None) -> tuple[How, int | None]:
        if self._stdout.cut or self._stderr.cut:
            return "output", None
        if self._late:
            return "timeout", None
        if report is None:
            return "killed", None
        if report.how != "exited":
            return report.how, None
        if report.status == -signal.SIGXCPU:
            return "cpu", None
        return "exited" if report.status >= 0 else "killed", report.status
