"""The websocket connection of a client: it reconnects by itself; calls that ran when it broke end in a retryable error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from ..schemas import (
    BusError,
    DeadlineExceeded,
    ErrorInfo,
    InvalidRequest,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
)
from ..schemas.errors import error_from
from ..schemas.tasks import background_tasks
from .protocol import CallState, ClientSession

log = logging.getLogger(__name__)
_websocket_log = logging.getLogger(f"{__name__}.websocket")
_websocket_log.setLevel(logging.INFO)  # At DEBUG, websockets logs headers, and so the token.

SUBPROTOCOL = Subprotocol("ayllu.v1")
MAX_FRAME = 64 << 20
FRAME_OVERHEAD = 512
"""How much longer than its payload the frame of a call may be."""
LIMIT_HEADER = "ayllu-max-message"
"""In which the gateway tells how large a message it takes; a larger one would close the connection."""
REFUSALS = {401: Unauthenticated, 403: PermissionDenied}
"""What the status of a refused handshake means, where trying again does not help."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between attempts to connect again, doubled from the first to the longest."""
CONNECT_SECONDS = 10.0
GRACE_SECONDS = 5.0
"""How long after a call's deadline the gateway, which keeps it too, may take to say so."""


class WebsocketCall:
    """A call over the websocket (a `RunningCall`)."""

    def __init__(
        self,
        connection: Connection,
        call: int,
        state: CallState,
        *,
        unary: bool,
        timeout: float,
    ) -> None:
        self._connection = connection
        self._id = call
        self._state = state
        self._unary = unary
        self._given = False
        self._give_up_at = anyio.current_time() + timeout + GRACE_SECONDS

    @property
    def result(self) -> bytes | None:
        """The response, once the call has ended well."""
        return None if self._unary else self._state.result

    async def take(self) -> list[bytes]:
        """Return all events that wait, at least one (of a unary call, its reply); nothing when it has ended well.

        Raises:
            AylluError: the call ended in an error.
        """
        state = self._state
        with anyio.move_on_after(self._give_up_at - anyio.current_time()):
            while not state.events and not state.ended:
                await self._connection.changed(state)
        if not state.events and not state.ended:
            self.close()
            raise DeadlineExceeded("the gateway did not answer within the deadline")
        if state.events:
            return state.take()
        if state.error is not None:
            raise state.error
        if self._unary and not self._given:
            self._given = True
            return [state.result or b"null"]
        return []

    def close(self) -> None:
        """Leave the call; what has not ended is cancelled. Never waits."""
        self._connection.cancel(self._id)


