"""Real processes of ours: started, watched, killed, and found again in the process table."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import Process

from ayllu.bus.processes import stop_process

AYLLU = str(Path(sys.executable).with_name("ayllu"))
START_SECONDS = 60.0

SCRIPTED = """
[[models]]
name = "echo"
engine = "scripted"
source = "echo"

[[models]]
name = "stall"
engine = "scripted"
source = "stall:5"

[[models]]
name = "count"
engine = "scripted"
source = "count:128"
"""
"""A configuration with the scripted engine, for tests of processes rather than of models."""


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for something that no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> dict[int, str]:
    """Return the living processes below one, with their command lines."""
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if stat[0] != "Z":
                children.setdefault(int(stat[1]), []).append(int(folder.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = commands[child]
            waiting.append(child)
    return found


@dataclass(slots=True)
class Up:
    """An ``ayllu up`` that is ready.

    Attributes:
        process: the supervisor.
        url: the gateway's HTTP address.
        data_dir: where everything durable lives.
    """

    process: subprocess.Popen[str]
    url: str
    data_dir: Path

    @property
    def websocket_url(self) -> str:
        """The address of the websocket."""
        return self.url.replace("http", "ws", 1) + "/ws"

    @property
    def bus_url(self) -> str:
        """The address of the bus."""
        return (self.data_dir / "bus.url").read_text()

    def child(self, kind: str) -> int:
        """Return the process id of the child whose command line has a word."""
        [pid] = [pid for pid, cmd in descendants(self.process.pid).items() if kind in cmd]
        return pid

    def kill_child(self, kind: str) -> int:
        """Kill a child with -9, and return the process id that it had."""
        pid = self.child(kind)
        os.kill(pid, signal.SIGKILL)
        wait_for(f"the end of {kind}", lambda: not alive(pid))
        return pid

    def stop(self) -> int:
        """End it with SIGTERM, and return its exit status; nothing of it is left."""
        below = descendants(self.process.pid)
        self.process.terminate()
        status = self.process.wait(30)
        wait_for("the end of all children", lambda: not any(map(alive, below)), 1)
        return status


def read_ready_line(process: subprocess.Popen[str], seconds: float = START_SECONDS) -> str:
    """Return what follows ``ready`` on the first line of a process; kill it when that does not come."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    assert line.startswith("ready"), f"not ready, but {line!r} (status {process.poll()})"
    return line.removeprefix("ready").strip()


@contextmanager
def running_up(
    data_dir: Path, config: str | None = SCRIPTED, arguments: Sequence[str] = ()
) -> Iterator[Up]:
    """Run ``ayllu up`` on a free port until the end of the block."""
    data_dir.mkdir(exist_ok=True)
    command = [AYLLU, "up", "--port", "0", "--data-dir", str(data_dir), *arguments]
    if config is not None:
        file = data_dir / "ayllu.toml"
        file.write_text(config)
        command += ["--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            up = Up(process, read_ready_line(process), data_dir)
            yield up
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextmanager
def running_worker(
    arguments: Sequence[str],
    bus_url: str,
    *,
    stderr: IO[str] | None = None,
    seconds: float = START_SECONDS,
) -> Iterator[subprocess.Popen[str]]:
    """Run ``ayllu worker`` against a bus until the end of the block; it logs to ``stderr``, or to that of the tests."""
    environment = {**os.environ, "AYLLU_BUS_URL": bus_url}
    with subprocess.Popen(
        [AYLLU, "worker", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment,
    ) as process:
        try:
            read_ready_line(process, seconds)
            yield process
        finally:
            process.terminate()
            process.wait(30)


async def support_process(module: str, *arguments: str, seconds: float = 20) -> Process:
    """Start a module of tests/support as a process of its own, and return it when it says that it is ready.

    Whoever starts it ends it; what fails to get ready is ended here.
    """
    process = await anyio.open_process(
        [sys.executable, "-m", f"support.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=None,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert process.stdout is not None
        with anyio.fail_after(seconds):
            assert b"ready" in await process.stdout.receive()
    except BaseException:
        await stop_process(process, patience=5)
        raise
    return process


@asynccontextmanager
async def running_support(module: str, *arguments: str) -> AsyncIterator[Process]:
    """Run a module of tests/support until the end of the block; see `support_process`."""
    process = await support_process(module, *arguments)
    try:
        yield process
    finally:
        await stop_process(process, patience=5)


def run_ayllu(
    *arguments: str, stdin: str = "", seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [AYLLU, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def on_a_terminal(
    command: Sequence[str],
    *,
    whole: bool = False,
    environment: Mapping[str, str] | None = None,
    answers: Sequence[tuple[str, str]] = (),
) -> tuple[str, str]:
    """Run a command whose stderr (as a ``whole`` stdout too) is a terminal; return its stdout, and what the terminal got.

    ``answers`` are what somebody types who reads along, each once what stands before it was shown.
    """
    master, terminal = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        # As it comes: a terminal that nobody reads holds some kilobytes, and then its writer.
        with os.fdopen(master, "rb") as file, suppress(OSError):
            left, told = list(answers), b""
            while block := file.read1(1 << 16):
                seen.append(block)
                told += block
                if left and left[0][0].encode() in told:
                    os.write(master, left.pop(0)[1].encode())
                    told = b""

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            command,
            stdin=terminal if answers else None,
            stdout=terminal if whole else subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    finally:
        os.close(terminal)
        reader.join(10)
    assert done.returncode == 0, seen
    return done.stdout or "", b"".join(seen).decode()


class Commands:
    """The commands, with the address of a gateway."""

    def __init__(self, up: Up) -> None:
        self.up = up

    def __call__(self, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command, *rest = map(str, words)
        done = run_ayllu(command, "--url", self.up.url, *rest, stdin=stdin)
        assert "Traceback" not in done.stderr
        return done

    def said(self, *words: object, stdin: str = "") -> str:
        """Return what a command that ends well writes to stdout."""
        done = self(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout
