"""uvicorn's protocols, hardened: bounded times for peers that send or read slowly, and a bounded number of connections.

What uvicorn has no limit for: a request that comes byte by byte, a response that nobody reads, a websocket message in
endless pieces, pings whose answers nobody reads.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Protocol

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from ..schemas import DeadlineExceeded, Unavailable
from .answers import error_body
from .config import GatewayConfig
from .gate import FULL

MAX_FRAGMENTS = 1024
"""In how many frames a websocket message may come; empty ones would cost memory without counting as size."""
WAITING_ROOM = 64
"""How many connections above the limit are told so; further ones are dropped without a word."""
LAST_WORDS_SECONDS = 1.0
"""How long a peer that is hung up on may take to read why."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with peers.

    Attributes:
        config: the limits.
        on_drop: is called when a peer is dropped that does not read.
        on_refusal: is called with the code of the error with which a peer is turned away before it has asked for anything.
    """

    config: GatewayConfig
    on_drop: Callable[[], None]
    on_refusal: Callable[[str], None]


class _Connected(Protocol):
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport


class ReadWatch:
    """Drops a peer that takes nothing of what waits to be written for ``timeout`` seconds.

    Neither uvicorn nor websockets notices such a peer by itself: pings wait behind the data that it does not read.
    """

    def __init__(self, owner: _Connected, timeout: float, on_drop: Callable[[], None]) -> None:
        self._owner = owner
        self._timeout = timeout
        self._on_drop = on_drop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch: the write buffer is full."""
        self.stop()
        waiting = untaken_bytes(self._owner.transport)
        self._timer = self._owner.loop.call_later(self._timeout, self._drop_unless_read, waiting)

    def _drop_unless_read(self, waited: int) -> None:
        # A peer that takes little, but steadily, is no dead one.
        if untaken_bytes(self._owner.transport) < waited:
            self.start()
        else:
            self._on_drop()
            self._owner.transport.abort()

    def stop(self) -> None:
        """Stop: the buffer has room, or the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def untaken_bytes(transport: asyncio.Transport) -> int:
    """Return how much a peer has not taken yet: what waits in this process, and in the kernel (Linux's ``SIOCOUTQ``)."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and sys.platform == "linux":
        with suppress(OSError):
            waiting += int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder)
    return waiting


def websocket_protocol(patience: Patience) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's websocket protocol, hardened."""

    class Websocket(WebSocketsSansIOProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._watch = ReadWatch(self, patience.config.write_timeout, patience.on_drop)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch.start()

        def resume_writing(self) -> None:
            self._watch.stop()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.stop()
            super().connection_lost(exc)

        def handle_ping(self) -> None:
            if self.writable.is_set():
                super().handle_ping()
            else:
                self.conn.data_to_send()  # Unread pongs must not pile up; a later ping is answered.

        def handle_cont(self, event: Frame) -> None:
            if len(self.frames) < MAX_FRAGMENTS:
                super().handle_cont(event)
            elif not self.close_sent:
                self.conn.fail(1009, f"a message comes in at most {MAX_FRAGMENTS} frames")
                self.handle_parser_exception()
                self._hang_up_later()

        def keepalive_timeout(self) -> None:
            super().keepalive_timeout()
            self._hang_up_later()

        def _hang_up_later(self) -> None:
            # `close` waits until everything is written, for a peer that is gone until the kernel gives up.
            self.loop.call_later(LAST_WORDS_SECONDS, self.transport.abort)

    return Websocket


def http_protocol(patience: Patience) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol, hardened."""
    config = patience.config

    class Http(H11Protocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._watch = ReadWatch(self, config.write_timeout, patience.on_drop)
            self._incoming: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            over = len(self.connections) - config.max_connections
            if over > WAITING_ROOM:
                patience.on_refusal(Unavailable.code)
                transport.abort()
                return
            if over > 0:
                # The request is read first: hanging up on its bytes could destroy the answer on its way.
                self.app_state = {**self.app_state, FULL: True}
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.stop()
            self._request_came()
            self._unset_keepalive_if_required()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            state = self.conn.their_state
            begun = state is h11.IDLE and bool(self.conn.trailing_data[0])
            if state is h11.SEND_BODY or begun:
                self._expect_request()
            else:
                self._request_came()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._request_came()
            super().handle_websocket_upgrade(event)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch.start()

        def resume_writing(self) -> None:
            self._watch.stop()
            super().resume_writing()

        def _expect_request(self) -> None:
            # Not renewed by bytes that come: the whole of a request has this time.
            if self._incoming is None:
                self._incoming = self.loop.call_later(config.request_timeout, self._too_slow)

        def _request_came(self) -> None:
            if self._incoming is not None:
                self._incoming.cancel()
                self._incoming = None

        def _too_slow(self) -> None:
            self._incoming = None
            if self.transport.is_closing():
                return
            patience.on_refusal(DeadlineExceeded.code)
            begun = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
            if begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(_late_answer(config.request_timeout))
            self.transport.close()
            self.loop.call_later(LAST_WORDS_SECONDS, self.transport.abort)

    return Http


def _late_answer(seconds: float) -> bytes:
    error = DeadlineExceeded(f"the request did not come within {seconds:g} seconds")
    body = error_body(error)
    return (
        b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
