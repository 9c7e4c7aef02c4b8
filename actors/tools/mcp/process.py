"""The process of an MCP server: how it is started, what it may know, and its end with all that it started."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process

from ....schemas import InvalidRequest
from .settings import McpSettings

log = logging.getLogger(__name__)

INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""The variables that every server gets: no secrets."""
PATIENCE_SECONDS = 2.0
"""How long a server may take to end by itself once its input is closed."""
END_SECONDS = 5.0
WATCH_SECONDS = 0.5
"""How often it is looked whether a server lives whose output does not end."""
LOGGED_LINES, LOGGED_SECONDS = 50, 10.0
"""How many lines of a server's standard error are logged in so many seconds; the others are dropped."""
LOGGED_CHARACTERS = 500
_GUARD = str(Path(__file__).with_name("guard.py"))


def environment_of(settings: McpSettings) -> dict[str, str]:
    """Return the environment of a server.

    Raises:
        InvalidRequest: a variable that it shall get is missing in ours.
    """
    found = {name: os.environ[name] for name in INHERITED if name in os.environ}
    wanted = {**{name: name for name in settings.env}, **settings.env_from}
    for name, ours in wanted.items():
        if ours not in os.environ:
            raise InvalidRequest(f"the environment of the tools has no {ours}")
        found[name] = os.environ[ours]
    return {**found, **settings.set_env}


@asynccontextmanager
async def server_process(settings: McpSettings) -> AsyncIterator[Process]:
    """Run a server's command; in the end, nothing of its process group is left.

    Raises:
        InvalidRequest: there is no such program or folder, or a variable is missing.
    """
    environment = environment_of(settings)
    command = _command(settings, environment)
    reading, writing = os.pipe()
    try:
        try:
            process = await anyio.open_process(
                [sys.executable, "-I", _GUARD, "--lifeline", str(reading), "--", *command],
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=settings.cwd,
                env=environment,
                start_new_session=True,
                pass_fds=(reading,),
            )
        finally:
            os.close(reading)
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
    finally:
        os.close(writing)


def _command(settings: McpSettings, environment: Mapping[str, str]) -> list[str]:
    program, *arguments = settings.command or []
    found = shutil.which(program, path=environment.get("PATH", os.defpath))
    if found is None:
        raise InvalidRequest(f"there is no program {program!r} here")
    if settings.cwd is not None and not Path(settings.cwd).is_dir():
        raise InvalidRequest("`cwd` is no folder")
    return [str(Path(found).absolute()), *arguments]


async def _end(process: Process) -> None:
    """Close a server's input, which asks it to end; kill what is left."""
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        if process.stdin is not None:
            await process.stdin.aclose()
    with anyio.move_on_after(PATIENCE_SECONDS):
        await _gone(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.move_on_after(END_SECONDS):
        await _gone(process)
    _close_pipes(process)


def _close_pipes(process: Process) -> None:
    # Nothing public closes them where what left the process group holds their other ends.
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    if transport is not None:
        transport.close()


async def _gone(process: Process) -> None:
    """Wait for the end of a process; its output may be full, and only who reads it sees it end."""
    async with anyio.create_task_group() as reading:
        reading.start_soon(_drain, process.stdout)
        reading.start_soon(_drain, process.stderr)
        # Not `wait`, which waits for the end of the pipes too: others may hold them.
        while process.returncode is None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        reading.cancel_scope.cancel()


async def ended(process: Process) -> None:
    """Return when a process has ended, and what it said last may have been read; its pipes may outlive it."""
    while process.returncode is None:  # noqa: ASYNC110
        await anyio.sleep(WATCH_SECONDS)
    await anyio.sleep(WATCH_SECONDS)


async def _drain(stream: ByteReceiveStream | None) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while stream is not None:
            await stream.receive()


async def log_stderr(stream: ByteReceiveStream, name: str) -> None:
    """Log what a server writes to its standard error, bounded in lines and characters, until it ends."""
    since, lines, rest = anyio.current_time(), 0, b""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            *whole, rest = (rest + await stream.receive()).split(b"\n")
            rest = rest[:LOGGED_CHARACTERS]  # What is longer is not shown anyway.
            if anyio.current_time() - since > LOGGED_SECONDS:
                since, lines = anyio.current_time(), 0
            for line in whole[: max(0, LOGGED_LINES - lines)]:
                text = line[:LOGGED_CHARACTERS].decode(errors="replace").strip()
                if text:
                    log.info("MCP server %s: %s", name, ascii(text)[1:-1])
            if lines < LOGGED_LINES <= lines + len(whole):
                log.warning("MCP server %s writes more than is logged", name)
            lines += len(whole)
