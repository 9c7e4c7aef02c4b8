"""The gateway's websocket at ``/ws``: drives a `Session` over one connection.

Each call has a task that takes what waits and sends it in one frame: a token goes out at once, and tokens that gather
while the socket is busy share the next frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..schemas import AylluError, Cancelled, InternalError
from ..schemas.proxy import single_reply
from .auth import Caller
from .endpoints import Serving
from .forwarding import forward
from .metrics import UNKNOWN
from .own_operations import OwnOperations
from .session import CancelCall, FindOperation, SendFrame, Session, StartCall

log = logging.getLogger(__name__)

SUBPROTOCOL = "ayllu.v1"
TOKEN_EXPIRED = 4401
"""The code with which a connection is closed when its token expires."""
LIMIT_HEADER = b"ayllu-max-message"
"""Tells a client how large its messages may be: a larger one would close the connection."""


class Connection:
    """One websocket connection. Its end cancels the calls that run on it."""

    def __init__(
        self,
        websocket: WebSocket,
        serving: Serving,
        own: OwnOperations,
        *,
        caller: Caller,
    ) -> None:
        self._websocket = websocket
        self._bus = serving.bus
        self._metrics = serving.metrics
        self._gate = serving.gate
        self._own = own
        self._caller = caller
        config = serving.config
        self._session = Session(
            serving.operations,
            max_calls=config.max_calls_per_connection,
            max_timeout=config.max_timeout,
            may_be_own=own.may_have,
        )
        self._max_message_bytes = config.max_message_bytes
        self._scopes: dict[bytes, anyio.CancelScope] = {}

    async def run(self) -> None:
        """Serve the connection to its end."""
        offered = self._websocket.scope.get("subprotocols", ())
        await self._websocket.accept(
            SUBPROTOCOL if SUBPROTOCOL in offered else None,
            headers=[(LIMIT_HEADER, str(self._max_message_bytes).encode())],
        )
        async with anyio.create_task_group() as calls:
            try:
                with anyio.move_on_after(self._gate.seconds_left(self._caller)) as valid:
                    await self._read(calls)
            except WebSocketDisconnect:
                pass
            finally:
                calls.cancel_scope.cancel()
        if valid.cancelled_caught:
            with suppress(WebSocketDisconnect):
                await self._websocket.close(TOKEN_EXPIRED, "the token has expired")

    async def _read(self, calls: TaskGroup) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            effect = self._session.receive(text if text is not None else message["bytes"])
            if isinstance(effect, SendFrame):
                self._metrics.refused(effect.operation, effect.code)
                await self._send(effect.frame)
            elif isinstance(effect, StartCall):
                scope = self._scopes[effect.key] = anyio.CancelScope()
                calls.start_soon(self._run_call, effect, scope)
            elif isinstance(effect, FindOperation):
                scope = self._scopes[effect.key] = anyio.CancelScope()
                calls.start_soon(self._find, effect, scope)
            elif isinstance(effect, CancelCall):
                self._scopes[effect.key].cancel()

    async def _find(self, find: FindOperation, scope: anyio.CancelScope) -> None:
        """Look for an own operation that is not known yet, and run the call."""
        effect: StartCall | SendFrame | None = None
        error: AylluError = Cancelled("the caller cancelled the call")
        with scope:
            try:
                own = await self._own.find(find.method)
                effect = self._session.found(find, own and own[1])
            except AylluError as failure:
                error = failure
        if isinstance(effect, StartCall):
            scope = self._scopes[find.key] = anyio.CancelScope()
            await self._run_call(effect, scope)
            return
        del self._scopes[find.key]
        if effect is None:
            frame = self._session.failure_frame(find.key, error)
            effect = SendFrame(frame, UNKNOWN, error.code)
        self._metrics.refused(effect.operation, effect.code)
        with suppress(WebSocketDisconnect):
            await self._send(effect.frame)

    async def _run_call(self, start: StartCall, scope: anyio.CancelScope) -> None:
        error: AylluError = Cancelled("the caller cancelled the call")
        frame: bytes | None = None
        try:
            # Outside of the scope: a refused call is refused even if it is cancelled at once.
            with self._admit(start), scope:
                frame = await self._follow(start)
        except AylluError as failure:
            error = failure
        except WebSocketDisconnect:
            return  # The reader sees it too, and ends the connection.
        except Exception:
            log.exception("%s failed in the gateway", start.operation.name)
            error = InternalError("the gateway failed; its log says why")
        finally:
            del self._scopes[start.key]
        with suppress(WebSocketDisconnect):
            await self._send(frame or self._session.failure_frame(start.key, error))

    @contextmanager
    def _admit(self, start: StartCall) -> Iterator[None]:
        with ExitStack() as admitted:
            try:
                admitted.enter_context(self._gate.admit(self._caller, start.operation))
            except AylluError as error:
                self._metrics.refused(start.operation.name, error.code)
                raise
            yield

    async def _follow(self, start: StartCall) -> bytes | None:
        """Send the events of a call as they come, and return its response frame."""
        operation, key = start.operation, start.key
        call = await forward(
            self._bus,
            operation,
            start.payload,
            model=start.model,
            timeout=start.timeout,
            metrics=self._metrics,
        )
        with closing(call):
            if operation.kind == "unary":
                return self._session.result_frame(key, await single_reply(call))
            while events := await call.take():
                for frame in self._session.event_frames(key, events):
                    await self._send(frame)
            return self._session.result_frame(key, call.result)

    async def _send(self, frame: bytes) -> None:
        await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