class Connection:
    """A connection to one gateway. Use it through `open_connection`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._refused: ErrorInfo | None = None
        self._session = ClientSession()
        self._waiters: dict[CallState, asyncio.Event] = {}
        self._max_message = MAX_FRAME
        self._work = asyncio.Event()
        self._connected = asyncio.Event()

    async def call(
        self, method: str, payload: bytes, *, unary: bool, timeout: float
    ) -> WebsocketCall:
        """Start a call by its name, with a deadline in seconds; waits while the connection is being made again.

        Raises:
            DeadlineExceeded: the connection was not back within the call's timeout.
            Unauthenticated: the gateway no longer takes the token.
            PermissionDenied: it no longer takes clients from here.
            TooLarge: the gateway would not take the message.
        """
        try:
            with anyio.fail_after(timeout):
                await self._connected.wait()
        except TimeoutError as error:
            raise DeadlineExceeded("the gateway was not reached within the deadline") from error
        if self._refused is not None:
            raise error_from(self._refused)
        if len(payload) + FRAME_OVERHEAD > self._max_message:
            raise TooLarge(
                f"the request is larger than the {self._max_message} bytes that the gateway takes"
            )
        number, state = self._session.start(method, payload, timeout)
        self._work.set()
        return WebsocketCall(self, number, state, unary=unary, timeout=timeout)

    def cancel(self, call: int) -> None:
        """Cancel a call that has not ended."""
        self._session.cancel(call)
        self._work.set()

    async def changed(self, state: CallState) -> None:
        """Wait until something happens to a call."""
        event = self._waiters.setdefault(state, asyncio.Event())
        try:
            await event.wait()
        finally:
            self._waiters.pop(state, None)

    def _wake(self, state: CallState) -> None:
        event = self._waiters.get(state)
        if event is not None:
            event.set()

    async def open(self) -> ClientConnection:
        """Connect once.

        Raises:
            BusError: there is no gateway at the address, or it refused.
            InvalidRequest: the address is not one.
            Unauthenticated: it takes no clients without a token, or not with this one.
            PermissionDenied: it takes no clients from here, or under this name.
        """
        try:
            return await open_websocket(
                self._url,
                subprotocols=[SUBPROTOCOL],
                additional_headers=self._headers,
                logger=_websocket_log,
                compression=None,
                max_size=MAX_FRAME,
                open_timeout=CONNECT_SECONDS,
                proxy=None,
            )
        except InvalidURI as error:
            raise InvalidRequest(f"not a websocket address: {self._url}") from error
        except (OSError, InvalidHandshake) as error:
            if isinstance(error, InvalidStatus) and error.response.status_code in REFUSALS:
                refusal = REFUSALS[error.response.status_code]
                raise refusal(f"the gateway at {self._url} does not let us in") from error
            raise BusError(
                f"no ayllu gateway answers at {self._url}: {error}; is `ayllu up` running?"
            ) from error

    async def keep(self, websocket: ClientConnection) -> None:
        """Drive the connection, and make it again whenever it breaks, until cancelled."""
        wait = FIRST_WAIT
        while True:
            self._max_message = _message_limit(websocket)
            self._connected.set()
            began = anyio.current_time()
            try:
                await self._drive(websocket)
            finally:
                self._connected.clear()
                for state in self._session.lose(BusError("the connection to the gateway broke")):
                    self._wake(state)
            if anyio.current_time() - began > LONGEST_WAIT:
                wait = FIRST_WAIT
            while True:
                await anyio.sleep(wait)
                wait = min(LONGEST_WAIT, 2 * wait)
                try:
                    websocket = await self.open()
                    break
                except (Unauthenticated, PermissionDenied) as error:
                    self._refused = error.info
                    self._connected.set()  # Calls that wait are told, and no attempt can help.
                    return
                except BusError as error:
                    log.debug("not yet: %s", error)

    async def _drive(self, websocket: ClientConnection) -> None:
        """Send and receive until the connection breaks."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, websocket)
            try:
                async for text in websocket:
                    state = self._receive(text)
                    if state is not None:
                        self._wake(state)
                    if self._session.outgoing:
                        self._work.set()
            except ConnectionClosed:
                pass
            finally:
                tasks.cancel_scope.cancel()
                with anyio.move_on_after(1, shield=True):
                    await websocket.close()

    def _receive(self, text: str | bytes) -> CallState | None:
        try:
            return self._session.receive(text)
        except InvalidRequest:
            log.warning("the gateway sent a frame that is not one")
            return None

    async def _send(self, websocket: ClientConnection) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            frames, self._session.outgoing = self._session.outgoing, []
            try:
                for frame in frames:
                    await websocket.send(frame)
            except ConnectionClosed:
                return  # The receiving side sees it too.


def _message_limit(websocket: ClientConnection) -> int:
    """Return how large a message the gateway takes, as it said in the handshake."""
    headers = websocket.response.headers if websocket.response is not None else {}
    text = headers.get(LIMIT_HEADER, "")
    return int(text) if text.isdecimal() else MAX_FRAME


@asynccontextmanager
async def open_connection(url: str, token: str | None = None) -> AsyncIterator[Connection]:
    """Connect to a gateway, and stay connected until the end of the block.

    Raises:
        BusError: no gateway answers.
        InvalidRequest: the address is not one.
        Unauthenticated: the gateway does not take the token.
        PermissionDenied: it takes no clients from here.
    """
    connection = Connection(url, token)
    websocket = await connection.open()
    async with background_tasks() as tasks:
        tasks.start_soon(connection.keep, websocket)
        yield connection
