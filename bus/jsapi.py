"""JetStream as this package uses it: calls with deadlines, errors of our tree, and mailboxes.

Numbers are error codes of nats-server, which are stable (its ``errors.json``).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from email.header import Header, decode_header
from typing import Any
from urllib.parse import quote, unquote

import anyio
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import PubAck

from ..schemas import AylluError, BusError, Conflict, NotFound, Overloaded, TooLarge, Unsupported
from .connection import bounded, excess

TIMEOUT = 5.0
"""Seconds that the server has for an answer."""

MSG_ID = "Nats-Msg-Id"
EXPIRES = "Ayllu-Expires"
"""Milliseconds since the epoch."""
REPLY_TO = "Ayllu-Reply-To"
"""A subject."""

NO_MESSAGE = 10037
STREAM_EXISTS = 10058
WRONG_LAST_SEQUENCE = frozenset((10071, 10164))
DUPLICATE_IN_BATCH = 10201
_CONFLICTS = WRONG_LAST_SEQUENCE | {10052, 10065, 10100, 10148, 10168, DUPLICATE_IN_BATCH}
_FULL = frozenset((10023, 10028, 10047, 10077, 10122, 10123))
_TOO_LARGE = frozenset((10054, 10097, 10199))
_UNSUPPORTED = frozenset((10084, 10098, 10099, 10101, 10174))


class JetStreamApi:
    """The JetStream of one connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js = client.jetstream(timeout=TIMEOUT)

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> PubAck:
        """Publish to a stream and return where it was stored.

        Raises:
            TooLarge: the entry is larger than a message may be.
            AylluError: as `translated`; ``NotFound`` if no stream takes the subject.
        """
        self.refuse_excess(subject, payload, headers)
        with translated(f"store on {subject!r}"):
            try:
                return await self.js.publish(
                    subject, payload, headers=None if headers is None else dict(headers)
                )
            except nats.js.errors.NoStreamResponseError:
                # Nobody answers when there is no stream, but also while its leader is being elected.
                stream = await self.js.find_stream_name_by_subject(subject)
                raise BusError(f"the stream {stream} has no leader at present") from None

    def refuse_excess(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None
    ) -> None:
        """Raise `TooLarge` for an entry that is larger than a message of the bus may be."""
        problem = excess(self.client, subject, payload, headers)
        if problem is not None:
            raise TooLarge(f"cannot store an entry: {problem}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Let errors of NATS leave as ours.

    Raises:
        Conflict, NotFound, Overloaded, TooLarge, Unsupported: what the server says.
        BusError: it said nothing in time, or anything else.
    """
    try:
        yield
    except nats.js.errors.APIError as error:
        raise _from_code(what, error) from error
    except (nats.errors.TimeoutError, TimeoutError) as error:
        raise BusError(f"cannot {what}: no answer from the bus in {TIMEOUT:.0f} s") from error
    except (nats.errors.BadSubjectError, nats.errors.MaxPayloadError, ValueError) as error:
        raise BusError(f"cannot {what}: {error}", retryable=False) from error
    except (nats.errors.Error, OSError) as error:
        raise BusError(f"cannot {what}: {error or type(error).__name__}") from error


def _from_code(what: str, error: nats.js.errors.APIError) -> AylluError:
    code = error.err_code
    text = f"cannot {what}: {error.description or error}"
    details: dict[str, Any] = {} if code is None else {"jetstream_error": code}
    if code in _CONFLICTS:
        return Conflict(text, details=details)
    if code in _FULL:
        return Overloaded(text, details=details)
    if code in _TOO_LARGE:
        return TooLarge(text, details=details)
    if code in _UNSUPPORTED:
        return Unsupported(text, details=details)
    if isinstance(error, nats.js.errors.NotFoundError):
        return NotFound(text, details=details)
    final = isinstance(error, nats.js.errors.BadRequestError)
    return BusError(text, retryable=not final, details=details)


def check_reply(reply: bytes) -> dict[str, Any]:
    """Return the JSON object of a reply of JetStream, or raise the error in it."""
    found: dict[str, Any] = json.loads(reply) if reply else {}
    if "error" in found:
        raise nats.js.errors.APIError.from_error(found["error"])
    return found


def id_header(msg_id: str) -> str:
    """Return a message id as a header can carry it: any text, readable where it is plain."""
    return quote(msg_id, safe="/:.,=@+~")


def headers_for(msg_id: str, expires: float | None = None, ttl: int = 0) -> dict[str, str]:
    """Return the headers of an entry; after ``expires`` seconds it is expired, after ``ttl`` (0: never) it goes."""
    headers = {MSG_ID: id_header(msg_id)}
    if ttl:
        headers["Nats-TTL"] = f"{ttl}s"
    if expires is not None:
        headers[EXPIRES] = str(int((time.time() + expires) * 1000))
    return headers


def read_headers(headers: Mapping[str, str] | None) -> tuple[str, bool, str]:
    """Return the message id, whether the entry has expired, and where answers go; foreign entries may have no or odd headers."""
    if not headers:
        return "", False, ""
    msg_id, expires, reply_to = (_plain(headers.get(name)) for name in (MSG_ID, EXPIRES, REPLY_TO))
    expired = expires.isdecimal() and len(expires) < 20 and int(expires) <= time.time() * 1000
    return unquote(msg_id), expired, reply_to


def _plain(value: object) -> str:
    """Return the text of a header: where it has bytes beyond ASCII, nats-py has it as an object of the package `email`."""
    if not isinstance(value, Header):
        return str(value or "")
    # What is no UTF-8 stays distinct.
    parts = [one if isinstance(one, bytes) else one.encode() for one, _ in decode_header(value)]
    return b"".join(parts).decode("utf-8", "backslashreplace")


def status_of(msg: Msg) -> str | None:
    """Return the status that the server tells instead of sending a message, or None for a message."""
    if msg.headers is None or msg.data:
        return None
    return msg.headers.get("Status")


class Mailbox:
    """Where the answers to one pull request arrive; it holds at most what was asked for.

    It has a subscription of its own, because JetStream delivers messages under their own subjects.
    """

    __slots__ = ("_arrived", "_messages", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._messages: deque[Msg] = deque()
        self._arrived = anyio.Event()

    async def put(self, msg: Msg) -> None:
        """Take what arrived."""
        self._messages.append(msg)
        self._arrived.set()

    async def get(self, timeout: float) -> Msg | None:
        """Return the next message, or None after ``timeout`` seconds. Cancelling it loses none."""
        if not self._messages:
            self._arrived = anyio.Event()
            with anyio.move_on_after(timeout):
                await self._arrived.wait()
        return self._messages.popleft() if self._messages else None

    def rest(self) -> list[Msg]:
        """Return what has arrived and was not taken."""
        return list(self._messages)


@asynccontextmanager
async def open_mailbox(client: Client) -> AsyncIterator[Mailbox]:
    """Open a mailbox; at its end the server forgets the request that is answered there.

    Raises:
        nats.errors.Error: the connection is closed.
    """
    box = Mailbox(client.new_inbox())
    # The size of the request bounds what waits, so nothing may be dropped here.
    subscription = await client.subscribe(
        box.subject, cb=box.put, pending_msgs_limit=0, pending_bytes_limit=0
    )
    try:
        yield box
    finally:
        await bounded(subscription.unsubscribe)
