"""A connection to NATS that is kept for ever: made again after every loss, with all its subscriptions.

nats-py calls back from its own tasks; a callback that raised would end the task which reconnects, so none does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import nats.errors
from nats.aio.client import Client

from ..schemas import BusError

log = logging.getLogger(__name__)

PING_SECONDS = 5
RECONNECT_SECONDS = 0.25
CLEAN_UP_SECONDS = 2.0
MAX_SUBJECTS = 3 * 1024
"""Bytes of subject and reply subject together; the server's limit for the whole line is 4 KiB."""


@asynccontextmanager
async def open_connection(url: str, *, name: str, patience: float) -> AsyncIterator[Client]:
    """Connect; see `ayllu.bus.nats.connect_nats` for what it takes and raises."""
    scope = anyio.CancelScope()
    watcher = _Watcher(name, scope)
    client = await _connect(url, name, patience, watcher)
    watcher.connected = True
    try:
        with scope:
            yield client
    finally:
        watcher.connected = False
        await bounded(lambda: client.flush(1))
        await bounded(client.close)
    if scope.cancelled_caught:
        raise BusError(f"the bus closed the connection: {watcher.last_error}", retryable=False)


def excess(
    client: Client,
    subject: str,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
    reply: str | None = None,
) -> str | None:
    """Return what is too large about a message, if anything is.

    Ask before sending: nats-py does not count headers, and a server that is sent too much hangs up for good.
    """
    short = 4 * len(subject) + len(reply or "") <= MAX_SUBJECTS  # However it is encoded.
    if not short and len(subject.encode()) + len(reply or "") > MAX_SUBJECTS:
        return "the subject is too long"
    size = len(payload)
    if headers:
        size += 16 + sum(len(f"{key}{value}".encode()) + 4 for key, value in headers.items())
    if size > client.max_payload:
        return f"{size} bytes are too large for a message"
    return None


async def bounded(clean_up: Callable[[], Awaitable[object]]) -> None:
    """Clean up for a bounded time, whatever happens around and in it."""
    with anyio.move_on_after(CLEAN_UP_SECONDS, shield=True):
        try:
            await clean_up()
        except (nats.errors.Error, OSError, RuntimeError) as error:
            # uvloop reports a connection that the server has closed as a RuntimeError.
            log.debug("a clean-up on a lost bus: %r", error)


async def _connect(url: str, name: str, patience: float, watcher: _Watcher) -> Client:
    with anyio.move_on_after(patience):
        while True:
            client = _Client()
            try:
                await client.connect(
                    servers=url.split(","),
                    name=name,
                    error_cb=watcher.on_error,
                    disconnected_cb=watcher.on_disconnect,
                    reconnected_cb=watcher.on_reconnect,
                    closed_cb=watcher.on_close,
                    # At first nats-py would try wrong credentials for ever.
                    allow_reconnect=False,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # takes fractions
                    ping_interval=PING_SECONDS,
                )
                client.options["allow_reconnect"] = True
                return client
            except (nats.errors.Error, OSError, ValueError, TimeoutError) as error:
                watcher.last_error = error
                await bounded(client.close)
                if "authorization violation" in str(error).lower():
                    raise BusError("the bus refused the credentials", retryable=False) from error
                await anyio.sleep(RECONNECT_SECONDS)
            except BaseException:
                await bounded(client.close)
                raise
    why = watcher.last_error or "no answer"
    raise BusError(f"cannot connect to the bus within {patience:g} seconds: {why}")


class _Client(Client):
    """A client that goes on to read after a ping that was given up.

    nats-py 2.16 keeps the future of a flush whose time was over; the pong that comes after all cannot be set there, and ends
    the task that reads: the connection then hears nothing any more, until its own pings find it stale.
    """

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class _Watcher:
    """What nats-py calls back."""

    def __init__(self, name: str, scope: anyio.CancelScope) -> None:
        self.connected = False
        self.last_error: Exception | None = None
        self._name = name
        self._scope = scope

    async def on_error(self, error: Exception) -> None:
        self.last_error = error
        usual = OSError | nats.errors.TimeoutError | nats.errors.StaleConnectionError
        if isinstance(error, nats.errors.SlowConsumerError):
            log.error("%s: messages on %s were lost, too many wait", self._name, error.subject)
        elif not self.connected or isinstance(error, usual):
            log.debug("%s: %r", self._name, error)
        else:
            log.error("%s: the bus reports %r", self._name, error)

    async def on_disconnect(self) -> None:
        if self.connected:
            log.warning("%s: lost the bus, trying to get it back", self._name)

    async def on_reconnect(self) -> None:
        log.warning("%s: the bus is back", self._name)

    async def on_close(self) -> None:
        if self.connected:
            self._scope.cancel()
